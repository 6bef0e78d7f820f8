-- Rules for new rows at once; NOT VALID leaves the old ones to `harden_validate`, which reads them without blocking anybody.
-- The lock is asked for in short tries, each given back before the next: a statement waiting for ACCESS EXCLUSIVE makes
-- everybody behind it wait too, so it must never wait for long.
DO $$
BEGIN
    FOR try IN 1..100 LOOP
        BEGIN
            SET LOCAL lock_timeout = '50ms'; -- for each table
            LOCK TABLE users, jobs, file_metadata, job_queue IN ACCESS EXCLUSIVE MODE;
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            PERFORM pg_sleep(0.05 + random() * 0.15);
        END;
    END LOOP;
    RAISE lock_not_available USING
        MESSAGE = 'no lock on users, jobs, file_metadata, job_queue in 100 tries of 200 ms',
        HINT = 'See pg_stat_activity for a transaction that stays open, then run the migration again: nothing was changed.';
END $$;

-- Lists that the Python layer closes. Roles, user states, queue states and file types it does not: they stay open here.
ALTER TABLE jobs
    ADD CONSTRAINT jobs_job_type_check CHECK (job_type IN ('video_generation', 'batch_video_generation', 'file_processing', 'content_analysis')) NOT VALID,
    ADD CONSTRAINT jobs_priority_check CHECK (priority IN ('low', 'normal', 'high', 'urgent')) NOT VALID,
    ADD CONSTRAINT jobs_status_check CHECK (status IN ('created', 'queued', 'processing', 'completed', 'failed', 'cancelled', 'archived')) NOT VALID;
ALTER TABLE file_metadata
    ADD CONSTRAINT file_metadata_file_size_check CHECK (file_size >= 0) NOT VALID;
ALTER TABLE job_queue
    ADD CONSTRAINT job_queue_priority_check CHECK (priority IN ('low', 'normal', 'high', 'urgent')) NOT VALID;

-- Only for the way to NOT NULL: with this proved, SET NOT NULL needs no scan of its own under its lock.
ALTER TABLE users ADD CONSTRAINT t2m_users_filled CHECK (
    email_addresses IS NOT NULL
    AND phone_numbers IS NOT NULL
    AND email_verified IS NOT NULL
    AND phone_verified IS NOT NULL
    AND two_factor_enabled IS NOT NULL
    AND role IS NOT NULL
    AND status IS NOT NULL
    AND user_metadata IS NOT NULL
    AND is_deleted IS NOT NULL
    AND created_at IS NOT NULL
    AND updated_at IS NOT NULL
) NOT VALID;
ALTER TABLE jobs ADD CONSTRAINT t2m_jobs_filled CHECK (
    job_type IS NOT NULL
    AND priority IS NOT NULL
    AND status IS NOT NULL
    AND progress_percentage IS NOT NULL
    AND stages_completed IS NOT NULL
    AND is_deleted IS NOT NULL
    AND created_at IS NOT NULL
    AND updated_at IS NOT NULL
) NOT VALID;
ALTER TABLE file_metadata ADD CONSTRAINT t2m_file_metadata_filled CHECK (
    file_metadata IS NOT NULL
    AND tags IS NOT NULL
    AND is_deleted IS NOT NULL
    AND created_at IS NOT NULL
    AND updated_at IS NOT NULL
) NOT VALID;
ALTER TABLE job_queue ADD CONSTRAINT t2m_job_queue_filled CHECK (
    priority IS NOT NULL
    AND queue_status IS NOT NULL
    AND queued_at IS NOT NULL
    AND retry_count IS NOT NULL
    AND max_retries IS NOT NULL
    AND created_at IS NOT NULL
    AND updated_at IS NOT NULL
) NOT VALID;

-- The backfill is over.
DROP TRIGGER zz_t2m_keep_updated_at ON users;
DROP TRIGGER zz_t2m_keep_updated_at ON jobs;
DROP TRIGGER zz_t2m_keep_updated_at ON file_metadata;
DROP TRIGGER zz_t2m_keep_updated_at ON job_queue;
DROP FUNCTION t2m_keep_updated_at();
