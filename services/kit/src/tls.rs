//! TLS: between all parts of one ChatCluster, each verified by its CA, and towards clients; certificates are re-read when they change.
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
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName,
    pem::{self, PemObject},
};
use thiserror::Error;

use crate::config::{CertFiles, Tls};

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
    /// A certificate and a key that cannot be presented together.
    #[error("TLS files {cert} and {key}: {problem}")]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong with them.
        problem: PairError,
    },
    /// No usable CA.
    #[error("TLS: client verification: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// A component or cluster name that is no DNS label.
    #[error("TLS: {0} is not a DNS name")]
    Name(String),
}

/// Why a certificate and its key cannot be presented to clients. No message holds a line of either.
#[derive(Debug, Error)]
pub enum PairError {
    /// The certificate.
    #[error("the certificate {0}")]
    Certificate(String),
    /// The key.
    #[error("the key {0}")]
    Key(String),
    /// The key belongs to another certificate.
    #[error("the key is not the certificate's")]
    Mismatch,
    /// A kind of certificate or key that cannot be used.
    #[error("{0}")]
    Unusable(rustls::Error),
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
    let found = CertificateDer::pem_file_iter(path).map_err(|e| problem(wrong_with(&e)))?;
    some_certificates(found).map_err(problem)
}

fn some_certificates(
    found: impl Iterator<Item = Result<CertificateDer<'static>, pem::Error>>,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let certs: Vec<_> = found.collect::<Result<_, _>>().map_err(|e| wrong_with(&e))?;
    if certs.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(certs) }
}

/// What is wrong with a PEM text, without a line of it: a damaged one may show its key.
fn wrong_with(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "holds nothing of the kind".to_owned(),
        _ => "is not sound PEM".to_owned(),
    }
}

fn roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for cert in certificates(path)? {
        store.add(cert)?;
    }
    Ok(Arc::new(store))
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| TlsError::File { path: path.to_owned(), problem: wrong_with(&e) })
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

/// The TLS of a listener for clients, as its files say at the time.
pub type ListenerTls = Arc<Reloading<ServerConfig>>;

/// TLS 1.2 and 1.3 for clients, who bring no certificates. Of `protocols` (ALPN names) the first that the client speaks is chosen. Fails
/// when the files cannot be read or do not go together.
pub fn listener(files: &CertFiles, protocols: &[&str]) -> Result<ListenerTls, TlsError> {
    let protocols: Vec<Vec<u8>> = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let CertFiles { cert, key: key_path } = files.clone();
    let paths = vec![cert.clone(), key_path.clone()];
    let build = move || {
        let mut config = presenting(certificates(&cert)?, key(&key_path)?).map_err(|problem| TlsError::Pair {
            cert: cert.clone(),
            key: key_path.clone(),
            problem,
        })?;
        config.alpn_protocols.clone_from(&protocols);
        Ok(config)
    };
    Ok(Arc::new(Reloading::of(paths, build)?))
}

/// Whether a listener for clients could present this certificate (PEM, with its chain) with this key (PEM).
pub fn examine(cert: &[u8], key: &[u8]) -> Result<(), PairError> {
    let chain = some_certificates(CertificateDer::pem_slice_iter(cert)).map_err(PairError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| PairError::Key(wrong_with(&e)))?;
    presenting(chain, key).map(drop)
}

/// One certificate for whatever name a client asks: whether it is the right one is for the client to say.
fn presenting(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<ServerConfig, PairError> {
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => PairError::Mismatch,
            other => PairError::Unusable(other),
        })
}

/// How a configuration is made from its files.
type Build<C> = Box<dyn Fn() -> Result<C, TlsError> + Send + Sync>;

/// When each file was changed last; none for one that is not there.
type Stamp = Vec<Option<SystemTime>>;

/// A configuration built from files and built again when they change; a change that does not load keeps the old one, is logged and counted.
pub struct Reloading<C> {
    paths: Vec<PathBuf>,
    build: Build<C>,
    state: Mutex<State<C>>,
}

struct State<C> {
    current: Arc<C>,
    stamp: Stamp,
    checked: std::time::Instant,
}

impl<C> Reloading<C> {
    /// Loads now; fails when that fails.
    pub fn new(
        files: Tls,
        build: impl Fn(&Tls) -> Result<C, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let paths = vec![files.ca.clone(), files.cert.clone(), files.key.clone()];
        Self::of(paths, move || build(&files))
    }

    fn of(
        paths: Vec<PathBuf>,
        build: impl Fn() -> Result<C, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let stamp = stamp(&paths);
        let current = Arc::new(build()?);
        let state = Mutex::new(State { current, stamp, checked: std::time::Instant::now() });
        Ok(Self { paths, build: Box::new(build), state })
    }

