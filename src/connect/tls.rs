//! TLS by rustls with ring: certificates and keys are loaded once, sessions are negotiated as libpq does.
//!
//! | `sslmode` | encrypted | issuer | name |
//! |---|---|---|---|
//! | `disable` | no | | |
//! | `prefer` | when the server can | only with `sslrootcert` | no |
//! | `require` | yes | only with `sslrootcert` | no |
//! | `verify-ca` | yes | yes | no |
//! | `verify-full` | yes | yes | yes |
//!
//! Over a unix socket none of it applies, as for libpq.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{Phase, Problem};
use super::socket::Socket;
use super::transport::Transport;
use super::verdict;
use super::verify::Lenient;
use crate::config::{RootCert, SslMode, Target, Trust};
use crate::{Error, Result};

/// `SSLRequest`: length 8, code 80877103 (manual, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The protocol's name in ALPN, which a server that is spoken to in TLS from the first byte insists on.
const ALPN: &[u8] = b"postgresql";

/// What it takes to encrypt a session.
pub(super) struct Tls {
    pub(super) mode: SslMode,
    direct: bool,
    /// `None` with `sslmode=disable`.
    connector: Option<MakeRustlsConnect>,
}

/// The server's answer to a request for TLS.
pub(super) enum Answer {
    Encrypted(Transport),
    /// It cannot; the socket is as good as before.
    Unable(Socket),
}

impl Tls {
    /// Reads the files that `target` names.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming the parameter and the file.
    pub(super) fn load(target: &Target) -> Result<Self> {
        let mode = target.trust.mode();
        let connector = match mode {
            SslMode::Disable => None,
            _ => Some(MakeRustlsConnect::new(client_config(&target.trust, target.direct_tls)?)),
        };
        Ok(Self { mode, direct: target.direct_tls, connector })
    }

    /// Encrypts `socket`, or tells why not. `host` is the name that the certificate is checked against.
    pub(super) async fn negotiate(&self, mut socket: Socket, host: &str) -> Result<Answer, Problem> {
        let Some(mut connector) = self.connector.clone() else {
            return Ok(Answer::Unable(socket));
        };
        if !self.direct && !ask(&mut socket).await? {
            if self.mode >= SslMode::Require {
                let said = format!("the server does not support TLS but sslmode={}", self.mode);
                let hint = "set ssl = on at the server, or sslmode=disable where the network is trusted";
                return Err(Problem::new(Phase::Tls, said).hint(hint).fatal());
            }
            return Ok(Answer::Unable(socket));
        }
        let connect = match MakeTlsConnect::<Socket>::make_tls_connect(&mut connector, host) {
            Ok(connect) => connect,
            Err(never) => match never {},
        };
        // Bytes that someone on the way put after the server's `S` would be taken for the handshake, and fail it
        // (CVE-2021-23222): only one byte was read.
        match connect.connect(socket).await {
            Ok(stream) => Ok(Answer::Encrypted(Transport::Tls(Box::new(stream)))),
            Err(error) => Err(verdict::of_handshake(&error)),
        }
    }
}

/// Whether the server is ready for a TLS handshake.
pub(super) async fn ask(socket: &mut Socket) -> Result<bool, Problem> {
    let asked = async {
        socket.write_all(&SSL_REQUEST).await?;
        socket.read_u8().await
    };
    match asked.await {
        Ok(b'S') => Ok(true),
        Ok(b'N') => Ok(false),
        Ok(b'E') => Err(Problem::new(Phase::Tls, "the server answered the request for TLS with an error")
            .hint("its log has the error; mostly it was out of processes or memory")),
        Ok(_) => {
            let hint = "is that port PostgreSQL's?";
            Err(Problem::new(Phase::Tls, "what answers there does not speak PostgreSQL's protocol").hint(hint).fatal())
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(Problem::new(Phase::Tls, "the server closed the connection when asked for TLS"))
        }
        Err(error) => Err(Problem::new(Phase::Tls, error.to_string())),
    }
}

fn client_config(trust: &Trust, direct: bool) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| cannot("sslmode", trust.mode().to_string(), format!("TLS as rustls has it: {error}")))?
        .dangerous() // not rustls's own choice: each sslmode has its verifier
        .with_custom_certificate_verifier(verifier(trust, &provider)?);
    let mut config = match (&trust.cert, &trust.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates("sslcert", cert)?;
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("sslkey", key, &error))?;
            builder.with_client_auth_cert(chain, key_der).map_err(|error| {
                cannot("sslkey", key.display().to_string(), format!("the key of the certificate in sslcert: {error}"))
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    if direct {
        config.alpn_protocols = vec![ALPN.to_vec()];
    }
    Ok(config)
}

fn verifier(trust: &Trust, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>> {
    let Some(roots) = &trust.roots else {
        return Ok(Lenient::any(provider));
    };
    let store = root_store(roots)?;
    if trust.mode() < SslMode::VerifyFull {
        return Ok(Lenient::issued_by(store, provider));
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider)).build();
    let verifier = verifier.map_err(|error| cannot("sslrootcert", shown(roots), format!("usable roots: {error}")))?;
    Ok(verifier)
}

fn root_store(roots: &RootCert) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    match roots {
        RootCert::File(file) => {
            for certificate in certificates("sslrootcert", file)? {
                store.add(certificate).map_err(|error| {
                    cannot("sslrootcert", shown(roots), format!("a file of X.509 version 3 certificates: {error}"))
                })?;
            }
        }
        RootCert::System => {
            let found = rustls_native_certs::load_native_certs();
            // A store holds hundreds; one that rustls cannot read is none of our business.
            let (added, _) = store.add_parsable_certificates(found.certs);
            if added == 0 {
                let why = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
                return Err(cannot(
                    "sslrootcert",
                    shown(roots),
                    format!("a PEM file, as this system has no roots{why}"),
                ));
            }
        }
    }
    Ok(store)
}

fn certificates(setting: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let read = read.map_err(|error| unreadable(setting, file, &error))?;
    if read.is_empty() {
        return Err(unreadable(setting, file, &pem::Error::NoItemsFound));
    }
    Ok(read)
}

fn unreadable(setting: &'static str, file: &Path, error: &pem::Error) -> Error {
    let what = if setting == "sslkey" { "an unencrypted private key" } else { "a certificate" };
    let why = match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "it has none".to_owned(),
        _ => "it is not valid PEM".to_owned(), // the error could quote the key
    };
    cannot(setting, file.display().to_string(), format!("a PEM file with {what}: {why}"))
}

fn shown(roots: &RootCert) -> String {
    match roots {
        RootCert::File(file) => file.display().to_string(),
        RootCert::System => "system".to_owned(),
    }
}

fn cannot(setting: &'static str, value: String, allowed: String) -> Error {
    Error::Config { setting: setting.into(), value, allowed: allowed.into() }
}
