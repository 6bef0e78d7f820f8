DROP INDEX CONCURRENTLY IF EXISTS file_metadata_video_idx;
