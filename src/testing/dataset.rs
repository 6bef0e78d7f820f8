//! Data by the million, for plans that only a large database has.

/// Users, jobs, queue entries and files, the same each time. Half of the files are videos, each of a job of its own; the
/// others are their thumbnails.
///
/// Owners are skewed as they are in life: the first has about a third of everything, most have little or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// How many users there are. User `n`, from 1, has `n` as its id and `c{n}` as its Clerk id.
    pub users: u32,
    /// How many files there are. Job `n` has `n` as its id.
    pub files: u32,
}

impl Dataset {
    /// The statements that store it, for a database without any rows. `VACUUM ANALYZE` afterwards.
    pub fn sql(&self) -> String {
        let Self { users, files } = self;
        let jobs = files / 2;
        // A number between 0 and 1 that looks drawn by lot, to the eighth: 32% are below 1/10,000.
        let owner = format!("1 + floor({users} * power((n * 2654435761 % 4294967296) / 4294967296.0, 8))::int");
        format!(
            "INSERT INTO users (id, clerk_user_id, primary_email, created_at)
                SELECT lpad(to_hex(n), 32, '0')::uuid, 'c' || n, 'u' || n || '@example.org', now() - n * interval '1 minute'
                FROM generate_series(1, {users}) AS n;
            INSERT INTO jobs (id, user_id, configuration, status, created_at, completed_at, batch_id)
                SELECT lpad(to_hex(n), 32, '0')::uuid, lpad(to_hex({owner}), 32, '0')::uuid, '{{}}',
                    (ARRAY['queued', 'completed', 'completed', 'failed'])[1 + n % 4], now() - n * interval '1 minute',
                    CASE WHEN n % 4 <> 0 THEN now() - n * interval '1 minute' END, lpad(to_hex(n / 10), 32, '0')::uuid
                FROM generate_series(1::bigint, {jobs}) AS n;
            INSERT INTO job_queue (job_id, queue_status, priority, queued_at)
                SELECT id, status, (ARRAY['low', 'normal', 'high', 'urgent'])[1 + get_byte(uuid_send(id), 15) % 4], created_at
                FROM jobs;
            INSERT INTO file_metadata (user_id, job_id, file_type, original_filename, stored_filename, s3_bucket, s3_key,
                    file_size, content_type, created_at, file_metadata)
                SELECT user_id, id, 'video', 'o', 's', 'b', 'k', 10, 'video/mp4', created_at, '{{\"scene_number\": 1}}' FROM jobs;
            INSERT INTO file_metadata (user_id, job_id, file_type, original_filename, stored_filename, s3_bucket, s3_key,
                    file_size, content_type, created_at, file_metadata)
                SELECT user_id, job_id, 'thumbnail', 'o', 's', 'b', 'k', 10, 'image/png', created_at,
                    jsonb_build_object('video_id', id, 'timestamp_seconds', 1) FROM file_metadata;"
        )
    }
}
