//! The list of hosts becomes a list of addresses, and a bound for all becomes a bound for each.

use std::fmt;

use tokio::net::lookup_host;
use tokio::time::Instant;

use super::error::{Phase, Problem};
use super::socket::Peer;
use crate::config::{Host, Place};

/// One way to one server.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) place: Place,
    pub(super) peer: Peer,
}

impl Route {
    /// The name that the server's certificate must hold. A unix socket has none, and no TLS.
    pub(super) fn host_name(&self) -> Option<&str> {
        match &self.place.host {
            Host::Tcp { name, .. } => Some(name),
            Host::Unix(_) => None,
        }
    }
}

/// `host:port`, with the address where the name does not say it.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.peer, self.host_name()) {
            (Peer::Tcp(addr), Some(name)) if name != addr.ip().to_string() => {
                write!(f, "{} ({})", self.place, addr.ip())
            }
            _ => write!(f, "{}", self.place),
        }
    }
}

/// Every address of `place`, in the resolver's order.
pub(super) async fn routes(place: &Place, deadline: Instant) -> Result<Vec<Route>, Problem> {
    let port = place.port;
    let to = |peer| Route { place: place.clone(), peer };
    let name = match &place.host {
        Host::Unix(directory) => return Ok(vec![to(Peer::Unix(Place::socket_path(directory, port)))]),
        Host::Tcp { addr: Some(addr), .. } => return Ok(vec![to(Peer::Tcp((*addr, port).into()))]),
        Host::Tcp { name, addr: None } => name,
    };
    let begun = Instant::now();
    let found = match tokio::time::timeout_at(deadline, lookup_host((name.as_str(), port))).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            return Err(Problem::new(Phase::Resolve, error.to_string()).hint("check the host name and the DNS"));
        }
        Err(_) => return Err(Problem::timeout(Phase::Resolve, begun.elapsed())),
    };
    let routes: Vec<_> = found.map(|addr| to(Peer::Tcp(addr))).collect();
    if routes.is_empty() {
        return Err(Problem::new(Phase::Resolve, "the name has no address").hint("check the host name and the DNS"));
    }
    Ok(routes)
}

/// The deadline of the first of `attempts` that have to share the time until `deadline`.
pub(super) fn share(deadline: Instant, attempts: usize) -> Instant {
    let left = deadline.saturating_duration_since(Instant::now());
    let attempts = u32::try_from(attempts.max(1)).unwrap_or(u32::MAX);
    deadline - left.saturating_sub(left / attempts)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_share_the_time_that_is_left() {
        let now = Instant::now();
        let deadline = now + Duration::from_secs(6);
        assert_eq!(share(deadline, 3) - now, Duration::from_secs(2));
        assert_eq!(share(deadline, 1), deadline);
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(share(deadline, 2), deadline, "nothing is left");
    }

    #[tokio::test]
    async fn an_address_is_named_where_the_name_does_not_say_it() {
        let deadline = Instant::now() + Duration::from_secs(5);
        let shown = async |host: Host, port| {
            let routes = routes(&Place { host, port }, deadline).await.unwrap();
            routes[0].to_string()
        };
        let tcp = |name: &str, addr: Option<&str>| Host::Tcp {
            name: name.into(),
            addr: addr.map(|addr| addr.parse().unwrap()),
        };
        assert_eq!(shown(tcp("127.0.0.1", None), 1).await, "127.0.0.1:1");
        assert_eq!(shown(tcp("::1", None), 2).await, "[::1]:2");
        assert_eq!(shown(tcp("db.internal", Some("10.1.2.3")), 3).await, "db.internal:3 (10.1.2.3)");
        assert_eq!(shown(Host::Unix("/run/pg".into()), 4).await, "/run/pg/.s.PGSQL.4");
    }
}
