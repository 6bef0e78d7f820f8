//! Opening sessions: against servers that misbehave on order, and (feature `testing`) against a real one.

#[cfg(feature = "testing")]
mod direct;
mod fake;
mod hosts;
#[cfg(feature = "testing")]
mod real;
mod words;

use super::*;

fn connector(url: &str) -> Connector {
    Connector::new(&Config::from_url(url).unwrap()).unwrap()
}

/// Why there is no session.
async fn failure(connector: &Connector) -> ConnectError {
    match connector.connect().await {
        Ok(opened) => panic!("{opened:?}"),
        Err(error) => error,
    }
}
