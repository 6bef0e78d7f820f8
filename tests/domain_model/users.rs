//! Users in the model.

use std::collections::BTreeMap;

use diesel_async::AsyncPgConnection;
use proptest::prelude::*;
use t2m_db::types::{FileType, JobStatus};
use t2m_db::users::{self, NewUser, UserChanges};

use super::{Answer, Model, answer, if_there};

#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    SignIn,
    Rename,
    Delete,
}

pub(super) fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![3 => Just(Act::SignIn), 2 => Just(Act::Rename), 1 => Just(Act::Delete)]
}

pub(super) struct ModelUser {
    pub(super) clerk_id: String,
    pub(super) gone: bool,
    name: Option<String>,
}

impl ModelUser {
    pub(super) fn new(clerk_id: String) -> Self {
        Self { clerk_id, gone: false, name: None }
    }
}

impl Model {
    pub(super) async fn user_step(&mut self, conn: &mut AsyncPgConnection, who: usize, act: Act, pick: usize) {
        let (owner, model) = (self.ids[who], &mut self.users[who]);
        let there = !model.gone;
        match act {
            Act::SignIn => {
                let back = users::upsert(conn, &NewUser::new(&model.clerk_id)).await.unwrap();
                assert_eq!((back.id, &back.username), (owner, &model.name), "the account, not another one");
                model.gone = false;
            }
            Act::Rename => {
                let name = Some(format!("name {pick}"));
                let changes = UserChanges { username: Some(name.clone()), ..UserChanges::default() };
                assert_eq!(answer(&users::update(conn, owner, &changes).await), if_there(there));
                if there {
                    model.name = name;
                }
            }
            Act::Delete => {
                assert_eq!(answer(&users::soft_delete(conn, owner).await), if_there(there));
                model.gone = true;
                self.jobs.iter_mut().filter(|(_, job)| job.owner == who).for_each(|(_, job)| job.delete());
                self.videos.iter_mut().filter(|(_, video)| video.owner == who).for_each(|(_, video)| {
                    video.deleted = true;
                });
            }
        }
    }

    pub(super) async fn users_agree(&self, conn: &mut AsyncPgConnection, who: usize) {
        let (owner, model) = (self.ids[who], &self.users[who]);
        let found = users::find(conn, owner).await.unwrap();
        assert_eq!(found, users::find_by_clerk_id(conn, &model.clerk_id).await.unwrap());
        assert_eq!(found.map(|user| user.username), (!model.gone).then(|| model.name.clone()));
        let statistics = users::statistics(conn, owner).await;
        if model.gone {
            assert_eq!(answer(&statistics), Answer::NotFound);
            return;
        }
        let statistics = statistics.unwrap();
        let mut by_status: BTreeMap<JobStatus, i64> = BTreeMap::new();
        for (_, job) in self.jobs.iter().filter(|(_, job)| job.owner == who && !job.deleted) {
            *by_status.entry(job.status.clone()).or_default() += 1;
        }
        assert_eq!(statistics.jobs, by_status);
        let videos = self.videos.iter().filter(|(_, video)| video.owner == who && !video.deleted);
        let (videos, stills) =
            videos.fold((0, 0), |(videos, stills), (_, video)| (videos + 1, stills + video.thumbnails));
        let count = |kind| statistics.files.get(&kind).map_or(0, |tally| tally.count);
        assert_eq!((count(FileType::Video), count(FileType::Thumbnail)), (videos, stills));
    }
}
