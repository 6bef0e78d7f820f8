// @generated automatically by Diesel CLI.

diesel::table! {
    /// Files in S3 and what is known of them: videos, thumbnails and others.
    file_metadata (id) {
        /// SHA-256 in hex.
        #[max_length = 64]
        checksum -> Nullable<Varchar>,
        /// MIME type.
        #[max_length = 100]
        content_type -> Varchar,
        /// When the row was made.
        created_at -> Timestamptz,
        /// When it was deleted.
        deleted_at -> Nullable<Timestamptz>,
        /// Text for people.
        description -> Nullable<Text>,
        /// JSON object: details by file type, such as duration_seconds and view_count of a video, video_id of a thumbnail. Unknown keys are kept.
        #[sql_name = "file_metadata"]
        file_metadata_ -> Jsonb,
        /// Bytes; never below zero.
        file_size -> Int8,
        /// video, thumbnail and others; an open list.
        #[max_length = 50]
        file_type -> Varchar,
        /// Primary key.
        id -> Uuid,
        /// Whether the row counts as gone: the only truth about it.
        is_deleted -> Bool,
        /// The job that made it.
        job_id -> Nullable<Uuid>,
        /// When it was last viewed or downloaded.
        last_accessed_at -> Nullable<Timestamptz>,
        /// Its name as the user knows it.
        #[max_length = 255]
        original_filename -> Varchar,
        /// Bucket.
        #[max_length = 255]
        s3_bucket -> Varchar,
        /// Key in the bucket.
        #[max_length = 500]
        s3_key -> Varchar,
        /// Version of the object, if the bucket keeps them.
        #[max_length = 255]
        s3_version_id -> Nullable<Varchar>,
        /// Its name as it is stored.
        #[max_length = 255]
        stored_filename -> Varchar,
        /// JSON array of text.
        tags -> Jsonb,
        /// When the row was last changed; set by a trigger.
        updated_at -> Timestamptz,
        /// Owner: every query names it.
        user_id -> Uuid,
        /// The video that a thumbnail shows: video_id of its details, noted by a trigger; text, for a malformed id must not fail.
        video_id -> Nullable<Text>,
    }
}

diesel::table! {
    /// Jobs that wait for a worker, or are held by one.
    job_queue (id) {
        /// When it left the queue.
        completed_at -> Nullable<Timestamptz>,
        /// When the row was made.
        created_at -> Timestamptz,
        /// JSON array: every failure so far, the oldest first.
        errors -> Jsonb,
        /// Primary key.
        id -> Uuid,
        /// The job; it is in the queue once.
        job_id -> Uuid,
        /// Until when its worker holds it; NULL if it is not held, or held by Python, which knows no lease.
        lease_expires_at -> Nullable<Timestamptz>,
        /// Raised at every claim: a worker that comes with an older one was overtaken.
        lease_token -> Int8,
        /// How often it may be tried again.
        max_retries -> Int4,
        /// Not to be claimed before.
        next_retry_at -> Nullable<Timestamptz>,
        /// low, normal, high or urgent; t2m_priority_rank gives the order.
        #[max_length = 20]
        priority -> Varchar,
        /// The machine of that worker.
        #[max_length = 255]
        processing_node -> Nullable<Varchar>,
        /// When it was last claimed.
        processing_started_at -> Nullable<Timestamptz>,
        /// Written by Python only.
        queue_position -> Nullable<Int4>,
        /// queued, processing, completed, failed or cancelled; an open list.
        #[max_length = 50]
        queue_status -> Varchar,
        /// Since when it waits; the older goes first.
        queued_at -> Timestamptz,
        /// How often it failed, or its worker was lost.
        retry_count -> Int4,
        /// When the row was last changed.
        updated_at -> Timestamptz,
        /// Who holds it, or held it last.
        #[max_length = 255]
        worker_id -> Nullable<Varchar>,
    }
}

