//! TLS under the connection: both ends show a certificate that the other one's authority has signed.

use crate::{Error, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, ConnectionCommon, DigitallySignedStruct, RootCertStore,
    ServerConfig, ServerConnection, SideData, SignatureScheme, StreamOwned,
};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where keys and certificates are, all as PEM. The defaults are CRIU's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificates of the authorities that are trusted.
    pub authorities: PathBuf,
    /// What these have revoked; the default file need not exist.
    pub revoked: Option<PathBuf>,
    /// Our own certificate, with those between it and the authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Whether the server's certificate may be of another name than that by which it is reached.
    pub any_name: bool,
}

/// Where revocations are looked for when nothing else is said.
const REVOKED: &str = "/etc/pki/CA/cacrl.pem";

impl Default for TlsOptions {
    fn default() -> Self {
        TlsOptions {
            authorities: "/etc/pki/CA/cacert.pem".into(),
            revoked: None,
            certificate: "/etc/pki/criu/cert.pem".into(),
            key: "/etc/pki/criu/private/key.pem".into(),
            any_name: false,
        }
    }
}

/// The end that has connected.
pub(crate) type ClientTls = Tls<ClientConnection>;
/// The end that was connected to.
pub(crate) type ServerTls = Tls<ServerConnection>;

/// A socket with TLS on top.
#[derive(Debug)]
pub(crate) struct Tls<C>(StreamOwned<C, TcpStream>)
where
    C: Sized;

impl<C, S> Tls<C>
where
    C: DerefMut + Deref<Target = ConnectionCommon<S>>,
    S: SideData,
{
    /// With the handshake done.
    fn new(connection: C, socket: TcpStream, peer: &str) -> Result<Self> {
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            let done = stream.conn.complete_io(&mut stream.sock);
            done.map_err(Error::io(peer, "agree with it on TLS"))?;
        }
        Ok(Tls(stream))
    }

    pub(crate) fn has_pending(&mut self) -> bool {
        self.0.conn.process_new_packets().is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
    }

    pub(crate) fn say_end(&mut self) -> io::Result<()> {
        self.0.conn.send_close_notify();
        self.0.flush()
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.0.sock
    }
}

impl<C, S> Read for Tls<C>
where
    C: DerefMut + Deref<Target = ConnectionCommon<S>>,
    S: SideData,
{
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<C, S> Write for Tls<C>
where
    C: DerefMut + Deref<Target = ConnectionCommon<S>>,
    S: SideData,
{
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl TlsOptions {
    /// For the end that connects to `host`; without one, its name is not compared.
    pub(crate) fn client(&self, socket: TcpStream, peer: &str, host: &str) -> Result<ClientTls> {
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots()?.into(), provider.clone())
            .with_crls(self.revocations()?)
            .allow_unknown_revocation_status()
            .build()
            .map_err(|e| unusable(&self.authorities, e))?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(&self.authorities, e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier {
                chain: verifier,
                any_name: self.any_name || host.is_empty(),
            }))
            .with_client_auth_cert(self.certificates()?, self.private_key()?)
            .map_err(|e| unusable(&self.certificate, e))?;
        let host = if host.is_empty() { "page-server" } else { host };
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|e| Error::Address { address: host.to_owned(), problem: e.to_string() })?;
        let connection = ClientConnection::new(Arc::new(config), name).map_err(|e| unusable(&self.certificate, e))?;
        Tls::new(connection, socket, peer)
    }

    /// For the end that was connected to.
    pub(crate) fn server(&self, socket: TcpStream, peer: &str) -> Result<ServerTls> {
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?.into(), provider.clone())
            .with_crls(self.revocations()?)
            .allow_unknown_revocation_status()
            // As CRIU does not: a client that is told of authorities it does not know sends no certificate.
            .clear_root_hint_subjects()
            .build()
            .map_err(|e| unusable(&self.authorities, e))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(&self.authorities, e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.certificates()?, self.private_key()?)
            .map_err(|e| unusable(&self.certificate, e))?;
        // CRIU takes a ticket for an answer that did not come.
        config.send_tls13_tickets = 0;
        let connection = ServerConnection::new(Arc::new(config)).map_err(|e| unusable(&self.certificate, e))?;
        Tls::new(connection, socket, peer)
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.authorities)? {
            roots.add(certificate).map_err(|e| unusable(&self.authorities, e))?;
        }
        Ok(roots)
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        certificates(&self.certificate)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_file(&self.key).map_err(|e| unusable(&self.key, e))
    }

    fn revocations(&self) -> Result<Vec<CertificateRevocationListDer<'static>>> {
        let path = self.revoked.as_deref().unwrap_or(Path::new(REVOKED));
        if self.revoked.is_none() && !path.exists() {
            return Ok(Vec::new());
        }
        let lists = CertificateRevocationListDer::pem_file_iter(path).and_then(Iterator::collect);
        lists.map_err(|e| unusable(path, e))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|e| unusable(path, e))?;
    if all.is_empty() {
        return Err(unusable(path, "there is no certificate in it"));
    }
    Ok(all)
}

fn unusable(path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::Credentials { path: path.to_owned(), problem: format!("cannot be used for TLS: {problem}") }
}

/// Trusts as the web does, but for the name if that is not asked about.
#[derive(Debug)]
struct Verifier {
    chain: Arc<WebPkiServerVerifier>,
    any_name: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The name is looked at last: an error about it says that all else is well.
        match self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.any_name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
