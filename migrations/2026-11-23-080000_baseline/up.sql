-- The tables as the Python layer has them in production. On such a database every statement here finds its object and does
-- nothing; on an empty one it makes the same. Not Python's indexes: the next migrations do without, and drop them where they
-- are.

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

-- For the trigger that sets updated_at. Python's own, whatever its name, is left alone here; `harden_fill` makes them one. Only
-- a function of this very name is taken for the same and replaced.
CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = CURRENT_TIMESTAMP;
    RETURN NEW;
END $$;

-- What a database may lack: `result_url` came later in Python. One that lacks nothing is not locked at all.
-- The lock is asked for in short tries, each given back before the next: a statement waiting for ACCESS EXCLUSIVE makes
-- everybody behind it wait too, so it must never wait for long.
DO $$
DECLARE
    has_url boolean = EXISTS (SELECT FROM pg_attribute
        WHERE attrelid = 'jobs'::regclass AND attname = 'result_url' AND NOT attisdropped);
    untouched text[] = ARRAY(SELECT name FROM unnest(ARRAY['users', 'jobs', 'file_metadata']) AS name
        WHERE NOT EXISTS (
            SELECT FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
            WHERE tgrelid = name::regclass AND NOT tgisinternal AND prosrc ~* '\mnew\.updated_at\M'));
    of_table text;
BEGIN
    IF has_url AND cardinality(untouched) = 0 THEN
        RETURN;
    END IF;
    FOR try IN 1..100 LOOP
        BEGIN
            SET LOCAL lock_timeout = '50ms'; -- for each table
            LOCK TABLE users, jobs, file_metadata IN ACCESS EXCLUSIVE MODE;
            IF NOT has_url THEN
                ALTER TABLE jobs ADD COLUMN result_url varchar(500);
            END IF;
            FOREACH of_table IN ARRAY untouched LOOP
                EXECUTE format('CREATE TRIGGER %I BEFORE UPDATE ON %I FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()',
                    'update_' || of_table || '_updated_at', of_table);
            END LOOP;
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            PERFORM pg_sleep(0.05 + random() * 0.15);
        END;
    END LOOP;
    RAISE lock_not_available USING
        MESSAGE = 'no lock on users, jobs, file_metadata in 100 tries of 150 ms',
        HINT = 'See pg_stat_activity for a transaction that stays open, then run the migration again: nothing was changed.';
END $$;