diesel::table! {
    /// Work that a user asked for, from the request to its result.
    jobs (id) {
        /// The batch that it was asked for with.
        batch_id -> Nullable<Uuid>,
        /// When it ended, in whatever way.
        completed_at -> Nullable<Timestamptz>,
        /// JSON object: what was asked for.
        configuration -> Jsonb,
        /// When the row was made.
        created_at -> Timestamptz,
        /// The stage that is running.
        #[max_length = 100]
        current_stage -> Nullable<Varchar>,
        /// When it was deleted.
        deleted_at -> Nullable<Timestamptz>,
        /// JSON object: why it failed.
        error_info -> Nullable<Jsonb>,
        /// When it will be done, as far as one can tell.
        estimated_completion -> Nullable<Timestamptz>,
        /// Primary key.
        id -> Uuid,
        /// Whether the row counts as gone: the only truth about it.
        is_deleted -> Bool,
        /// video_generation, batch_video_generation, file_processing or content_analysis.
        #[max_length = 50]
        job_type -> Varchar,
        /// JSON object: what it took.
        metrics -> Nullable<Jsonb>,
        /// The job that it is a part of.
        parent_job_id -> Nullable<Uuid>,
        /// low, normal, high or urgent; t2m_priority_rank gives the order.
        #[max_length = 20]
        priority -> Varchar,
        /// How long it took, in seconds.
        processing_time_seconds -> Nullable<Numeric>,
        /// 0 to 100.
        progress_percentage -> Numeric,
        /// Where the result is.
        #[max_length = 500]
        result_url -> Nullable<Varchar>,
        /// JSON array: the stages that are done.
        stages_completed -> Jsonb,
        /// When a worker first took it.
        started_at -> Nullable<Timestamptz>,
        /// created, queued, processing, completed, failed, cancelled or archived.
        #[max_length = 50]
        status -> Varchar,
        /// When the row was last changed; set by a trigger.
        updated_at -> Timestamptz,
        /// Owner: every query names it.
        user_id -> Uuid,
    }
}

diesel::table! {
    /// Operations that were committed, by the id that their caller gave them.
    operations (operation_id) {
        /// When it was done; old rows may be deleted.
        created_at -> Timestamptz,
        /// Chosen by the caller before the first try, and the same at every further one.
        operation_id -> Uuid,
    }
}

diesel::table! {
    /// People who signed in through Clerk, and what T2M knows of them.
    users (id) {
        /// Clerk's id of the user; unique, also among the deleted.
        #[max_length = 255]
        clerk_user_id -> Varchar,
        /// When the row was made.
        created_at -> Timestamptz,
        /// When it was deleted.
        deleted_at -> Nullable<Timestamptz>,
        /// JSON array: all e-mail addresses, as Clerk sends them.
        email_addresses -> Jsonb,
        /// Whether the primary address was verified.
        email_verified -> Bool,
        /// Given name.
        #[max_length = 255]
        first_name -> Nullable<Varchar>,
        /// Primary key; what every other table calls user_id.
        id -> Uuid,
        /// Avatar.
        image_url -> Nullable<Text>,
        /// Whether the row counts as gone: the only truth about it.
        is_deleted -> Bool,
        /// When the user last did something.
        last_active_at -> Nullable<Timestamptz>,
        /// Family name.
        #[max_length = 255]
        last_name -> Nullable<Varchar>,
        /// When the user last signed in.
        last_sign_in_at -> Nullable<Timestamptz>,
        /// JSON array: all phone numbers, as Clerk sends them.
        phone_numbers -> Jsonb,
        /// Whether the primary number was verified.
        phone_verified -> Bool,
        /// The address to write to.
        #[max_length = 255]
        primary_email -> Nullable<Varchar>,
        /// The number to call.
        #[max_length = 50]
        primary_phone -> Nullable<Varchar>,
        /// What the user may do; an open list, user by default.
        #[max_length = 50]
        role -> Varchar,
        /// State of the account; an open list, active by default.
        #[max_length = 50]
        status -> Varchar,
        /// Whether Clerk asks for a second factor.
        two_factor_enabled -> Bool,
        /// When the row was last changed; set by a trigger.
        updated_at -> Timestamptz,
        /// JSON object: whatever else is kept about the user.
        user_metadata -> Jsonb,
        /// Name chosen at Clerk.
        #[max_length = 255]
        username -> Nullable<Varchar>,
    }
}

diesel::joinable!(file_metadata -> jobs (job_id));
diesel::joinable!(file_metadata -> users (user_id));
diesel::joinable!(job_queue -> jobs (job_id));
diesel::joinable!(jobs -> users (user_id));

diesel::allow_tables_to_appear_in_same_query!(file_metadata, job_queue, jobs, operations, users,);
