//! When certificates end, and who has to see to it: a condition before anybody is shut out. Pure but for one reader of Secrets.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::{Timestamp, tz::TimeZone},
};
use kith_crds::conditions::{self, Finding, reason};
use kube::{Api, Client};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{apply::Live, words};

const DAY_S: i64 = 86_400;
/// The operator renews its certificates with thirty of their ninety days left: with this many left it has failed for half a month.
const RENEWED_S: i64 = 14 * DAY_S;
/// A pod has a certificate with at least so much left when it starts.
pub const LEFT_AT_START_S: i64 = 30 * DAY_S;
/// What people renew: time to order a certificate, and no alarm for those that are renewed by others a month ahead, as is usual.
const GIVEN_S: i64 = 14 * DAY_S;
/// Another authority is made two years before the end: with half a year left that has failed for long.
const AUTHORITY_S: i64 = 180 * DAY_S;
/// Reading a Secret that a person gave must not hold up a pass.
const READ: Duration = Duration::from_secs(3);

/// Who has to renew a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The operator, by itself.
    ByOperator,
    /// The operator's own authority: another follows it.
    Followed,
    /// The operator has renewed it; who was started with it takes that up by a restart alone.
    ByRestart,
    /// Whoever gave it.
    ByGiver,
}

/// A certificate's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Where it is: the name of a Secret, a field of the spec, or the pod that was started with it.
    pub place: String,
    /// When it ends, Unix seconds.
    pub ends_s: i64,
    /// Who has to renew it.
    pub renewed: Renewed,
}

impl Certificate {
    /// The first certificate of `pem`, which is the holder's own; none when there is none to be read, which is said elsewhere.
    pub fn first(place: impl Into<String>, pem: &[u8], renewed: Renewed) -> Option<Self> {
        Some(Self { place: place.into(), ends_s: ends(pem).next()?, renewed })
    }

    /// The certificate of `pem` that ends last: of authorities that are trusted side by side, one that holds is enough.
    pub fn last(place: impl Into<String>, pem: &[u8], renewed: Renewed) -> Option<Self> {
        Some(Self { place: place.into(), ends_s: ends(pem).max()?, renewed })
    }

    fn due(&self, now: Timestamp) -> bool {
        let ahead = match self.renewed {
            Renewed::ByOperator | Renewed::ByRestart => RENEWED_S,
            Renewed::Followed => AUTHORITY_S,
            Renewed::ByGiver => GIVEN_S,
        };
        self.ends_s.saturating_sub(now.as_second()) < ahead
    }

    /// The day is told and not how many are left: that would be another sentence every day.
    fn sentence(&self, now: Timestamp) -> String {
        let day = Timestamp::from_second(self.ends_s)
            .map_or_else(|_| "an unknown day".to_owned(), |end| end.to_zoned(TimeZone::UTC).date().to_string());
        let verb = if self.ends_s <= now.as_second() { "ended" } else { "ends" };
        let advice = match self.renewed {
            Renewed::ByOperator => {
                "the operator should have renewed it long ago: see its log and the condition Ready for what keeps it from writing the Secret"
            }
            Renewed::Followed => {
                "another should have followed it two years before: ask for it with kith.dev/rotate-authority=now on the ChatCluster, and see the operator's log and the condition Ready for what keeps it from that"
            }
            Renewed::ByRestart => {
                "it was renewed, and the operator could not restart the pod with the new one yet: see the conditions Progressing and Degraded for what keeps it from that"
            }
            Renewed::ByGiver => "renew it there; it is taken up without a restart",
        };
        let of = if self.renewed == Renewed::ByRestart { "of" } else { "in" };
        format!("the certificate {of} {} {verb} on {day}: {advice}", self.place)
    }
}

/// The ends of all certificates of a PEM text, Unix seconds.
fn ends(pem: &[u8]) -> impl Iterator<Item = i64> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).filter_map(|der| {
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        Some(certificate.validity().not_after.timestamp())
    })
}

/// The certificates in the Secrets that the operator made; `authority` is the name of the one with the authority itself.
pub fn of_secrets(secrets: &Live<Secret>, authority: &str) -> Vec<Certificate> {
    let text = |secret: &Secret, key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|v| v.0.clone());
    secrets
        .iter()
        .filter_map(|(name, secret)| {
            let place = format!("Secret {name}");
            if name == authority {
                Certificate::last(place, &text(secret, "ca.crt")?, Renewed::Followed)
            } else {
                Certificate::first(place, &text(secret, "tls.crt")?, Renewed::ByOperator)
            }
        })
        .collect()
}

/// The certificate in a Secret that a person gave. One that holds none is another's to tell.
pub fn of_given(name: &str, secret: &Secret) -> Option<Certificate> {
    let pem = secret.data.as_ref()?.get("tls.crt")?;
    Certificate::first(format!("Secret {name}"), &pem.0, Renewed::ByGiver)
}

