-- To list a user's videos, newest first.
CREATE INDEX CONCURRENTLY file_metadata_owner_idx ON file_metadata (user_id, file_type, created_at DESC, id DESC) WHERE NOT is_deleted;
