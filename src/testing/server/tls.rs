//! Certificates for a private server, good ones and those that a client has to refuse.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use super::account::Account;
use crate::testing::error::{Error, Result};

/// What the server's certificate is like, and what it asks of its clients.
///
/// Without a word the certificate is good: for `localhost` and 127.0.0.1, signed by the CA in
/// [`CertificateFiles::authority`].
#[derive(Clone, Debug, Default)]
pub struct Tls {
    flaw: Option<Flaw>,
    client_certificates: bool,
}

#[derive(Clone, Copy, Debug)]
enum Flaw {
    WrongName,
    Expired,
    UnknownIssuer,
}

/// The files that a client needs, in PEM; removed with the server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CertificateFiles {
    /// The CA that a client is told to trust (`sslrootcert`).
    pub authority: PathBuf,
    /// A certificate that the server accepts (`sslcert`), for the role `postgres`.
    pub client_certificate: PathBuf,
    /// The key of that certificate (`sslkey`), PKCS #8.
    pub client_key: PathBuf,
}

impl Tls {
    /// A certificate that every client should accept.
    pub fn good() -> Self {
        Self::default()
    }

    /// A certificate for another host: `verify-full` has to refuse it, `verify-ca` has to accept it.
    pub fn wrong_name() -> Self {
        Self { flaw: Some(Flaw::WrongName), ..Self::default() }
    }

    /// A certificate that ended in 2021.
    pub fn expired() -> Self {
        Self { flaw: Some(Flaw::Expired), ..Self::default() }
    }

    /// A certificate signed by somebody else than the CA that clients are told to trust.
    pub fn unknown_issuer() -> Self {
        Self { flaw: Some(Flaw::UnknownIssuer), ..Self::default() }
    }

    /// Clients have to show a certificate of their own.
    #[must_use]
    pub fn with_client_certificates(mut self) -> Self {
        self.client_certificates = true;
        self
    }

    pub(super) fn asks_for_client_certificates(&self) -> bool {
        self.client_certificates
    }

    pub(super) fn settings() -> impl Iterator<Item = (String, String)> {
        [("ssl", "on"), ("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key"), ("ssl_ca_file", "ca.crt")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
    }

    /// Writes the server's files into `data`, and what clients need into `directory`.
    pub(super) fn write(&self, data: &Path, directory: &Path, account: &Account) -> Result<CertificateFiles> {
        let (authority_pem, authority) = authority("t2m-db test CA")?;
        let stranger = authority_of_a_stranger(self.flaw)?;
        let names: &[&str] = match self.flaw {
            Some(Flaw::WrongName) => &["elsewhere.example"],
            _ => &["localhost", "127.0.0.1"],
        };
        let mut server = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        server.distinguished_name.push(DnType::CommonName, names[0]);
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let until = if matches!(self.flaw, Some(Flaw::Expired)) { 2021 } else { 2100 };
        (server.not_before, server.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(until, 1, 1));
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, stranger.as_ref().unwrap_or(&authority))?;
        let keep = |path: PathBuf, pem: &str| -> Result<PathBuf> {
            fs::write(&path, pem).map_err(Error::io("write", &path))?;
            // A server, and libpq, refuse a key that others may read.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(Error::io("protect", &path))?;
            Ok(path)
        };
        for (name, pem) in [
            ("server.crt", certificate.pem()),
            ("server.key", key.serialize_pem()),
            ("ca.crt", authority_pem.clone()), // signs the clients, whoever signed the server
        ] {
            account.own(&keep(data.join(name), &pem)?)?;
        }

        let mut client = CertificateParams::new(Vec::new())?;
        client.distinguished_name.push(DnType::CommonName, "postgres");
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let client_key = KeyPair::generate()?;
        let client_certificate = client.signed_by(&client_key, &authority)?;
        Ok(CertificateFiles {
            authority: keep(directory.join("ca.crt"), &authority_pem)?,
            client_certificate: keep(directory.join("client.crt"), &client_certificate.pem())?,
            client_key: keep(directory.join("client.key"), &client_key.serialize_pem())?,
        })
    }
}

fn authority(name: &str) -> Result<(String, Issuer<'static, KeyPair>)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), Issuer::new(params, key)))
}

fn authority_of_a_stranger(flaw: Option<Flaw>) -> Result<Option<Issuer<'static, KeyPair>>> {
    let signs = matches!(flaw, Some(Flaw::UnknownIssuer));
    signs.then(|| authority("somebody else's CA").map(|(_, issuer)| issuer)).transpose()
}
