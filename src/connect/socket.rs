//! A socket to the server, TCP or unix, and what the kernel is told about it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Keepalive;

/// One address that may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Peer {
    /// What is said to this peer can be read by others on the way.
    pub(super) fn is_across_a_network(&self) -> bool {
        match self {
            Self::Tcp(addr) => !addr.ip().to_canonical().is_loopback(),
            Self::Unix(_) => false,
        }
    }
}

/// When the kernel gives a TCP connection up.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    pub(super) keepalive: Option<Keepalive>,
    pub(super) user_timeout: Option<Duration>,
}

pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(super) async fn open(peer: &Peer, patience: &Patience) -> io::Result<Self> {
        match peer {
            Peer::Tcp(addr) => {
                let stream = TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                patience.apply(&SockRef::from(&stream))?;
                Ok(Self::Tcp(stream))
            }
            Peer::Unix(path) => UnixStream::connect(path).await.map(Self::Unix),
        }
    }
}

impl Patience {
    fn apply(&self, socket: &SockRef<'_>) -> io::Result<()> {
        if let Some(Keepalive { idle, interval, count }) = self.keepalive {
            let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(count);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(timeout) = self.user_timeout {
            socket.set_tcp_user_timeout(Some(timeout))?;
        }
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_unix_sockets_cross_no_network() {
        let crosses = |addr: &str| Peer::Tcp(addr.parse().unwrap()).is_across_a_network();
        assert!(!crosses("127.0.0.1:5432"));
        assert!(!crosses("127.8.9.1:5432"));
        assert!(!crosses("[::1]:5432"));
        assert!(!crosses("[::ffff:127.0.0.1]:5432"));
        assert!(crosses("10.0.0.1:5432"));
        assert!(crosses("[fd00::1]:5432"));
        assert!(!Peer::Unix("/run/postgresql/.s.PGSQL.5432".into()).is_across_a_network());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_kernel_is_told_when_to_give_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let keepalive = Keepalive { idle: Duration::from_secs(7), interval: Duration::from_secs(3), count: 2 };
        let patience = Patience { keepalive: Some(keepalive), user_timeout: Some(Duration::from_millis(1_500)) };
        let socket = Socket::open(&Peer::Tcp(listener.local_addr().unwrap()), &patience).await.unwrap();
        let Socket::Tcp(stream) = socket else { panic!("not TCP") };
        assert!(stream.nodelay().unwrap());
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(3));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 2);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(1_500)));
    }
}
