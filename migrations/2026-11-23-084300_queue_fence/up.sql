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

-- Python knows neither lease nor token. Where it claims an entry, requeues it or ends it, the worker that held it by a lease
-- must not finish the job any more, and nobody may take the entry from Python when that lease would have run out.
CREATE FUNCTION t2m_overtake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.lease_token = OLD.lease_token + 1;
    NEW.lease_expires_at = NULL;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION t2m_overtake() IS 'Ends the lease on a queue entry that somebody changed who knows of none.';

-- Whoever knows of leases raises the token with a claim, and ends the lease with whatever else changes the status. By its name
-- it comes after t2m_fill_defaults, and so sees what is stored.
CREATE TRIGGER t2m_overtake BEFORE UPDATE OF queue_status, worker_id, processing_started_at ON job_queue FOR EACH ROW
    WHEN (NEW.lease_token = OLD.lease_token AND (
        NEW.queue_status = 'processing'
            AND (NEW.queue_status, NEW.worker_id, NEW.processing_started_at)
                IS DISTINCT FROM (OLD.queue_status, OLD.worker_id, OLD.processing_started_at)
        OR NEW.queue_status <> OLD.queue_status AND NEW.lease_expires_at = OLD.lease_expires_at))
    EXECUTE FUNCTION t2m_overtake();
