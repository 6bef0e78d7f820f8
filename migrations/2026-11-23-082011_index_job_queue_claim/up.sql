-- To claim by priority, then age.
CREATE INDEX CONCURRENTLY job_queue_claim_idx ON job_queue (t2m_priority_rank(priority), queued_at, id) WHERE t2m_queue_is_open(queue_status);