/// The same of a Secret that is read for this alone, if there is one; none when it could not be read now, so that nothing is said of it.
pub async fn given(client: &Client, namespace: &str, name: Option<&str>) -> Option<Vec<Certificate>> {
    let Some(name) = name else { return Some(Vec::new()) };
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    match tokio::time::timeout(READ, api.get_opt(name)).await {
        Ok(Ok(secret)) => Some(secret.and_then(|secret| of_given(name, &secret)).into_iter().collect()),
        Ok(Err(error)) => {
            let why = words::of("Secret", &error);
            tracing::debug!(namespace, name, why, "the end of a certificate is not known");
            None
        }
        Err(_) => None,
    }
}

/// CertificateExpiring; none where no certificate is known and none was.
pub fn finding(certificates: &[Certificate], before: Option<&Condition>, now: Timestamp) -> Option<Finding> {
    let kind = conditions::CERTIFICATE_EXPIRING;
    if certificates.is_empty() && before.is_none() {
        return None;
    }
    let first = certificates.iter().filter(|c| c.due(now)).min_by_key(|c| (c.ends_s, c.place.clone()));
    Some(match first {
        Some(certificate) => {
            let word = match certificate.renewed {
                Renewed::ByOperator | Renewed::Followed | Renewed::ByRestart => reason::RENEWAL_FAILED,
                Renewed::ByGiver => reason::CERTIFICATE_ENDING,
            };
            Finding::holds(kind, word, certificate.sentence(now))
        }
        None => Finding::fails(kind, reason::ALL_READY, "no certificate ends soon"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Authority, LeafRequest};

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + day * DAY_S).unwrap()
    }

    fn leaf() -> (String, String) {
        let authority = Authority::generate("demo", "uid", at(0)).unwrap();
        let request =
            LeafRequest { uri: "kith://uid/service/storage".to_owned(), dns: Vec::new(), addresses: Vec::new() };
        (authority.cert_pem.clone(), authority.issue(&request, at(0)).unwrap().cert_pem)
    }

    fn said(certificate: Option<Certificate>, day: i64) -> Finding {
        finding(&[certificate.unwrap()], None, at(day)).unwrap()
    }

    #[test]
    fn a_certificate_is_told_of_when_whoever_renews_it_should_have_done_so() {
        let (authority, leaf) = leaf();
        let own = || Certificate::first("Secret demo-storage-tls", leaf.as_bytes(), Renewed::ByOperator);
        assert_eq!(said(own(), 75).holds, Some(false));
        let late = said(own(), 77);
        assert_eq!((late.holds, late.reason), (Some(true), reason::RENEWAL_FAILED));
        assert!(
            late.message.starts_with("the certificate in Secret demo-storage-tls ends on 2026-12-20: "),
            "{}",
            late.message
        );

        let given = || Certificate::first("Secret kafka", leaf.as_bytes(), Renewed::ByGiver);
        assert_eq!(said(given(), 75).holds, Some(false));
        assert_eq!(said(given(), 77).reason, reason::CERTIFICATE_ENDING);
        assert!(said(given(), 91).message.contains("ended on"), "{}", said(given(), 91).message);

        let started_with = || Certificate {
            place: "pod demo-kafka-1".to_owned(),
            ends_s: own().unwrap().ends_s,
            renewed: Renewed::ByRestart,
        };
        assert_eq!(said(Some(started_with()), 75).holds, Some(false));
        let late = said(Some(started_with()), 77);
        assert_eq!((late.holds, late.reason), (Some(true), reason::RENEWAL_FAILED));
        assert!(
            late.message.starts_with("the certificate of pod demo-kafka-1 ends on 2026-12-20: "),
            "{}",
            late.message
        );

        let root = || Certificate::last("Secret demo-ca", authority.as_bytes(), Renewed::Followed);
        assert_eq!(said(root(), 3_400).holds, Some(false));
        assert!(said(root(), 3_500).message.contains("kith.dev/rotate-authority=now"));
    }

    #[test]
    fn the_sentence_is_the_same_on_every_day_until_the_end() {
        let leaf = leaf().1;
        let given = || Certificate::first("Secret kafka", leaf.as_bytes(), Renewed::ByGiver);
        assert_eq!(said(given(), 77), said(given(), 85));
    }

    #[test]
    fn of_authorities_side_by_side_the_last_counts_and_of_a_chain_the_first() {
        let (authority, leaf) = leaf();
        let chain = format!("{leaf}{authority}");
        let first = Certificate::first("a", chain.as_bytes(), Renewed::ByGiver).unwrap();
        let last = Certificate::last("a", chain.as_bytes(), Renewed::ByGiver).unwrap();
        assert!(first.ends_s < last.ends_s);
        assert_eq!(Certificate::first("a", b"no certificate", Renewed::ByGiver), None);
        assert_eq!(finding(&[], None, at(0)), None);
    }
}
