//! A ChatCluster's CA and certificates in a temporary folder, with the names that the operator gives them.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use tempfile::TempDir;

use super::TestError;
use kith_kit::config::Tls;

/// A CA for tests.
pub struct Pki {
    cluster: String,
    uid: String,
    issuer: Issuer<'static, KeyPair>,
    ca: String,
    dir: TempDir,
}

impl Pki {
    /// The CA of the ChatCluster `cluster` with the UID `uid`.
    pub fn new(cluster: &str, uid: &str) -> Result<Self, TestError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, format!("{cluster} CA"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = params.self_signed(&key)?.pem();
        let dir = TempDir::with_prefix("kith-pki-").map_err(TestError::io("temporary folder"))?;
        Ok(Self { cluster: cluster.to_owned(), uid: uid.to_owned(), issuer: Issuer::new(params, key), ca, dir })
    }

    /// The files of a component's certificate.
    pub fn service(&self, component: &str) -> Result<Tls, TestError> {
        let uri = format!("kith://{}/service/{component}", self.uid);
        let names = vec![format!("{component}.{}.kith.internal", self.cluster), "localhost".to_owned()];
        self.issue(component, names, uri)
    }

    /// The files of a business line's client certificate.
    pub fn line(&self, line: &str) -> Result<Tls, TestError> {
        self.issue(&format!("line-{line}"), Vec::new(), format!("kith://{}/line/{line}", self.uid))
    }

    fn issue(&self, folder: &str, names: Vec<String>, uri: String) -> Result<Tls, TestError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, folder);
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer)?;
        let dir = self.dir.path().join(folder);
        std::fs::create_dir_all(&dir).map_err(TestError::io(dir.display().to_string()))?;
        let tls = Tls::in_dir(dir);
        for (path, text) in [(&tls.ca, &self.ca), (&tls.cert, &cert.pem()), (&tls.key, &key.serialize_pem())] {
            std::fs::write(path, text).map_err(TestError::io(path.display().to_string()))?;
        }
        Ok(tls)
    }
}
