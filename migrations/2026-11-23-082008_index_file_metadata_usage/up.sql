-- To count a user's files and bytes by type without touching the table; the foreign key to users, so without a predicate.
CREATE INDEX CONCURRENTLY file_metadata_usage_idx ON file_metadata (user_id, is_deleted, file_type) INCLUDE (file_size);
