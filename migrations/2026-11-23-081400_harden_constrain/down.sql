-- Constraints on busy tables.
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

-- Until `harden_constrain`: the backfill is not a change that anybody made, and must not look like one.
CREATE FUNCTION t2m_keep_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = coalesce(OLD.updated_at, NEW.created_at);
    RETURN NEW;
END $$;
CREATE TRIGGER zz_t2m_keep_updated_at BEFORE UPDATE ON users FOR EACH ROW
    WHEN (current_setting('t2m.backfill', true) = 'on') EXECUTE FUNCTION t2m_keep_updated_at();
CREATE TRIGGER zz_t2m_keep_updated_at BEFORE UPDATE ON jobs FOR EACH ROW
    WHEN (current_setting('t2m.backfill', true) = 'on') EXECUTE FUNCTION t2m_keep_updated_at();
CREATE TRIGGER zz_t2m_keep_updated_at BEFORE UPDATE ON file_metadata FOR EACH ROW
    WHEN (current_setting('t2m.backfill', true) = 'on') EXECUTE FUNCTION t2m_keep_updated_at();
CREATE TRIGGER zz_t2m_keep_updated_at BEFORE UPDATE ON job_queue FOR EACH ROW
    WHEN (current_setting('t2m.backfill', true) = 'on') EXECUTE FUNCTION t2m_keep_updated_at();
ALTER TABLE users
    DROP CONSTRAINT t2m_users_filled;
ALTER TABLE jobs
    DROP CONSTRAINT t2m_jobs_filled,
    DROP CONSTRAINT jobs_job_type_check,
    DROP CONSTRAINT jobs_priority_check,
    DROP CONSTRAINT jobs_status_check;
ALTER TABLE file_metadata
    DROP CONSTRAINT t2m_file_metadata_filled,
    DROP CONSTRAINT file_metadata_file_size_check;
ALTER TABLE job_queue
    DROP CONSTRAINT t2m_job_queue_filled,
    DROP CONSTRAINT job_queue_priority_check;
