//! Whose certificates an `https` or `wss` address may show.

use std::{path::Path, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::error::ClientError;

/// One handshake.
const DEADLINE: Duration = Duration::from_secs(5);

/// What a client trusts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trust(Arc<RootCertStore>);

fn unusable(error: impl std::fmt::Display) -> ClientError {
    ClientError::Contract(format!("certificates to trust: {error}"))
}

impl Trust {
    /// Nobody: only plain addresses can be used.
    pub fn nobody() -> Self {
        Self(Arc::new(RootCertStore::empty()))
    }

    /// The authorities, or the very certificates, of a PEM file.
    pub fn in_file(path: &Path) -> Result<Self, ClientError> {
        let text = std::fs::read(path).map_err(|e| unusable(format!("{}: {e}", path.display())))?;
        Self::in_pem(&text)
    }

    /// The same of a PEM text.
    pub fn in_pem(text: &[u8]) -> Result<Self, ClientError> {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(text) {
            roots.add(cert.map_err(unusable)?).map_err(unusable)?;
        }
        if roots.is_empty() {
            return Err(unusable("there is none"));
        }
        Ok(Self(Arc::new(roots)))
    }

    /// TLS for a client that speaks one of `protocols` (ALPN names, the best first).
    pub(super) fn tls(&self, protocols: &[&str]) -> Result<ClientConfig, ClientError> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(self.0.clone())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(config)
    }

    /// The certificate (DER) that the server at `host:port` shows in a new handshake.
    pub async fn shown(&self, address: &str) -> Result<Vec<u8>, ClientError> {
        let unanswered = |error: std::io::Error| ClientError::Unanswered(format!("{address}: {error}"));
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = ServerName::try_from(host.to_owned()).map_err(unusable)?;
        let connector = TlsConnector::from(Arc::new(self.tls(&["http/1.1"])?));
        let shake = async {
            let stream = connector.connect(name, TcpStream::connect(address).await?).await?;
            let certs = stream.get_ref().1.peer_certificates();
            Ok(certs.and_then(<[_]>::first).map(|cert| cert.to_vec()).unwrap_or_default())
        };
        let late = |_| ClientError::Unanswered(format!("{address}: no handshake in time"));
        tokio::time::timeout(DEADLINE, shake).await.map_err(late)?.map_err(unanswered)
    }
}
