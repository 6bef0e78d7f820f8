-- Takes away what `up.sql` may have made, but never a row, and no table from under Python: while one of them holds rows all
-- stay (`up.sql` finds them again). The extension stays: it may have been there before, and something else may use it.
DO $$
DECLARE
    of_table text;
    in_use boolean;
BEGIN
    FOREACH of_table IN ARRAY ARRAY['migration_log', 'job_queue', 'file_metadata', 'jobs', 'users'] LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %I)', of_table) INTO in_use;
        IF in_use THEN
            RAISE WARNING 'table % holds rows: all of them stay', of_table;
            RETURN;
        END IF;
    END LOOP;
    DROP TABLE migration_log, job_queue, file_metadata, jobs, users;
    DROP FUNCTION update_updated_at_column();
END $$;
