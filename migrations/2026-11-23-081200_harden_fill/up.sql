-- A default only helps a column that is left out. Python may also write NULL into it by name, and NOT NULL would refuse that.
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

-- These triggers put the default in its place. They run for such rows only: for every other the WHEN clause is all they cost.
CREATE FUNCTION t2m_fill_users() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.email_addresses = coalesce(NEW.email_addresses, '[]');
    NEW.phone_numbers = coalesce(NEW.phone_numbers, '[]');
    NEW.email_verified = coalesce(NEW.email_verified, false);
    NEW.phone_verified = coalesce(NEW.phone_verified, false);
    NEW.two_factor_enabled = coalesce(NEW.two_factor_enabled, false);
    NEW.role = coalesce(NEW.role, 'user');
    NEW.status = coalesce(NEW.status, 'active');
    NEW.user_metadata = coalesce(NEW.user_metadata, '{}');
    NEW.is_deleted = coalesce(NEW.is_deleted, false);
    NEW.created_at = coalesce(NEW.created_at, coalesce(NEW.updated_at, CURRENT_TIMESTAMP));
    NEW.updated_at = coalesce(NEW.updated_at, NEW.created_at);
    RETURN NEW;
END $$;
CREATE TRIGGER t2m_fill_defaults BEFORE INSERT OR UPDATE ON users FOR EACH ROW
    WHEN (NEW.email_addresses IS NULL
        OR NEW.phone_numbers IS NULL
        OR NEW.email_verified IS NULL
        OR NEW.phone_verified IS NULL
        OR NEW.two_factor_enabled IS NULL
        OR NEW.role IS NULL
        OR NEW.status IS NULL
        OR NEW.user_metadata IS NULL
        OR NEW.is_deleted IS NULL
        OR NEW.created_at IS NULL
        OR NEW.updated_at IS NULL)
    EXECUTE FUNCTION t2m_fill_users();

CREATE FUNCTION t2m_fill_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.job_type = coalesce(NEW.job_type, 'video_generation');
    NEW.priority = coalesce(NEW.priority, 'normal');
    NEW.status = coalesce(NEW.status, 'queued');
    NEW.progress_percentage = coalesce(NEW.progress_percentage, 0);
    NEW.stages_completed = coalesce(NEW.stages_completed, '[]');
    NEW.is_deleted = coalesce(NEW.is_deleted, false);
    NEW.created_at = coalesce(NEW.created_at, coalesce(NEW.updated_at, CURRENT_TIMESTAMP));
    NEW.updated_at = coalesce(NEW.updated_at, NEW.created_at);
    RETURN NEW;
END $$;
CREATE TRIGGER t2m_fill_defaults BEFORE INSERT OR UPDATE ON jobs FOR EACH ROW
    WHEN (NEW.job_type IS NULL
        OR NEW.priority IS NULL
        OR NEW.status IS NULL
        OR NEW.progress_percentage IS NULL
        OR NEW.stages_completed IS NULL
        OR NEW.is_deleted IS NULL
        OR NEW.created_at IS NULL
        OR NEW.updated_at IS NULL)
    EXECUTE FUNCTION t2m_fill_jobs();

CREATE FUNCTION t2m_fill_file_metadata() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.file_metadata = coalesce(NEW.file_metadata, '{}');
    NEW.tags = coalesce(NEW.tags, '[]');
    NEW.is_deleted = coalesce(NEW.is_deleted, false);
    NEW.created_at = coalesce(NEW.created_at, coalesce(NEW.updated_at, CURRENT_TIMESTAMP));
    NEW.updated_at = coalesce(NEW.updated_at, NEW.created_at);
    RETURN NEW;
END $$;
CREATE TRIGGER t2m_fill_defaults BEFORE INSERT OR UPDATE ON file_metadata FOR EACH ROW
    WHEN (NEW.file_metadata IS NULL
        OR NEW.tags IS NULL
        OR NEW.is_deleted IS NULL
        OR NEW.created_at IS NULL
        OR NEW.updated_at IS NULL)
    EXECUTE FUNCTION t2m_fill_file_metadata();

CREATE FUNCTION t2m_fill_job_queue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.priority = coalesce(NEW.priority, 'normal');
    NEW.queue_status = coalesce(NEW.queue_status, 'queued');
    NEW.queued_at = coalesce(NEW.queued_at, CURRENT_TIMESTAMP);
    NEW.retry_count = coalesce(NEW.retry_count, 0);
    NEW.max_retries = coalesce(NEW.max_retries, 3);
    NEW.created_at = coalesce(NEW.created_at, coalesce(NEW.updated_at, CURRENT_TIMESTAMP));
    NEW.updated_at = coalesce(NEW.updated_at, NEW.created_at);
    RETURN NEW;
