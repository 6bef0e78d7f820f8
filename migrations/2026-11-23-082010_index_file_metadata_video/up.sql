-- For the thumbnails of a video.
CREATE INDEX CONCURRENTLY file_metadata_video_idx ON file_metadata (video_id, user_id) WHERE NOT is_deleted AND video_id IS NOT NULL;
