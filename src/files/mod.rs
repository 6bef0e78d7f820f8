//! Files in S3 and what is known of them: videos and their thumbnails.
//!
//! Both are rows of `file_metadata`; what sets them apart is the type of their document. A row is gone when `is_deleted` says
//! so, and by nothing else. Every function names the owner in its WHERE clause: a file of somebody else looks like none.
//!
//! Where ids are given, or in a sub-query, the owner is compared with IS NOT DISTINCT FROM: no index can answer that, so that a plan made without
//! knowing the owner never goes through everything that a large one has.

mod details;
mod many;
mod new;
mod row;
mod thumbnails;
mod videos;
mod views;

pub use details::{ThumbnailDetails, VideoDetails};
pub use many::{thumbnail_store, thumbnail_store_many, video_store_many};
pub use new::{NewThumbnail, NewVideo, Stored};
pub use row::{File, FileDocument, Thumbnail, Video};
pub use thumbnails::{thumbnail_delete, thumbnail_list};
pub use videos::{video_by_job, video_change_details, video_delete, video_find, video_list, video_store};
pub use views::{
    Analytics, Playlist, PlaylistEntry, video_analytics, video_count_download, video_count_view, video_playlist,
    video_touch,
};
