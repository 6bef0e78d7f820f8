DROP FUNCTION t2m_from_now(double precision);
DROP FUNCTION t2m_count(jsonb, text, timestamptz);
DROP FUNCTION t2m_thumbnail_at(jsonb);
DROP FUNCTION t2m_user_is_active(text);
DROP FUNCTION t2m_job_is_finished(text);
DROP FUNCTION t2m_queue_is_held(text);
DROP FUNCTION t2m_queue_is_open(text);
DROP FUNCTION t2m_priority_rank(text);
