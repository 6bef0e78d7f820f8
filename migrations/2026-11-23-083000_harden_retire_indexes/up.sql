-- The scattered single-column indexes go, once their successors are known to be whole.
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

DO $$
DECLARE
    broken text;
BEGIN
    SELECT string_agg(wanted, ', ') INTO broken
    FROM unnest(ARRAY[
            'users_email_idx',
            'users_active_idx',
            'jobs_owner_idx',
            'jobs_owner_status_idx',
            'jobs_batch_idx',
            'jobs_parent_idx',
            'jobs_finished_idx',
            'file_metadata_owner_idx',
            'file_metadata_usage_idx',
            'file_metadata_job_idx',
            'file_metadata_video_idx',
            'job_queue_claim_idx',
            'job_queue_lease_idx'
    ]) AS wanted
    LEFT JOIN pg_index ON indexrelid = to_regclass(wanted)
    WHERE indisvalid IS DISTINCT FROM true;
    IF broken IS NOT NULL THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = 'indexes missing or left invalid by a build that was interrupted: ' || broken,
            HINT = 'REINDEX INDEX CONCURRENTLY them, then run the migration again.';
    END IF;
END $$;

DO $$
DECLARE
    retired record;
BEGIN
    FOR retired IN
        SELECT indexrelid::regclass AS index
        FROM (VALUES
            ('users', 'clerk_user_id'),
            ('users', 'primary_email'),
            ('users', 'role, status'),
            ('users', 'is_deleted, status'),
            ('jobs', 'user_id'),
            ('jobs', 'status'),
            ('jobs', 'priority'),
            ('jobs', 'job_type'),
            ('jobs', 'batch_id'),
            ('jobs', 'user_id, status'),
            ('jobs', 'is_deleted, status'),
            ('file_metadata', 'user_id'),
            ('file_metadata', 'job_id'),
            ('file_metadata', 'file_type'),
            ('file_metadata', 's3_key'),
            ('file_metadata', 'user_id, file_type'),
            ('file_metadata', 'is_deleted'),
            ('job_queue', 'job_id'),
            ('job_queue', 'queue_status'),
            ('job_queue', 'priority'),
            ('job_queue', 'queue_position')
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
