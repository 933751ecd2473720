//! The ChatCluster's certificate authority and the certificates it signs.

use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::PkiError;

const DAY_S: i64 = 86_400;
/// The CA outlives every cluster that is upgraded at all.
const AUTHORITY_S: i64 = 3_650 * DAY_S;
/// Certificates of services; renewed after two thirds.
pub(super) const LEAF_S: i64 = 90 * DAY_S;
/// An authority is followed by another so long before its end: people who hand its certificate out by hand need time.
const NEAR_END_S: i64 = 730 * DAY_S;
/// Certificates begin this long before they are made: the clocks of nodes differ.
const BACKDATE_S: i64 = 3_600;
/// X.509's bound, in characters.
const LONGEST_COMMON_NAME: usize = 64;
/// The organisational unit of business lines' certificates.
pub const LINES: &str = "line";

/// A certificate authority with its key.
pub struct Authority {
    /// Its certificate.
    pub cert_pem: String,
    /// Its key, PKCS#8. Only the operator ever sees it.
    pub key_pem: String,
    issuer: Issuer<'static, KeyPair>,
    key_id: Vec<u8>,
    not_after: i64,
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The certificate.
    pub cert_pem: String,
    /// Its key, PKCS#8.
    pub key_pem: String,
}

/// What a certificate should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafRequest {
    /// `kith://<uid>/service/<component>` or `kith://<uid>/line/<line>`.
    pub uri: String,
    /// Names by which the holder is dialled.
    pub dns: Vec<String>,
    /// Addresses by which the holder is dialled.
    pub addresses: Vec<IpAddr>,
}

impl LeafRequest {
    /// The business line that it is for; none for a component.
    fn line(&self) -> Option<&str> {
        let (_, who) = self.uri.strip_prefix("kith://")?.split_once('/')?;
        who.strip_prefix("line/")
    }
}

/// Whether a stored certificate may stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It says what it should and is young enough.
    Keep,
    /// It must be made anew, and why.
    Renew(&'static str),
}

fn moment(unix_s: i64) -> Result<OffsetDateTime, PkiError> {
    OffsetDateTime::from_unix_timestamp(unix_s).map_err(|_| PkiError::Clock)
}

fn ia5<T, E>(result: Result<T, E>, what: &'static str) -> Result<T, PkiError>
where
    E: std::fmt::Display,
{
    result.map_err(|e| PkiError::read(what, e))
}

impl Authority {
    /// A new authority named after the ChatCluster.
    pub fn generate(cluster_name: &str, uid: &str, now: Timestamp) -> Result<Self, PkiError> {
        let make = |source| PkiError::Make { what: "certificate authority", source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&format!("Kith {cluster_name}"), uid);
        params.not_before = moment(now.as_second() - BACKDATE_S)?;
        params.not_after = moment(now.as_second() + AUTHORITY_S)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert_pem = params.self_signed(&key).map_err(make)?.pem();
        Self::load(&cert_pem, &key.serialize_pem())
    }

    /// Reads a stored authority; refuses a key that is not the certificate's.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let what = "certificate authority";
        let key = KeyPair::from_pem(key_pem).map_err(|e| PkiError::read("key of the certificate authority", e))?;
        let der = der_of(cert_pem, what)?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| PkiError::read(what, e))?;
        if parsed.public_key().subject_public_key.data.as_ref() != rcgen::PublicKeyData::der_bytes(&key) {
            return Err(PkiError::read(what, "ca.key is not the key of ca.crt"));
        }
        if !parsed.is_ca() {
            return Err(PkiError::read(what, "ca.crt is not a certificate authority"));
        }
        let key_id = subject_key_id(&parsed).ok_or_else(|| PkiError::read(what, "ca.crt names no key id"))?;
        let not_after = parsed.validity().not_after.timestamp();
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).map_err(|source| PkiError::Make { what, source })?;
        Ok(Self { cert_pem: cert_pem.to_owned(), key_pem: key_pem.to_owned(), issuer, key_id, not_after })
    }

    /// Whether another should take its place: certificates of it are to end before it does.
    pub fn is_near_end(&self, now: Timestamp) -> bool {
        self.not_after.saturating_sub(now.as_second()) < NEAR_END_S
    }

    /// A certificate for `request` with a new key.
    pub fn issue(&self, request: &LeafRequest, now: Timestamp) -> Result<Leaf, PkiError> {
        let what = "certificate";
        let make = |source| PkiError::Make { what, source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(request)?;
        params.not_before = moment(now.as_second() - BACKDATE_S)?;
        params.not_after = moment((now.as_second() + LEAF_S).min(self.not_after))?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names.push(SanType::URI(ia5(request.uri.as_str().try_into(), what)?));
        for name in &request.dns {
            params.subject_alt_names.push(SanType::DnsName(ia5(name.as_str().try_into(), what)?));
        }
        params.subject_alt_names.extend(request.addresses.iter().copied().map(SanType::IpAddress));
        let cert_pem = params.signed_by(&key, &self.issuer).map_err(make)?.pem();
        Ok(Leaf { cert_pem, key_pem: key.serialize_pem() })
    }

    /// Whether `leaf` still serves: signed by this authority, for `request`, with its own key, in the first two thirds of its life.
    pub fn examine(&self, leaf: &Leaf, request: &LeafRequest, now: Timestamp) -> Renewal {
        match self.reason_to_renew(leaf, request, now) {
            None => Renewal::Keep,
            Some(why) => Renewal::Renew(why),
        }
    }

    fn reason_to_renew(&self, leaf: &Leaf, request: &LeafRequest, now: Timestamp) -> Option<&'static str> {
        let Ok(der) = der_of(&leaf.cert_pem, "certificate") else { return Some("the certificate cannot be read") };
        let Ok((_, cert)) = X509Certificate::from_der(&der) else { return Some("the certificate cannot be read") };
        let Ok(key) = KeyPair::from_pem(&leaf.key_pem) else { return Some("the key cannot be read") };
        if cert.public_key().subject_public_key.data.as_ref() != rcgen::PublicKeyData::der_bytes(&key) {
            return Some("the key is not the certificate's");
        }
        if authority_key_id(&cert) != Some(self.key_id.as_slice()) {
            return Some("it was signed by another authority");
        }
        if !says(&cert, request) {
            return Some("its names have changed");
        }
        let (begin, end) = (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
        (now.as_second() >= begin + (end - begin) / 3 * 2).then_some("it is near its end")
    }
}

