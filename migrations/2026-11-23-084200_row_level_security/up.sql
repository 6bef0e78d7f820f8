-- An optional second wall behind the owner check of every query.
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

-- A transaction that sets `t2m.user_id` sees and changes that owner's rows only, even if a query forgets to ask for them.
-- Where it is not set everything passes, so the Python layer, workers and operators go on as before.
--
-- It binds roles that do not own the tables. The owner passes: FORCE would also make a backup by the owner fail, because
-- pg_dump refuses to dump what a policy might hide. row_security_active('jobs') tells whether it binds the current role.
CREATE FUNCTION t2m_row_owner() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
    -- Once set and gone out of scope, a setting is empty instead of missing.
    RETURN nullif(current_setting('t2m.user_id', true), '')::uuid;
COMMENT ON FUNCTION t2m_row_owner() IS 'The owner whose rows this transaction may see and change; NULL for all.';

-- In a sub-select, so that it is asked once a statement instead of once a row.
CREATE POLICY t2m_owner ON users
    USING ((SELECT t2m_row_owner()) IS NULL OR id = (SELECT t2m_row_owner()));
CREATE POLICY t2m_owner ON jobs
    USING ((SELECT t2m_row_owner()) IS NULL OR user_id = (SELECT t2m_row_owner()));
CREATE POLICY t2m_owner ON file_metadata
    USING ((SELECT t2m_row_owner()) IS NULL OR user_id = (SELECT t2m_row_owner()));
CREATE POLICY t2m_owner ON job_queue
    USING ((SELECT t2m_row_owner()) IS NULL
        OR EXISTS (SELECT FROM jobs WHERE jobs.id = job_queue.job_id AND jobs.user_id = (SELECT t2m_row_owner())));

ALTER TABLE users ENABLE ROW LEVEL SECURITY;
ALTER TABLE jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE file_metadata ENABLE ROW LEVEL SECURITY;
ALTER TABLE job_queue ENABLE ROW LEVEL SECURITY;
