-- A trigger on the queue.
-- The lock is asked for in short tries, each given back before the next: a statement waiting for ACCESS EXCLUSIVE makes
-- everybody behind it wait too, so it must never wait for long.
DO $$
BEGIN
    FOR try IN 1..100 LOOP
        BEGIN
            SET LOCAL lock_timeout = '200ms';
            LOCK TABLE job_queue IN ACCESS EXCLUSIVE MODE;
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            PERFORM pg_sleep(0.05 + random() * 0.15);
        END;
    END LOOP;
    RAISE lock_not_available USING
        MESSAGE = 'no lock on job_queue in 100 tries of 200 ms',
        HINT = 'See pg_stat_activity for a transaction that stays open, then run the migration again: nothing was changed.';
END $$;

-- An idle worker LISTENs instead of polling. One notification a transaction: equal ones are sent once.
CREATE FUNCTION t2m_wake_workers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('t2m_job_queue', '');
    RETURN NULL;
END $$;
COMMENT ON FUNCTION t2m_wake_workers() IS 'Tells whoever listens on t2m_job_queue that there is something to claim.';
CREATE TRIGGER t2m_wake_on_insert AFTER INSERT ON job_queue FOR EACH STATEMENT EXECUTE FUNCTION t2m_wake_workers();
CREATE TRIGGER t2m_wake_on_return AFTER UPDATE OF queue_status ON job_queue FOR EACH ROW
    WHEN (NEW.queue_status = 'queued' AND OLD.queue_status <> 'queued') EXECUTE FUNCTION t2m_wake_workers();
