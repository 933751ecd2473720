//! mTLS between all parts of one ChatCluster: certificates re-read when they change, peers verified by the ChatCluster's CA.
//!
//! Pods are dialled by address; what is verified is the component's name `<component>.<cluster>.kith.internal`, which every service
//! certificate carries. Who a peer is stands in its URI: `kith://<cluster uid>/service/<component>` or `…/line/<line>`.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::CryptoProvider, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use thiserror::Error;

use crate::config::Tls;

/// How long loaded files are trusted before their times are looked at again.
const RELOAD_CHECK: Duration = Duration::from_secs(10);

/// Why TLS could not be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file is missing or not PEM.
    #[error("TLS file {path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The files do not go together.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// No usable CA.
    #[error("TLS: client verification: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// A component or cluster name that is no DNS label.
    #[error("TLS: {0} is not a DNS name")]
    Name(String),
}

/// The name that a component's certificate carries and its clients verify.
pub fn server_name(component: &str, cluster: &str) -> Result<ServerName<'static>, TlsError> {
    let name = format!("{component}.{cluster}.kith.internal");
    ServerName::try_from(name.clone()).map_err(|_| TlsError::Name(name))
}

/// Which clients a server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCerts {
    /// A certificate of the ChatCluster's CA, or no connection.
    Required,
    /// A certificate is verified when it is given; callers without one authenticate otherwise.
    Optional,
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

/// Makes ring the process's default, for libraries that ask for one. Idempotent.
pub fn install_provider() {
    // Err means that one is installed already, which is what is wanted.
    drop(rustls::crypto::ring::default_provider().install_default());
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let problem = |problem: String| TlsError::File { path: path.to_owned(), problem };
    let certs: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|e| problem(e.to_string()))?
        .collect::<Result<_, _>>()
        .map_err(|e| problem(e.to_string()))?;
    if certs.is_empty() { Err(problem("holds no certificate".to_owned())) } else { Ok(certs) }
}

fn roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for cert in certificates(path)? {
        store.add(cert)?;
    }
    Ok(Arc::new(store))
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| TlsError::File { path: path.to_owned(), problem: e.to_string() })
}

/// The client side, once.
pub fn client_config(files: &Tls) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(&files.ca)?)
        .with_client_auth_cert(certificates(&files.cert)?, key(&files.key)?)?;
    config.enable_sni = true;
    Ok(config)
}

/// The server side, once.
pub fn server_config(files: &Tls, clients: ClientCerts) -> Result<ServerConfig, TlsError> {
    let mut verifier = WebPkiClientVerifier::builder_with_provider(roots(&files.ca)?, provider());
    if clients == ClientCerts::Optional {
        verifier = verifier.allow_unauthenticated();
    }
    Ok(ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier.build()?)
        .with_single_cert(certificates(&files.cert)?, key(&files.key)?)?)
}

/// How a configuration is made from its files.
type Build<C> = Box<dyn Fn(&Tls) -> Result<C, TlsError> + Send + Sync>;

/// A configuration built from files and built again when they change; a change that does not load keeps the old one and is logged.
pub struct Reloading<C> {
    files: Tls,
    build: Build<C>,
    state: Mutex<State<C>>,
}

struct State<C> {
    current: Arc<C>,
    stamp: Option<SystemTime>,
    checked: std::time::Instant,
}

impl<C> Reloading<C> {
    /// Loads now; fails when that fails.
    pub fn new(
        files: Tls,
        build: impl Fn(&Tls) -> Result<C, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let stamp = newest(&files);
        let current = Arc::new(build(&files)?);
        let state = Mutex::new(State { current, stamp, checked: std::time::Instant::now() });
        Ok(Self { files, build: Box::new(build), state })
    }

    /// The configuration for the next handshake. Looks at the files at most every ten seconds.
    pub fn get(&self) -> Arc<C> {
        let mut state = self.state.lock();
        if state.checked.elapsed() >= RELOAD_CHECK {
            state.checked = std::time::Instant::now();
            let stamp = newest(&self.files);
            if stamp != state.stamp {
                match (self.build)(&self.files) {
                    Ok(fresh) => {
                        state.current = Arc::new(fresh);
                        state.stamp = stamp;
                        tracing::info!("certificate reloaded");
                    }
                    Err(error) => {
                        tracing::error!(%error, "certificate files changed but do not load; keeping the old ones");
                    }
                }
            }
        }
        state.current.clone()
    }
}

fn newest(files: &Tls) -> Option<SystemTime> {
    [&files.ca, &files.cert, &files.key]
        .iter()
        .filter_map(|p| std::fs::metadata(p).and_then(|m| m.modified()).ok())
        .max()
}
