-- To list a user's jobs, newest first.
CREATE INDEX CONCURRENTLY jobs_owner_idx ON jobs (user_id, created_at DESC, id DESC) WHERE NOT is_deleted;
