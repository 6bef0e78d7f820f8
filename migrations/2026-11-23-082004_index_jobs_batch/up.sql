-- For the jobs of a batch.
CREATE INDEX CONCURRENTLY jobs_batch_idx ON jobs (batch_id, user_id, created_at, id) WHERE batch_id IS NOT NULL;
