-- To clean up finished jobs older than some days.
CREATE INDEX CONCURRENTLY jobs_finished_idx ON jobs (coalesce(completed_at, updated_at)) WHERE NOT is_deleted AND t2m_job_is_finished(status);