/// What the subject says. Kafka sees nothing else of a certificate, so a business line's is of another form than any component's, whatever
/// its name, and is never cut: two lines are never one.
fn subject(request: &LeafRequest) -> Result<DistinguishedName, PkiError> {
    let mut subject = DistinguishedName::new();
    match request.line() {
        Some(line) if line.is_empty() || line.chars().count() > LONGEST_COMMON_NAME => {
            let problem = format!("the name of a business line has 1 to {LONGEST_COMMON_NAME} characters");
            return Err(PkiError::read("certificate", problem));
        }
        Some(line) => {
            subject.push(DnType::OrganizationalUnitName, LINES);
            subject.push(DnType::CommonName, line);
        }
        None => {
            let common: String =
                request.dns.first().unwrap_or(&request.uri).chars().take(LONGEST_COMMON_NAME).collect();
            subject.push(DnType::CommonName, common);
        }
    }
    Ok(subject)
}

fn name(common: &str, unit: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name.push(DnType::OrganizationalUnitName, unit);
    name
}

fn der_of(pem: &str, what: &'static str) -> Result<Vec<u8>, PkiError> {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| PkiError::read(what, e))?;
    Ok(der.to_vec())
}

fn subject_key_id(cert: &X509Certificate<'_>) -> Option<Vec<u8>> {
    cert.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn authority_key_id<'a>(cert: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    cert.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|k| k.0),
        _ => None,
    })
}

/// The DNS names and addresses in a certificate; none where it cannot be read.
pub fn hosts_of(cert_pem: &str) -> Vec<String> {
    let Ok(der) = der_of(cert_pem, "certificate") else { return Vec::new() };
    let Ok((_, cert)) = X509Certificate::from_der(&der) else { return Vec::new() };
    let Ok(Some(names)) = cert.subject_alternative_name() else { return Vec::new() };
    let host = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(dns) => Some((*dns).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(host).collect()
}

/// Whether the certificate's names are exactly those of `request`.
fn says(cert: &X509Certificate<'_>, request: &LeafRequest) -> bool {
    let Ok(Some(names)) = cert.subject_alternative_name() else { return false };
    let mut found = Vec::new();
    for name in &names.value.general_names {
        found.push(match name {
            GeneralName::URI(uri) => format!("uri:{uri}"),
            GeneralName::DNSName(dns) => format!("dns:{dns}"),
            GeneralName::IPAddress(bytes) => format!("ip:{bytes:?}"),
            _ => return false,
        });
    }
    let mut wanted = vec![format!("uri:{}", request.uri)];
    wanted.extend(request.dns.iter().map(|dns| format!("dns:{dns}")));
    wanted.extend(request.addresses.iter().map(|ip| match ip {
        IpAddr::V4(v4) => format!("ip:{:?}", v4.octets()),
        IpAddr::V6(v6) => format!("ip:{:?}", v6.octets()),
    }));
    found.sort_unstable();
    wanted.sort_unstable();
    found == wanted
}
