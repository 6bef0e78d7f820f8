//! What an error of the login means: its phase, its words, what to look at, and whether trying again can help.
//!
//! Next to `error::classify` the only place that reads SQLSTATEs or the text of an error: that one judges running sessions,
//! this one those that never ran.

use std::error::Error;
use std::io;

use rustls::{CertificateError, Error as TlsError};
use tokio_postgres::error::{DbError, SqlState};

use super::error::{Phase, Problem};
use super::socket::Peer;

/// The socket could not be connected.
pub(super) fn of_socket(error: &io::Error, peer: &Peer) -> Problem {
    let problem = Problem::new(Phase::Connect, error.to_string());
    match (error.kind(), peer) {
        (io::ErrorKind::ConnectionRefused, Peer::Tcp(_)) => {
            problem.hint("is PostgreSQL running there, and do listen_addresses and port fit?")
        }
        (io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound, Peer::Unix(_)) => {
            problem.hint("is PostgreSQL running here, and does unix_socket_directories hold this one?")
        }
        (io::ErrorKind::PermissionDenied, Peer::Unix(_)) => {
            problem.hint("may this process's user use the socket's directory?").fatal()
        }
        (io::ErrorKind::InvalidInput, _) => problem.fatal(),
        _ => problem,
    }
}

/// The TLS handshake failed.
pub(super) fn of_handshake(error: &io::Error) -> Problem {
    if let Some(problem) = of_tls(error) {
        return problem;
    }
    match error.kind() {
        io::ErrorKind::InvalidInput => {
            let detail = "the host is neither a DNS name nor an address, and TLS needs one";
            Problem::new(Phase::Tls, detail).hint("use the name that the server's certificate has").fatal()
        }
        io::ErrorKind::UnexpectedEof => Problem::new(Phase::Tls, "the server closed the connection in the handshake"),
        _ => Problem::new(Phase::Tls, error.to_string()),
    }
}

/// rustls's own error somewhere below `error`: at the latest the server's verdict on a client certificate, which with TLS
/// 1.3 comes after the handshake.
fn of_tls(error: &(dyn Error + 'static)) -> Option<Problem> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(tls) = inner.and_then(|inner| inner.downcast_ref()).or(error.downcast_ref::<TlsError>()) {
            return Some(of_rustls(tls));
        }
        next = error.source();
    }
    None
}

fn of_rustls(error: &TlsError) -> Problem {
    let (detail, hint) = match error {
        TlsError::InvalidCertificate(error) => of_certificate(error),
        TlsError::AlertReceived(alert) => (
            format!("the server broke the handshake off ({alert:?})"),
            "if it asks for a client certificate: sslcert and sslkey, issued by a CA that it knows (ssl_ca_file)",
        ),
        TlsError::InvalidMessage(_) => {
            (format!("no TLS handshake came back ({error})"), "is there a proxy on the way, or sslnegotiation=direct?")
        }
        _ => (error.to_string(), "see ssl_min_protocol_version and ssl_ciphers at the server"),
    };
    Problem::new(Phase::Tls, detail).hint(hint).fatal()
}

fn of_certificate(error: &CertificateError) -> (String, &'static str) {
    match error {
        CertificateError::UnknownIssuer => (
            "the server's certificate is not issued by a CA of sslrootcert".into(),
            "is sslrootcert the CA of this server, and does the server send its intermediate certificates?",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let detail = match error {
                CertificateError::NotValidForNameContext { expected, presented } => format!(
                    "the server's certificate is not for the name {} but for {}",
                    expected.to_str(),
                    if presented.is_empty() { "none".to_owned() } else { presented.join(", ") }
                ),
                _ => "the server's certificate is for another name".to_owned(),
            };
            (detail, "connect by a name that the certificate has as subjectAltName, or use sslmode=verify-ca")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            "the server's certificate has expired".into(),
            "renew it, then reload the server; or is this machine's clock wrong?",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("the server's certificate is not valid yet".into(), "is this machine's clock wrong?")
        }
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => (
            "the server uses a CA's certificate as its own".into(),
            "issue it a certificate by that CA (basicConstraints CA:FALSE), and give the CA as sslrootcert",
        ),
        other => (format!("the server's certificate is not valid: {other}"), "see the certificate in ssl_cert_file"),
    }
}

/// tokio-postgres gave the login up.
pub(super) fn of_login(error: &tokio_postgres::Error) -> Problem {
    if let Some(refusal) = error.as_db_error() {
        return of_refusal(refusal);
    }
    if let Some(problem) = of_tls(error) {
        return problem;
    }
    if error.is_closed() {
        return Problem::new(Phase::Startup, "the server closed the connection").hint("the server's log says why");
    }
    let detail = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    // The kinds are private; these two names of them are not secret.
    match error.to_string().as_str() {
        "invalid configuration" if detail == "password missing" => {
            let detail = "the server asks for a password and there is none";
            Problem::new(Phase::Authenticate, detail).hint("put one into the URL, or set password_provider").fatal()
        }
        "authentication error" if detail == "server did not use channel binding" => {
            let detail = "the server did not use channel binding but channel_binding=require";
            let hint = "it needs TLS, scram-sha-256 and a certificate signed with RSA or ECDSA";
            Problem::new(Phase::Authenticate, detail).hint(hint).fatal()
        }
        "authentication error" | "invalid configuration" => Problem::new(Phase::Authenticate, detail).fatal(),
        _ => Problem::new(Phase::Startup, detail),
    }
}

/// The server said no.
fn of_refusal(refusal: &DbError) -> Problem {
    let code = refusal.code();
    let phase = if code.code().starts_with("28") { Phase::Authenticate } else { Phase::Startup };
    let mut problem = Problem::new(phase, refusal.message());
    problem.sqlstate = Some(code.code().to_owned());
    let (hint, fatal) = match *code {
        SqlState::INVALID_PASSWORD => (Some("is the password right, and for this user and server?"), true),
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            (Some("does the role exist, and does pg_hba.conf let it in from here?"), true)
        }
        SqlState::INVALID_CATALOG_NAME => (Some("create the database, or correct its name in the URL"), true),
        SqlState::INSUFFICIENT_PRIVILEGE => (Some("may the role CONNECT to that database?"), true),
        SqlState::UNDEFINED_OBJECT | SqlState::INVALID_PARAMETER_VALUE | SqlState::CANT_CHANGE_RUNTIME_PARAM => {
            (Some("see `options` in the URL, and client_connection_check_interval (off for a Windows server)"), true)
        }
        SqlState::TOO_MANY_CONNECTIONS => {
            (Some("pg_stat_activity says who holds the connections; the limit is the server's or the role's"), false)
        }
        SqlState::CANNOT_CONNECT_NOW => (Some("the server is starting or stopping"), false),
        SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN => (Some("the server is stopping"), false),
        _ => (refusal.hint().map(|_| "the server's log has more"), false),
    };
    problem.hint = hint;
    problem.fatal = fatal;
    problem
}

/// Under `prefer`: an answer to an encrypted attempt that a plain one might not get. Nothing secret was said before it.
pub(super) fn is_about_encryption(problem: &Problem) -> bool {
    let by_address = SqlState::INVALID_AUTHORIZATION_SPECIFICATION;
    problem.phase == Phase::Tls || problem.sqlstate.as_deref() == Some(by_address.code())
}
