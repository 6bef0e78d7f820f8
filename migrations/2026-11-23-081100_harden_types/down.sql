-- Back to timestamps without a zone, in UTC. The database's own time zone stays UTC: it has to be, for them.
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

SET LOCAL TimeZone = 'UTC';
-- Python has no place for these, so they are lost: who holds what, and why each try of a job failed (`jobs.error_info` has the
-- last of those that failed for good). Copy `errors` first if you need them. A worker that still has a lease is refused after
-- the way forth.
ALTER TABLE job_queue DROP COLUMN errors, DROP COLUMN lease_token, DROP COLUMN lease_expires_at;
ALTER TABLE file_metadata DROP COLUMN video_id;
ALTER TABLE users
    ALTER COLUMN last_sign_in_at TYPE timestamp,
    ALTER COLUMN last_active_at TYPE timestamp,
    ALTER COLUMN created_at TYPE timestamp,
    ALTER COLUMN updated_at TYPE timestamp,
    ALTER COLUMN deleted_at TYPE timestamp;
ALTER TABLE jobs
    ALTER COLUMN estimated_completion TYPE timestamp,
    ALTER COLUMN started_at TYPE timestamp,
    ALTER COLUMN completed_at TYPE timestamp,
    ALTER COLUMN created_at TYPE timestamp,
    ALTER COLUMN updated_at TYPE timestamp,
    ALTER COLUMN deleted_at TYPE timestamp;
ALTER TABLE file_metadata
    ALTER COLUMN last_accessed_at TYPE timestamp,
    ALTER COLUMN created_at TYPE timestamp,
    ALTER COLUMN updated_at TYPE timestamp,
    ALTER COLUMN deleted_at TYPE timestamp;
ALTER TABLE job_queue
    ALTER COLUMN queued_at TYPE timestamp,
    ALTER COLUMN processing_started_at TYPE timestamp,
    ALTER COLUMN completed_at TYPE timestamp,
    ALTER COLUMN next_retry_at TYPE timestamp,
    ALTER COLUMN created_at TYPE timestamp,
    ALTER COLUMN updated_at TYPE timestamp;
ALTER TABLE users
    ALTER COLUMN created_at SET DEFAULT CURRENT_TIMESTAMP,
    ALTER COLUMN updated_at SET DEFAULT CURRENT_TIMESTAMP;
ALTER TABLE jobs
    ALTER COLUMN created_at SET DEFAULT CURRENT_TIMESTAMP,
    ALTER COLUMN updated_at SET DEFAULT CURRENT_TIMESTAMP;
ALTER TABLE file_metadata
    ALTER COLUMN created_at SET DEFAULT CURRENT_TIMESTAMP,
    ALTER COLUMN updated_at SET DEFAULT CURRENT_TIMESTAMP;
ALTER TABLE job_queue
    ALTER COLUMN queued_at SET DEFAULT CURRENT_TIMESTAMP,
    ALTER COLUMN created_at SET DEFAULT CURRENT_TIMESTAMP,
    ALTER COLUMN updated_at SET DEFAULT CURRENT_TIMESTAMP;

DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('users', 'created_at'),
            ('jobs', 'created_at'),
            ('jobs', 'status, priority, created_at'),
            ('file_metadata', 'created_at'),
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
