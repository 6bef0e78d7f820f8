//! Videos and thumbnails in the model.

use diesel_async::AsyncPgConnection;
use proptest::prelude::*;
use t2m_db::Error;
use t2m_db::files::{self, NewThumbnail, NewVideo, ThumbnailDetails, VideoDetails};
use t2m_db::types::{FileId, JobId, PageSize};

use super::{Model, answer, if_there};
use crate::domain_support::{scene, stored};

#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    Store,
    StoreOfJob,
    StoreMany,
    StoreThumbnail,
    StoreThumbnails,
    View,
    Download,
    Touch,
    Change,
    Delete,
    DeleteThumbnails,
}

pub(super) fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => Just(Act::Store),
        3 => Just(Act::StoreOfJob),
        2 => Just(Act::StoreMany),
        2 => Just(Act::StoreThumbnail),
        2 => Just(Act::StoreThumbnails),
        4 => Just(Act::View),
        3 => Just(Act::Download),
        1 => Just(Act::Touch),
        2 => Just(Act::Change),
        2 => Just(Act::Delete),
        1 => Just(Act::DeleteThumbnails),
    ]
}

pub(super) struct ModelVideo {
    pub(super) owner: usize,
    pub(super) deleted: bool,
    pub(super) thumbnails: i64,
    job: Option<JobId>,
    views: i64,
    downloads: i64,
    width: Option<i32>,
    accessed: bool,
    since: usize,
}

impl Model {
    fn stored(&mut self, id: FileId, owner: usize, job: Option<JobId>) {
        let since = self.now;
        let (views, downloads, width, accessed) = (0, 0, None, false);
        let video = ModelVideo { owner, deleted: false, thumbnails: 0, job, views, downloads, width, accessed, since };
        self.videos.push((id, video));
    }

    pub(super) async fn file_step(&mut self, conn: &mut AsyncPgConnection, who: usize, act: Act, pick: usize) {
        let (owner, there) = (self.ids[who], !self.users[who].gone);
        if matches!(act, Act::Store | Act::StoreOfJob | Act::StoreMany) {
            let job = self.jobs.get(pick % self.jobs.len().max(1)).filter(|_| !matches!(act, Act::Store));
            let theirs = job.is_none_or(|(_, job)| job.owner == who && !job.deleted);
            let job = job.map(|(id, _)| *id);
            let new = NewVideo { job, ..scene(1) };
            let done = match act {
                Act::StoreMany => files::video_store_many(conn, owner, &[new.clone(), new]).await,
                _ => files::video_store(conn, owner, &new).await.map(|video| vec![video.id]),
            };
            assert_eq!(answer(&done), if_there(there && theirs), "{act:?}");
            done.unwrap_or_default().into_iter().for_each(|id| self.stored(id, who, job));
            return;
        }
        let count = self.videos.len();
        let Some((id, model)) = self.videos.get_mut(pick % count.max(1)) else { return };
        let id = *id;
        let theirs = model.owner == who && !model.deleted;
        let still = || NewThumbnail { video: id, stored: stored("t", 1), details: ThumbnailDetails::default() };
        let width = i32::try_from(pick).ok();
        let done = match act {
            Act::View => files::video_count_view(conn, owner, id).await.map(drop),
            Act::Download => files::video_count_download(conn, owner, id).await.map(drop),
            Act::Touch => files::video_touch(conn, owner, id).await,
            Act::Change => {
                let details = VideoDetails { width, ..VideoDetails::default() };
                files::video_change_details(conn, owner, id, &details).await.map(drop)
            }
            Act::Delete => files::video_delete(conn, owner, id).await.map(|stills| {
                assert_eq!(i64::try_from(stills).unwrap(), model.thumbnails);
            }),
            Act::DeleteThumbnails => {
                let count = files::thumbnail_delete(conn, owner, id).await.unwrap();
                assert_eq!(i64::try_from(count).unwrap(), if theirs { model.thumbnails } else { 0 });
                if theirs { Ok(()) } else { Err(Error::NotFound { entity: "video" }) }
            }
            Act::StoreThumbnails => files::thumbnail_store_many(conn, owner, &[still(), still()]).await.map(drop),
            _ => files::thumbnail_store(conn, owner, &still()).await.map(drop),
        };
        assert_eq!(answer(&done), if_there(theirs), "{act:?}");
        model.accessed |= theirs && matches!(act, Act::View | Act::Download | Act::Touch);
        match act {
            _ if !theirs => {}
            Act::View => model.views += 1,
            Act::Download => model.downloads += 1,
            Act::Touch => {}
            Act::Change => model.width = width,
            Act::Delete => model.deleted = true,
            Act::DeleteThumbnails => model.thumbnails = 0,
            Act::StoreThumbnails => model.thumbnails += 2,
            _ => model.thumbnails += 1,
        }
    }

    pub(super) async fn files_agree(&self, conn: &mut AsyncPgConnection, who: usize) {
        let owner = self.ids[who];
        let (mut listed, mut cursor) = (Vec::new(), None);
        loop {
            let page = files::video_list(conn, owner, PageSize::new(7).unwrap(), cursor).await.unwrap();
            listed.extend(page.items.iter().map(|video| video.id));
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        // The newest first; those of one step share their time.
        let of = |id: FileId| self.videos.iter().find(|(other, _)| *other == id).map(|(_, video)| video).unwrap();
        assert!(listed.is_sorted_by_key(|id| std::cmp::Reverse(of(*id).since)));
        let theirs = self.videos.iter().filter(|(_, video)| video.owner == who && !video.deleted);
        let mut wanted: Vec<_> = theirs.map(|(id, _)| *id).collect();
        listed.sort();
        wanted.sort();
        assert_eq!(listed, wanted);

        let ids: Vec<FileId> = self.videos.iter().map(|(id, _)| *id).collect();
        let playlist = files::video_playlist(conn, owner, &ids).await.unwrap();
        assert_eq!((playlist.entries.len(), playlist.missing.len()), (wanted.len(), ids.len() - wanted.len()));
        for entry in playlist.entries {
            let (id, model) = (entry.video.id, of(entry.video.id));
            assert_eq!(entry.video.details().unwrap().width, model.width);
            assert_eq!(entry.video.last_accessed_at.is_some(), model.accessed);
            assert_eq!(i64::try_from(entry.thumbnails.len()).unwrap(), model.thumbnails);
            assert_eq!(files::thumbnail_list(conn, owner, id).await.unwrap(), entry.thumbnails);
            let analytics = files::video_analytics(conn, owner, id).await.unwrap().unwrap();
            assert_eq!((analytics.view_count, analytics.download_count), (model.views, model.downloads));
        }
        for id in playlist.missing {
            assert!(files::video_find(conn, owner, id).await.unwrap().is_none());
            assert!(files::video_analytics(conn, owner, id).await.unwrap().is_none());
            assert!(files::thumbnail_list(conn, owner, id).await.unwrap().is_empty());
        }
        let jobs: Vec<JobId> = self.jobs.iter().map(|(id, _)| *id).collect();
        let by_job = files::video_by_job(conn, owner, &jobs).await.unwrap();
        for job in jobs {
            let mut found: Vec<_> = by_job.get(&job).into_iter().flatten().map(|video| video.id).collect();
            let mut of_job = wanted.clone();
            of_job.retain(|id| of(*id).job == Some(job));
            found.sort();
            assert_eq!(found, of_job);
        }
    }
}
