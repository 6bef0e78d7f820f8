-- The tables as the Python layer has them in production. On such a database every statement here finds its object and does
-- nothing; on an empty one it makes the same. The next migrations then start from one known state.

CREATE EXTENSION IF NOT EXISTS "uuid-ossp";

CREATE TABLE IF NOT EXISTS users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    clerk_user_id varchar(255) NOT NULL UNIQUE,
    username varchar(255),
    first_name varchar(255),
    last_name varchar(255),
    image_url text,
    email_addresses jsonb DEFAULT '[]',
    phone_numbers jsonb DEFAULT '[]',
    primary_email varchar(255),
    primary_phone varchar(50),
    email_verified boolean DEFAULT false,
    phone_verified boolean DEFAULT false,
    two_factor_enabled boolean DEFAULT false,
    role varchar(50) DEFAULT 'user',
    status varchar(50) DEFAULT 'active',
    last_sign_in_at timestamp,
    last_active_at timestamp,
    user_metadata jsonb DEFAULT '{}',
    created_at timestamp DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP,
    is_deleted boolean DEFAULT false,
    deleted_at timestamp
);

CREATE TABLE IF NOT EXISTS jobs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL REFERENCES users (id),
    job_type varchar(50) DEFAULT 'video_generation',
    priority varchar(20) DEFAULT 'normal',
    configuration jsonb NOT NULL,
    status varchar(50) DEFAULT 'queued',
    progress_percentage decimal(5, 2) DEFAULT 0,
    current_stage varchar(100),
    stages_completed jsonb DEFAULT '[]',
    estimated_completion timestamp,
    processing_time_seconds decimal(10, 2),
    error_info jsonb,
    metrics jsonb,
    result_url varchar(500),
    started_at timestamp,
    completed_at timestamp,
    batch_id uuid,
    parent_job_id uuid REFERENCES jobs (id),
    created_at timestamp DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP,
    is_deleted boolean DEFAULT false,
    deleted_at timestamp
);
-- It came later in Python, and some databases never got it.
ALTER TABLE jobs ADD COLUMN IF NOT EXISTS result_url varchar(500);

CREATE TABLE IF NOT EXISTS file_metadata (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL REFERENCES users (id),
    job_id uuid REFERENCES jobs (id),
    file_type varchar(50) NOT NULL,
    original_filename varchar(255) NOT NULL,
    stored_filename varchar(255) NOT NULL,
    s3_bucket varchar(255) NOT NULL,
    s3_key varchar(500) NOT NULL,
    s3_version_id varchar(255),
    file_size bigint NOT NULL,
    content_type varchar(100) NOT NULL,
    checksum varchar(64),
    file_metadata jsonb DEFAULT '{}',
    description text,
    tags jsonb DEFAULT '[]',
    last_accessed_at timestamp,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP,
    is_deleted boolean DEFAULT false,
    deleted_at timestamp
);

CREATE TABLE IF NOT EXISTS job_queue (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    job_id uuid NOT NULL UNIQUE REFERENCES jobs (id),
    priority varchar(20) DEFAULT 'normal',
    queue_status varchar(50) DEFAULT 'queued',
    worker_id varchar(255),
    processing_node varchar(255),
    queued_at timestamp DEFAULT CURRENT_TIMESTAMP,
    processing_started_at timestamp,
    completed_at timestamp,
    retry_count integer DEFAULT 0,
    max_retries integer DEFAULT 3,
    next_retry_at timestamp,
    queue_position integer,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP
);

-- The Python layer's own record of its changes. This crate neither reads nor writes it.
CREATE TABLE IF NOT EXISTS migration_log (
    version varchar(255) PRIMARY KEY,
    description text,
    applied_at timestamp DEFAULT CURRENT_TIMESTAMP
);

-- The trigger that sets updated_at. Python's own, whatever its name, is left alone here; `harden_fill` makes them one.
CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = CURRENT_TIMESTAMP;
    RETURN NEW;
END $$;
DO $$
DECLARE
    of_table text;
BEGIN
    FOREACH of_table IN ARRAY ARRAY['users', 'jobs', 'file_metadata'] LOOP
        IF NOT EXISTS (
            SELECT FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
            WHERE tgrelid = of_table::regclass AND NOT tgisinternal AND prosrc ~* '\mnew\.updated_at\M'
        ) THEN
            EXECUTE format('CREATE TRIGGER %I BEFORE UPDATE ON %I FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()',
                'update_' || of_table || '_updated_at', of_table);
        END IF;
    END LOOP;
END $$;

-- Indexes are looked for by what they index: nobody knows what each database calls them.
DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('users', 'clerk_user_id'),
            ('users', 'primary_email'),
            ('users', 'role, status'),
            ('users', 'created_at'),
            ('users', 'is_deleted, status'),
            ('jobs', 'user_id'),
            ('jobs', 'status'),
            ('jobs', 'priority'),
            ('jobs', 'job_type'),
            ('jobs', 'batch_id'),
            ('jobs', 'created_at'),
            ('jobs', 'user_id, status'),
            ('jobs', 'is_deleted, status'),
            ('jobs', 'status, priority, created_at'),
            ('file_metadata', 'user_id'),
            ('file_metadata', 'job_id'),
            ('file_metadata', 'file_type'),
            ('file_metadata', 's3_key'),
            ('file_metadata', 'created_at'),
            ('file_metadata', 'user_id, file_type'),
            ('file_metadata', 'is_deleted'),
            ('job_queue', 'job_id'),
            ('job_queue', 'queue_status'),
            ('job_queue', 'priority'),
            ('job_queue', 'queue_position'),
            ('job_queue', 'queue_status, priority, queued_at'),
            ('job_queue', 'next_retry_at, retry_count')
        ) AS legacy (of_table, of_columns)
    LOOP
        IF NOT EXISTS (
            SELECT FROM pg_index
            WHERE indrelid = wanted.of_table::regclass AND indpred IS NULL AND indexprs IS NULL
              -- A unique constraint is not the plain index that this list asks for.
              AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
              AND (SELECT string_agg(pg_get_indexdef(indexrelid, n, false), ', ' ORDER BY n)
                   FROM generate_series(1, indnkeyatts) AS n) = wanted.of_columns
        ) THEN
            EXECUTE format('CREATE INDEX %I ON %I (%s)',
                'idx_' || wanted.of_table || '_' || replace(wanted.of_columns, ', ', '_'),
                wanted.of_table, wanted.of_columns);
        END IF;
    END LOOP;
END $$;
