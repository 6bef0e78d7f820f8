//! Any sequence of operations of two users, and of a worker who works for both, agrees with a model in memory, and neither
//! user sees or changes what the other owns: with row-level security and without.

mod files;
mod jobs;
mod users;

use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use t2m_db::Error;
use t2m_db::types::{FileId, JobId, UserId};
use uuid::Uuid;

use self::files::ModelVideo;
use self::jobs::ModelJob;
use self::users::ModelUser;
use crate::domain_rls::{act_for, become_app_role};
use crate::domain_support::{fresh, user};

#[derive(Debug, Clone, Copy)]
enum Act {
    Users(users::Act),
    Jobs(jobs::Act),
    Queue(jobs::Work),
    Files(files::Act),
}

/// Who does what, and to which of all jobs or videos so far, whoever owns them.
type Step = (usize, Act, usize);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let act = prop_oneof![
        2 => users::acts().prop_map(Act::Users),
        10 => jobs::acts().prop_map(Act::Jobs),
        10 => jobs::works().prop_map(Act::Queue),
        12 => files::acts().prop_map(Act::Files),
    ];
    prop::collection::vec((0..2usize, act, 0..64usize), 1..80)
}

/// What there should be.
struct Model {
    ids: [UserId; 2],
    users: [ModelUser; 2],
    jobs: Vec<(JobId, ModelJob)>,
    videos: Vec<(FileId, ModelVideo)>,
    /// The batch of all jobs that are ordered together, of both users.
    batch: Uuid,
    /// How many steps there were.
    now: usize,
}

/// What an operation should answer.
#[derive(Debug, PartialEq)]
enum Answer {
    Done,
    NotFound,
    Transition,
    LeaseLost,
}

fn answer<T>(result: &Result<T, Error>) -> Answer {
    match result {
        Ok(_) => Answer::Done,
        Err(Error::Row { source, .. }) if matches!(**source, Error::NotFound { .. }) => Answer::NotFound,
        Err(Error::NotFound { .. }) => Answer::NotFound,
        Err(Error::Transition { .. }) => Answer::Transition,
        Err(Error::LeaseLost { .. }) => Answer::LeaseLost,
        Err(other) => panic!("{other}"),
    }
}

/// [`Answer::Done`] if it is there for this user.
fn if_there(there: bool) -> Answer {
    if there { Answer::Done } else { Answer::NotFound }
}

impl Model {
    async fn step(&mut self, conn: &mut AsyncPgConnection, (who, act, pick): Step) {
        self.now += 1;
        match act {
            Act::Users(act) => self.user_step(conn, who, act, pick).await,
            Act::Jobs(act) => self.job_step(conn, who, act, pick).await,
            Act::Queue(work) => self.work_step(conn, work, pick).await,
            Act::Files(act) => self.file_step(conn, who, act, pick).await,
        }
    }

    /// What this user sees is what the model says.
    async fn agrees(&self, conn: &mut AsyncPgConnection, who: usize) {
        self.users_agree(conn, who).await;
        self.jobs_agree(conn, who).await;
        self.files_agree(conn, who).await;
    }
}

/// The user is named to the policies too; a worker, who works for everybody, names none, and neither does one who signs in.
async fn secure(conn: &mut AsyncPgConnection, owner: Option<UserId>) {
    match owner {
        Some(owner) => act_for(conn, owner).await,
        None => conn.batch_execute("SET t2m.user_id = ''").await.unwrap(),
    }
}

async fn run(conn: &mut AsyncPgConnection, mut model: Model, steps: Vec<Step>, secured: bool) {
    for step in steps {
        if secured {
            let nobody = matches!(step.1, Act::Queue(_) | Act::Users(users::Act::SignIn));
            secure(conn, (!nobody).then_some(model.ids[step.0])).await;
        }
        // One transaction a step, as the functions ask for.
        let model = &mut model;
        conn.transaction(async |conn| {
            model.step(conn, step).await;
            Ok::<_, Error>(())
        })
        .await
        .unwrap();
    }
    for who in [0, 1] {
        if secured {
            secure(conn, Some(model.ids[who])).await;
        }
        model.agrees(conn, who).await;
    }
}

#[test]
fn two_users_agree_with_the_model_whatever_they_do() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (plain, secured) = runtime.block_on(async { (fresh().await, fresh().await) });
    let number = std::cell::Cell::new(0);
    let cases = crate::support::rounds(60);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    runner
        .run(&steps(), |steps| {
            number.set(number.get() + 1);
            runtime.block_on(async {
                for (db, is_secured) in [(&plain, false), (&secured, true)] {
                    // Of its own: a case that failed leaves its connection in whatever state.
                    let mut conn = db.another().await;
                    conn.batch_execute("DELETE FROM job_queue").await.unwrap(); // of the case before
                    let names = ["one", "other"].map(|name| format!("{name}_{}", number.get()));
                    let ids = [user(&mut conn, &names[0]).await, user(&mut conn, &names[1]).await];
                    if is_secured {
                        become_app_role(&mut conn).await;
                    }
                    let users = names.map(ModelUser::new);
                    let batch = Uuid::new_v4();
                    let model = Model { ids, users, jobs: Vec::new(), videos: Vec::new(), batch, now: 0 };
                    run(&mut conn, model, steps.clone(), is_secured).await;
                }
            });
            Ok(())
        })
        .unwrap();
}
