-- Takes away what `up.sql` may have made, but never a row: a table that holds any stays (`up.sql` finds it again).
-- The extension stays: it may have been there before, and something else may use it.
DO $$
DECLARE
    of_table text;
    in_use boolean;
BEGIN
    FOREACH of_table IN ARRAY ARRAY['migration_log', 'job_queue', 'file_metadata', 'jobs', 'users'] LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %I)', of_table) INTO in_use;
        IF in_use THEN
            RAISE WARNING 'table % holds rows and stays', of_table;
        ELSE
            BEGIN
                EXECUTE format('DROP TABLE %I', of_table);
            EXCEPTION WHEN dependent_objects_still_exist THEN
                RAISE WARNING 'table % is referenced by one that stays', of_table;
            END;
        END IF;
    END LOOP;
    BEGIN
        DROP FUNCTION update_updated_at_column();
    EXCEPTION WHEN dependent_objects_still_exist THEN
        NULL; -- a table that stays still uses it
    END;
END $$;
