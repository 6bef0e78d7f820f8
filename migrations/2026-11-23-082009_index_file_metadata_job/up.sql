-- For the files of a job; the foreign key to jobs.
CREATE INDEX CONCURRENTLY file_metadata_job_idx ON file_metadata (job_id, file_type) WHERE job_id IS NOT NULL;
