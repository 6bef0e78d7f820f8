//! Where clients find a proxy, and where it finds the server.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::{fs, io};

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio_postgres::config::Host;

use super::link::{self, Shared, Stream};

/// The socket of this name is what libpq and all others look for in the folder that they take for a host.
const SOCKET: &str = ".s.PGSQL.5432";

/// The server behind a proxy.
#[derive(Clone, Debug)]
pub(super) enum Upstream {
    Tcp(String, u16),
    Unix(PathBuf),
}

/// Where a proxy listens.
#[derive(Debug)]
pub(super) enum Address {
    /// With a socket that holds the port while nobody listens.
    Tcp(SocketAddr, #[expect(dead_code, reason = "held, not read")] Socket),
    /// A folder of its own, removed at the end.
    Unix(PathBuf),
}

#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Proxies run beside the tests, not in their runtimes: a test may block its own, or pause its clock.
pub(super) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Result<Runtime>> = OnceLock::new();
    let build =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("t2m-proxy").enable_all().build();
    RUNTIME.get_or_init(build).as_ref().map_err(|error| Error::new(error.kind(), error.to_string()))
}

impl Upstream {
    /// The first host of a URL. Its parameters are not looked at: some of libpq's are unknown to tokio-postgres.
    pub(super) fn of(url: &str) -> Result<Self> {
        let url = url.split_once('?').map_or(url, |(url, _)| url);
        let config: tokio_postgres::Config = url.parse().map_err(|error| Error::new(ErrorKind::InvalidInput, error))?;
        let port = config.get_ports().first().copied().unwrap_or(5432);
        match config.get_hosts().first() {
            Some(Host::Tcp(name)) => Ok(Self::Tcp(name.clone(), port)),
            Some(Host::Unix(folder)) => Ok(Self::Unix(folder.join(format!(".s.PGSQL.{port}")))),
            None => Err(Error::new(ErrorKind::InvalidInput, "the URL names no host")),
        }
    }

    pub(super) async fn connect(&self) -> Result<Stream> {
        Ok(match self {
            Self::Tcp(name, port) => {
                let stream = TcpStream::connect((name.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

impl Address {
    pub(super) fn tcp() -> Result<Self> {
        let reserved = bound(&SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = reserved.local_addr()?.as_socket().ok_or(ErrorKind::AddrNotAvailable)?;
        Ok(Self::Tcp(address, reserved))
    }

    pub(super) fn unix(folder: PathBuf) -> Self {
        Self::Unix(folder)
    }

    /// What stands in a URL for the host.
    pub(super) fn host(&self) -> String {
        match self {
            Self::Tcp(address, _) => address.to_string(),
            Self::Unix(folder) => super::super::url::encode(&folder.to_string_lossy()),
        }
    }

    /// Must be called in the runtime of the proxies.
    pub(super) fn listen(&self) -> Result<Listener> {
        match self {
            Self::Tcp(address, _) => {
                let socket = bound(address)?;
                socket.listen(1024)?;
                socket.set_nonblocking(true)?;
                Ok(Listener::Tcp(TcpListener::from_std(socket.into())?))
            }
            Self::Unix(folder) => Ok(Listener::Unix(UnixListener::bind(folder.join(SOCKET))?)),
        }
    }

    /// After a Unix socket is closed its name still stands there.
    fn forget(&self) {
        if let Self::Unix(folder) = self {
            let _ = fs::remove_file(folder.join(SOCKET));
        }
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        if let Self::Unix(folder) = self {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

impl Listener {
    async fn accept(&self) -> Result<Stream> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// A socket that has the address; a second one may take it as long as none of them listens.
fn bound(address: &SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&(*address).into())?;
    Ok(socket)
}

/// Takes connections until the proxy is dropped.
pub(super) async fn serve(shared: Shared, address: Address, first: Listener, upstream: Upstream) {
    let mut listener = Some(first);
    loop {
        let state = || shared.subscribe();
        if let Some(open) = listener.take() {
            shared.send_modify(|state| state.listening = true);
            loop {
                let accepted = tokio::select! {
                    biased;
                    _ = async { state().wait_for(|state| state.refusing || state.closed).await.is_ok() } => break,
                    accepted = open.accept() => accepted,
                };
                if let Ok(client) = accepted {
                    take(&shared, client, &upstream);
                }
            }
            drop(open);
            address.forget();
            shared.send_modify(|state| state.listening = false);
        }
        let _ = state().wait_for(|state| !state.refusing || state.closed).await;
        if shared.borrow().closed {
            return;
        }
        match address.listen() {
            Ok(open) => listener = Some(open),
            Err(_) => tokio::task::yield_now().await, // macOS: somebody else has the port
        }
    }
}

fn take(shared: &Shared, client: Stream, upstream: &Upstream) {
    let mut connection = 0;
    shared.send_modify(|state| connection = state.open());
    let (shared, upstream) = (shared.clone(), upstream.clone());
    tokio::spawn(async move {
        let server: io::Result<Stream> = upstream.connect().await;
        match server {
            Ok(server) => link::run(shared, connection, client, server).await,
            // The client sees its connection end, as from a server that is not there.
            Err(_) => shared.send_modify(|state| state.close(connection)),
        }
    });
}
