//! `sslnegotiation=direct`: TLS from the first byte, as PostgreSQL takes it since version 17.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::fake::{Mood, answer};
use super::*;

/// The first byte of a TLS handshake.
const HANDSHAKE: u8 = 0x16;

/// Speaks TLS at once; tells the first byte that came and the protocol that was agreed on.
fn serve(listener: &TcpListener) -> (u8, Option<Vec<u8>>) {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let mut config = config.with_single_cert(vec![own.cert.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    let (stream, _) = listener.accept().unwrap();
    let mut first = [0];
    stream.peek(&mut first).unwrap();
    let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), stream);
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
    stream.read_exact(&mut startup).unwrap();
    stream.write_all(&answer(Mood::Primary)).unwrap();
    stream.flush().unwrap();
    let _ = stream.read_to_end(&mut Vec::new()); // until the client is gone
    (first[0], stream.conn.alpn_protocol().map(<[u8]>::to_vec))
}

#[tokio::test]
async fn a_direct_session_begins_with_the_handshake_and_names_its_protocol() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || serve(&listener));
    let url = format!("postgres://app@localhost:{port}/t2m?hostaddr=127.0.0.1&sslmode=require&sslnegotiation=direct");
    let opened = connector(&url).connect().await.unwrap();
    drop(opened);
    let seen = tokio::task::spawn_blocking(|| server.join().unwrap()).await.unwrap();
    assert_eq!(seen, (HANDSHAKE, Some(b"postgresql".to_vec())));
}
