-- To list a user's jobs by status, count them by status; the foreign key to users, so without a predicate.
CREATE INDEX CONCURRENTLY jobs_owner_status_idx ON jobs (user_id, is_deleted, status, created_at DESC, id DESC);
