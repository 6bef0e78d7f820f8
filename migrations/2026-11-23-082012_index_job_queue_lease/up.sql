-- To find leases that ran out, and what a worker holds.
CREATE INDEX CONCURRENTLY job_queue_lease_idx ON job_queue (lease_expires_at) WHERE t2m_queue_is_held(queue_status);
