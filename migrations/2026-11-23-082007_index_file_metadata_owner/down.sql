DROP INDEX CONCURRENTLY IF EXISTS file_metadata_owner_idx;
