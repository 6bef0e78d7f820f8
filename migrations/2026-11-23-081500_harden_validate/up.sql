-- Reads every row under SHARE UPDATE EXCLUSIVE: readers and writers go on. A row that breaks a rule is named by its
-- constraint, nothing is changed, and the migration can be run again when the row is put right.
ALTER TABLE jobs VALIDATE CONSTRAINT jobs_job_type_check;
ALTER TABLE jobs VALIDATE CONSTRAINT jobs_priority_check;
ALTER TABLE jobs VALIDATE CONSTRAINT jobs_status_check;
ALTER TABLE file_metadata VALIDATE CONSTRAINT file_metadata_file_size_check;
ALTER TABLE job_queue VALIDATE CONSTRAINT job_queue_priority_check;
ALTER TABLE users VALIDATE CONSTRAINT t2m_users_filled;
ALTER TABLE jobs VALIDATE CONSTRAINT t2m_jobs_filled;
ALTER TABLE file_metadata VALIDATE CONSTRAINT t2m_file_metadata_filled;
ALTER TABLE job_queue VALIDATE CONSTRAINT t2m_job_queue_filled;
