-- Blocks writers while they are built; for a busy database build them CONCURRENTLY by hand first, and this finds them.
DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
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