    /// The configuration for the next handshake. Looks at the files at most every ten seconds.
    pub fn get(&self) -> Arc<C> {
        let mut state = self.state.lock();
        if state.checked.elapsed() >= RELOAD_CHECK {
            state.checked = std::time::Instant::now();
            let stamp = stamp(&self.paths);
            if stamp != state.stamp {
                match (self.build)() {
                    Ok(fresh) => {
                        state.current = Arc::new(fresh);
                        state.stamp = stamp;
                        tracing::info!("certificate reloaded");
                    }
                    Err(error) => {
                        metrics::counter!("kith_certificate_reload_failures_total").increment(1);
                        tracing::error!(%error, "certificate files changed but do not load; keeping the old ones");
                    }
                }
            }
        }
        state.current.clone()
    }
}

fn stamp(paths: &[PathBuf]) -> Stamp {
    paths.iter().map(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    struct Site {
        dir: tempfile::TempDir,
        writes: u64,
    }

    impl Site {
        fn new() -> Self {
            let mut site = Self { dir: tempfile::tempdir().unwrap(), writes: 0 };
            let (cert, key) = pair();
            site.write(&cert, &key);
            site
        }

        fn files(&self) -> CertFiles {
            CertFiles { cert: self.dir.path().join("tls.crt"), key: self.dir.path().join("tls.key") }
        }

        /// Writes both files; each time is later than the one before, however coarse the clock is.
        fn write(&mut self, cert: &str, key: &str) {
            self.writes += 1;
            let CertFiles { cert: cert_path, key: key_path } = self.files();
            for (path, text) in [(cert_path, cert), (key_path, key)] {
                fs::write(&path, text).unwrap();
                let file = File::options().write(true).open(&path).unwrap();
                file.set_modified(SystemTime::now() + Duration::from_secs(self.writes)).unwrap();
            }
        }
    }

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    /// As after ten seconds.
    fn look_again(listener: &ListenerTls) -> Arc<ServerConfig> {
        let mut state = listener.state.lock();
        state.checked = state.checked.checked_sub(RELOAD_CHECK).unwrap();
        drop(state);
        listener.get()
    }

    #[test]
    fn a_renewed_certificate_is_taken_and_one_that_cannot_be_used_is_not() {
        let mut site = Site::new();
        let listener = listener(&site.files(), &["http/1.1"]).unwrap();
        let first = listener.get();
        assert_eq!(first.alpn_protocols, [b"http/1.1".to_vec()]);
        let (cert, key) = pair();
        site.write(&cert, &key);
        assert!(Arc::ptr_eq(&first, &listener.get()), "the files are not looked at with every connection");
        let second = look_again(&listener);
        assert!(!Arc::ptr_eq(&first, &second));
        for (cert, key) in [("", key.as_str()), (cert.as_str(), "junk"), (cert.as_str(), pair().1.as_str())] {
            site.write(cert, key);
            assert!(Arc::ptr_eq(&second, &look_again(&listener)), "the old one stays in use");
        }
        fs::remove_file(site.files().key).unwrap();
        assert!(Arc::ptr_eq(&second, &look_again(&listener)));
        site.write(&cert, &key);
        assert!(!Arc::ptr_eq(&second, &look_again(&listener)), "and a sound one is taken again");
    }

    #[test]
    fn what_is_wrong_with_the_files_of_a_listener_is_said_with_their_names_and_without_their_content() {
        let mut site = Site::new();
        let (cert, key) = pair();
        let flat = key.replace('\n', "");
        for (cert, key, named, words) in [
            ("", key.as_str(), "tls.crt", "holds no certificate"),
            (cert.as_str(), "", "tls.key", "holds nothing of the kind"),
            (cert.as_str(), flat.as_str(), "tls.key", "tls.key"),
            (cert.as_str(), pair().1.as_str(), "tls.key", "the key is not the certificate's"),
        ] {
            site.write(cert, key);
            let error = listener(&site.files(), &[]).err().unwrap().to_string();
            assert!(error.contains(named) && error.contains(words), "{error}");
            assert!(!error.contains("PRIVATE") && !error.contains("45, 45, 45"), "{error}");
        }
        fs::remove_file(site.files().cert).unwrap();
        let error = listener(&site.files(), &[]).err().unwrap().to_string();
        assert!(error.contains("tls.crt") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn a_pair_is_judged_before_it_is_presented() {
        let ((cert, key), (_, other)) = (pair(), pair());
        examine(cert.as_bytes(), key.as_bytes()).unwrap();
        assert!(matches!(examine(cert.as_bytes(), other.as_bytes()), Err(PairError::Mismatch)));
        assert!(matches!(examine(b"", key.as_bytes()), Err(PairError::Certificate(_))));
        assert!(matches!(examine(cert.as_bytes(), b"\xff"), Err(PairError::Key(_))));
    }
}