END $$;
CREATE TRIGGER t2m_fill_defaults BEFORE INSERT OR UPDATE ON job_queue FOR EACH ROW
    WHEN (NEW.priority IS NULL
        OR NEW.queue_status IS NULL
        OR NEW.queued_at IS NULL
        OR NEW.retry_count IS NULL
        OR NEW.max_retries IS NULL
        OR NEW.created_at IS NULL
        OR NEW.updated_at IS NULL)
    EXECUTE FUNCTION t2m_fill_job_queue();

-- The video of a thumbnail, in a column: under row-level security an index on the JSON itself would not be used, because its
-- operators are not leakproof. Text, as `->>` gives it: a malformed id must not fail. After the defaults, by its name.
CREATE FUNCTION t2m_note_video() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.video_id = NEW.file_metadata ->> 'video_id';
    RETURN NEW;
END $$;
CREATE TRIGGER t2m_note_video BEFORE INSERT OR UPDATE ON file_metadata FOR EACH ROW
    WHEN (NEW.video_id IS DISTINCT FROM (NEW.file_metadata ->> 'video_id'))
    EXECUTE FUNCTION t2m_note_video();

-- One trigger for updated_at, whatever Python called its own: those go whose function does that and nothing else. One that
-- does more stays, and where it has the name of ours it is the one.
DO $$
DECLARE
    theirs record;
    of_table text;
BEGIN
    FOR theirs IN
        SELECT tgname, tgrelid::regclass AS of_table, tgfoid::regprocedure AS of_function
        FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
        WHERE tgrelid IN ('users'::regclass, 'jobs'::regclass, 'file_metadata'::regclass)
          AND NOT tgisinternal AND proname !~ '^t2m_'
          AND regexp_replace(prosrc, '--[^\n]*', '', 'g')
              ~* '^\s*begin\s+new\.updated_at\s*:?=[^;]+;\s*return\s+new\s*;\s*end\s*;?\s*$'
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', theirs.tgname, theirs.of_table);
        IF theirs.of_function <> 'update_updated_at_column()'::regprocedure THEN
            BEGIN
                EXECUTE format('DROP FUNCTION %s', theirs.of_function);
            EXCEPTION WHEN dependent_objects_still_exist OR undefined_function THEN
                NULL; -- still used elsewhere, or gone with the table before
            END;
        END IF;
    END LOOP;
    FOREACH of_table IN ARRAY ARRAY['users', 'jobs', 'file_metadata'] LOOP
        IF NOT EXISTS (SELECT FROM pg_trigger
            WHERE tgrelid = of_table::regclass AND tgname = 'update_' || of_table || '_updated_at')
        THEN
            EXECUTE format('CREATE TRIGGER %I BEFORE UPDATE ON %I FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()',
                'update_' || of_table || '_updated_at', of_table);
        END IF;
    END LOOP;
END $$;

-- Until `harden_constrain`: the backfill is not a change that anybody made, and must not look like one.
CREATE FUNCTION t2m_keep_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = coalesce(OLD.updated_at, NEW.created_at);
    RETURN NEW;
END $$;
CREATE TRIGGER zz_t2m_keep_updated_at BEFORE UPDATE ON users FOR EACH ROW
    WHEN (current_setting('t2m.backfill', true) = 'on') EXECUTE FUNCTION t2m_keep_updated_at();
CREATE TRIGGER zz_t2m_keep_updated_at BEFORE UPDATE ON jobs FOR EACH ROW
    WHEN (current_setting('t2m.backfill', true) = 'on') EXECUTE FUNCTION t2m_keep_updated_at();
CREATE TRIGGER zz_t2m_keep_updated_at BEFORE UPDATE ON file_metadata FOR EACH ROW
    WHEN (current_setting('t2m.backfill', true) = 'on') EXECUTE FUNCTION t2m_keep_updated_at();
CREATE TRIGGER zz_t2m_keep_updated_at BEFORE UPDATE ON job_queue FOR EACH ROW
    WHEN (current_setting('t2m.backfill', true) = 'on') EXECUTE FUNCTION t2m_keep_updated_at();
