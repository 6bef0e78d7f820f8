//! Runs a command with `DATABASE_URL` naming an empty database of its own, on a private server (or the one that
//! `DATABASE_URL` names already), and removes both afterwards:
//!
//! ```sh
//! cargo run --example with_postgres -- diesel migration run --locked-schema
//! ```

use std::error::Error;
use std::process::{Command, ExitCode};
use std::{env, io};

use t2m_db::testing::Server;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut words = env::args_os().skip(1);
    let program = words.next().ok_or("usage: with_postgres COMMAND [ARGUMENT...]")?;
    let database = Server::shared().await?.empty_database().await?;
    let mut command = Command::new(&program);
    let status = command.args(words).env("DATABASE_URL", database.url()).status();
    let status = status.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
