DROP INDEX CONCURRENTLY IF EXISTS file_metadata_usage_idx;
