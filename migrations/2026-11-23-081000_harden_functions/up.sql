-- What the queries mean, said once and in SQL: an order for priorities and names for the predicates of partial indexes.
-- Text stays text in the tables, so Python goes on as before.
--
-- A predicate with a bind parameter cannot be proved to imply a partial index's; a call of these without one can, because
-- the planner replaces both by the same body. That needs exactly this form: one expression, immutable, no SET.

CREATE FUNCTION t2m_priority_rank(priority text) RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE priority WHEN 'urgent' THEN 0 WHEN 'high' THEN 1 WHEN 'low' THEN 3 ELSE 2 END::smallint;
COMMENT ON FUNCTION t2m_priority_rank(text) IS
    'Order of a priority, the most pressing first: urgent 0, high 1, normal 2, low 3; what nobody knows counts as normal.';

CREATE FUNCTION t2m_queue_is_open(queue_status text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN queue_status IN ('queued', 'processing');
COMMENT ON FUNCTION t2m_queue_is_open(text) IS
    'Whether a queue entry may still be claimed: it waits, or is held under a lease that may run out.';

CREATE FUNCTION t2m_queue_is_held(queue_status text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN queue_status = 'processing';
COMMENT ON FUNCTION t2m_queue_is_held(text) IS 'Whether a worker holds a queue entry.';

CREATE FUNCTION t2m_job_is_finished(status text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN status IN ('completed', 'failed', 'cancelled');
COMMENT ON FUNCTION t2m_job_is_finished(text) IS 'Whether nothing more will happen to a job, so that clean-up may take it.';

CREATE FUNCTION t2m_user_is_active(status text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN status = 'active';
COMMENT ON FUNCTION t2m_user_is_active(text) IS 'Whether a user counts as active.';

CREATE FUNCTION t2m_thumbnail_at(details jsonb) RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE jsonb_typeof(details -> 'timestamp_seconds')
        WHEN 'number' THEN (details ->> 'timestamp_seconds')::double precision END;
COMMENT ON FUNCTION t2m_thumbnail_at(jsonb) IS 'Where in its video a thumbnail was taken, in seconds; NULL when it does not say.';

CREATE FUNCTION t2m_from_now(seconds double precision) RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CURRENT_TIMESTAMP + make_interval(secs => seconds);
COMMENT ON FUNCTION t2m_from_now(double precision) IS 'Some seconds after the transaction began; before it, if negative.';

CREATE FUNCTION t2m_count(details jsonb, counter text, at timestamptz) RETURNS jsonb LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE WHEN coalesce(jsonb_typeof(details), 'null') IN ('object', 'null') THEN
        CASE jsonb_typeof(details) WHEN 'object' THEN details ELSE '{}' END || jsonb_build_object(
            counter,
            CASE jsonb_typeof(details -> counter) WHEN 'number' THEN trunc((details ->> counter)::numeric) ELSE 0 END + 1,
            'last_accessed',
            to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'))
    ELSE details END;
COMMENT ON FUNCTION t2m_count(jsonb, text, timestamptz) IS
    'The document with one counter raised by one and last_accessed set, everything else kept. '
    'A document that is no object is left as it is.';
