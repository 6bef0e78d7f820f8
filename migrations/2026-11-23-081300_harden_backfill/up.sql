-- NULLs that Python left become the defaults, and thumbnails note their video, by the triggers of `harden_fill`: what a default is, is said there once.
-- In batches of 2,000 rows by primary key, each a transaction, so that no row stays locked for long. That is why this runs
-- outside of a transaction, and why it is one statement.
DO $$
DECLARE
    of_table text;
    is_missing text;
    batch uuid[];
    last_id uuid;
BEGIN
    FOREACH of_table IN ARRAY ARRAY['users', 'jobs', 'file_metadata', 'job_queue'] LOOP
        is_missing = CASE of_table
            WHEN 'users' THEN 'email_addresses IS NULL OR phone_numbers IS NULL OR email_verified IS NULL OR phone_verified IS NULL OR two_factor_enabled IS NULL OR role IS NULL OR status IS NULL OR user_metadata IS NULL OR is_deleted IS NULL OR created_at IS NULL OR updated_at IS NULL'
            WHEN 'jobs' THEN 'job_type IS NULL OR priority IS NULL OR status IS NULL OR progress_percentage IS NULL OR stages_completed IS NULL OR is_deleted IS NULL OR created_at IS NULL OR updated_at IS NULL'
            WHEN 'file_metadata' THEN 'file_metadata IS NULL OR tags IS NULL OR is_deleted IS NULL OR created_at IS NULL OR updated_at IS NULL OR video_id IS DISTINCT FROM (file_metadata ->> ''video_id'')'
            WHEN 'job_queue' THEN 'priority IS NULL OR queue_status IS NULL OR queued_at IS NULL OR retry_count IS NULL OR max_retries IS NULL OR created_at IS NULL OR updated_at IS NULL'
        END;
        last_id = NULL;
        LOOP
            EXECUTE format('SELECT array_agg(id ORDER BY id) FROM (SELECT id FROM %I WHERE $1 IS NULL OR id > $1 ORDER BY id LIMIT 2000) AS page', of_table)
                INTO batch USING last_id;
            EXIT WHEN batch IS NULL;
            last_id = batch[cardinality(batch)];
            PERFORM set_config('t2m.backfill', 'on', true);
            EXECUTE format('UPDATE %I SET id = id WHERE id = ANY ($1) AND (%s)', of_table, is_missing) USING batch;
            COMMIT;
        END LOOP;
    END LOOP;
END $$;
