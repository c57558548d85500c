//! What a listener with TLS shows.
//!
//! Arrives: certificate and key files in PEM. Leaves: what a handshake needs, which may be read again while the
//! listener listens.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}")]
pub struct TlsError {
    path: PathBuf,
    what: String,
}

/// What a listener shows to those who come: it may be read again while it listens.
#[derive(Debug, Clone)]
pub struct Shown(Arc<RwLock<Arc<ServerConfig>>>);

impl Shown {
    /// This, from the start.
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Shown(Arc::new(RwLock::new(config)))
    }

    /// This, from now on; connections that are there stay.
    pub fn set(&self, config: Arc<ServerConfig>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// What is shown now.
    pub fn now(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether clients are asked for a certificate.
#[derive(Debug, Clone, Copy)]
pub enum Clients<'a> {
    /// No.
    Anybody,
    /// Whoever has one that these sign may show it.
    May(&'a Path),
    /// Whoever has none that these sign does not come in.
    Must(&'a Path),
}

/// What a server with this certificate and key needs.
pub fn server(
    certificate: &Path,
    key: &Path,
    clients: Clients<'_>,
    protocol: &[u8],
) -> Result<Arc<ServerConfig>, TlsError> {
    let wrong = |path: &Path, what: String| TlsError { path: path.to_owned(), what };
    let certificates = |path: &Path| {
        let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        all.map_err(|e| wrong(path, format!("no certificates in PEM: {e}")))
    };
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, format!("no private key in PEM: {e}")))?;
    let builder = match clients {
        Clients::Anybody => ServerConfig::builder().with_no_client_auth(),
        Clients::May(path) | Clients::Must(path) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates(path)?);
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots));
            let verifier = if matches!(clients, Clients::May(_)) { verifier.allow_unauthenticated() } else { verifier };
            let verifier = verifier.build().map_err(|e| wrong(path, e.to_string()))?;
            ServerConfig::builder().with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, private)
        .map_err(|e| wrong(certificate, format!("cannot be used with {}: {e}", key.display())))?;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}
