-- Proved by the constraints of `harden_constrain`, so no table is read.
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

ALTER TABLE users
    ALTER COLUMN email_addresses SET NOT NULL,
    ALTER COLUMN phone_numbers SET NOT NULL,
    ALTER COLUMN email_verified SET NOT NULL,
    ALTER COLUMN phone_verified SET NOT NULL,
    ALTER COLUMN two_factor_enabled SET NOT NULL,
    ALTER COLUMN role SET NOT NULL,
    ALTER COLUMN status SET NOT NULL,
    ALTER COLUMN user_metadata SET NOT NULL,
    ALTER COLUMN is_deleted SET NOT NULL,
    ALTER COLUMN created_at SET NOT NULL,
    ALTER COLUMN updated_at SET NOT NULL;
ALTER TABLE users DROP CONSTRAINT t2m_users_filled;
ALTER TABLE jobs
    ALTER COLUMN job_type SET NOT NULL,
    ALTER COLUMN priority SET NOT NULL,
    ALTER COLUMN status SET NOT NULL,
    ALTER COLUMN progress_percentage SET NOT NULL,
    ALTER COLUMN stages_completed SET NOT NULL,
    ALTER COLUMN is_deleted SET NOT NULL,
    ALTER COLUMN created_at SET NOT NULL,
    ALTER COLUMN updated_at SET NOT NULL;
ALTER TABLE jobs DROP CONSTRAINT t2m_jobs_filled;
ALTER TABLE file_metadata
    ALTER COLUMN file_metadata SET NOT NULL,
    ALTER COLUMN tags SET NOT NULL,
    ALTER COLUMN is_deleted SET NOT NULL,
    ALTER COLUMN created_at SET NOT NULL,
    ALTER COLUMN updated_at SET NOT NULL;
ALTER TABLE file_metadata DROP CONSTRAINT t2m_file_metadata_filled;
ALTER TABLE job_queue
    ALTER COLUMN priority SET NOT NULL,
    ALTER COLUMN queue_status SET NOT NULL,
    ALTER COLUMN queued_at SET NOT NULL,
    ALTER COLUMN retry_count SET NOT NULL,
    ALTER COLUMN max_retries SET NOT NULL,
    ALTER COLUMN created_at SET NOT NULL,
    ALTER COLUMN updated_at SET NOT NULL;
ALTER TABLE job_queue DROP CONSTRAINT t2m_job_queue_filled;
