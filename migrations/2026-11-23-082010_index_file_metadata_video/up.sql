-- For the thumbnails of a video.
CREATE INDEX CONCURRENTLY file_metadata_video_idx ON file_metadata (t2m_thumbnail_video(file_metadata), user_id) WHERE NOT is_deleted AND t2m_thumbnail_video(file_metadata) IS NOT NULL;
