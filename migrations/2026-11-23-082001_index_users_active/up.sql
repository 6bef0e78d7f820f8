-- To list active users, newest first.
CREATE INDEX CONCURRENTLY users_active_idx ON users (created_at DESC, id DESC) WHERE NOT is_deleted AND t2m_user_is_active(status);
