-- For the foreign key to the parent job.
CREATE INDEX CONCURRENTLY jobs_parent_idx ON jobs (parent_job_id) WHERE parent_job_id IS NOT NULL;
