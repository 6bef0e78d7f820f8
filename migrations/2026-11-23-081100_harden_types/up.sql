-- Timestamps become timestamptz, the queue gets its leases, and thumbnails a column for their video.
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

-- Under UTC the two types have the same bits, and PostgreSQL (since 12) then changes the catalog only: no row is rewritten.
SET LOCAL TimeZone = 'UTC';

-- An index on such a column would be rebuilt under the lock, so the old ones go first; `index_*` build better ones later.
DO $$
DECLARE
    retired record;
BEGIN
    FOR retired IN
        SELECT indexrelid::regclass AS index
        FROM (VALUES
            ('users', 'created_at'),
            ('jobs', 'created_at'),
            ('jobs', 'status, priority, created_at'),
            ('file_metadata', 'created_at'),
            ('job_queue', 'queue_status, priority, queued_at'),
            ('job_queue', 'next_retry_at, retry_count')
        ) AS legacy (of_table, of_columns)
        JOIN pg_index ON indrelid = of_table::regclass
        WHERE indpred IS NULL AND indexprs IS NULL AND NOT indisunique
          AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
          -- Keys as they are, so that an index with an order or an operator class of its own is not taken for one of these.
          AND (SELECT string_agg(pg_get_indexdef(indexrelid, n, false), ', ' ORDER BY n)
               FROM generate_series(1, indnkeyatts) AS n) = of_columns
          AND indnatts = indnkeyatts AND NOT (3 = ANY (indoption::int2[]))
    LOOP
        EXECUTE format('DROP INDEX %s', retired.index);
    END LOOP;
END $$;

ALTER TABLE users
    ALTER COLUMN last_sign_in_at TYPE timestamptz,
    ALTER COLUMN last_active_at TYPE timestamptz,
    ALTER COLUMN created_at TYPE timestamptz,
    ALTER COLUMN updated_at TYPE timestamptz,
    ALTER COLUMN deleted_at TYPE timestamptz;
ALTER TABLE jobs
    ALTER COLUMN estimated_completion TYPE timestamptz,
    ALTER COLUMN started_at TYPE timestamptz,
    ALTER COLUMN completed_at TYPE timestamptz,
    ALTER COLUMN created_at TYPE timestamptz,
    ALTER COLUMN updated_at TYPE timestamptz,
    ALTER COLUMN deleted_at TYPE timestamptz;
ALTER TABLE file_metadata
    ALTER COLUMN last_accessed_at TYPE timestamptz,
    ALTER COLUMN created_at TYPE timestamptz,
    ALTER COLUMN updated_at TYPE timestamptz,
    ALTER COLUMN deleted_at TYPE timestamptz;
ALTER TABLE job_queue
    ALTER COLUMN queued_at TYPE timestamptz,
    ALTER COLUMN processing_started_at TYPE timestamptz,
    ALTER COLUMN completed_at TYPE timestamptz,
    ALTER COLUMN next_retry_at TYPE timestamptz,
    ALTER COLUMN created_at TYPE timestamptz,
    ALTER COLUMN updated_at TYPE timestamptz;
-- `now()` and CURRENT_TIMESTAMP are the same thing in two spellings: one of them, everywhere.
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

-- A constant default is kept in the catalog and costs no rewrite. Python inserts without these columns.
ALTER TABLE file_metadata
    ADD COLUMN video_id text;
ALTER TABLE job_queue
    ADD COLUMN lease_expires_at timestamptz,
    ADD COLUMN errors jsonb NOT NULL DEFAULT '[]';
-- Entries that are there start at the time, in microseconds: after a way back and forth no token from before is met again.
DO $$
BEGIN
    EXECUTE format('ALTER TABLE job_queue ADD COLUMN lease_token bigint NOT NULL DEFAULT %s',
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    ALTER TABLE job_queue ALTER COLUMN lease_token SET DEFAULT 0;
END $$;

-- A naive timestamp from Python is cast in its session's time zone: make that UTC whatever the server's default is.
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET TimeZone TO ''UTC''', current_database());
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'only its owner may set the time zone of database %: set it to UTC for the Python layer', current_database();
END $$;
