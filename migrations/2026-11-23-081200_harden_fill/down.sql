-- The triggers go; the one for updated_at stays, as in `baseline`.
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

DROP TRIGGER zz_t2m_keep_updated_at ON users;
DROP TRIGGER t2m_fill_defaults ON users;
DROP FUNCTION t2m_fill_users();
DROP TRIGGER zz_t2m_keep_updated_at ON jobs;
DROP TRIGGER t2m_fill_defaults ON jobs;
DROP FUNCTION t2m_fill_jobs();
DROP TRIGGER zz_t2m_keep_updated_at ON file_metadata;
DROP TRIGGER t2m_fill_defaults ON file_metadata;
DROP FUNCTION t2m_fill_file_metadata();
DROP TRIGGER t2m_note_video ON file_metadata;
DROP FUNCTION t2m_note_video();
DROP TRIGGER zz_t2m_keep_updated_at ON job_queue;
DROP TRIGGER t2m_fill_defaults ON job_queue;
DROP FUNCTION t2m_fill_job_queue();
DROP FUNCTION t2m_keep_updated_at();
