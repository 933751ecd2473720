//! The certificate with which a Gateway's pods end TLS: whether the Secret that the spec names can be used. It is read, and never copied.

use k8s_openapi::api::core::v1::Secret;
use kith_crds::{Gateway, conditions::reason};
use kith_kit::tls::{self, PairError};
use kube::{Api, Client};

use crate::{
    apply::ApplyError,
    certificates::{self, Certificate},
    render::settings::TLS_FILES,
};

/// Why a Secret cannot be used: the word and the sentence of a condition, without anything that the Secret holds.
pub(super) type Trouble = (&'static str, String);

/// What the Secret is good for.
#[derive(Default)]
pub(super) struct Look {
    /// Why it cannot be used.
    pub(super) trouble: Option<Trouble>,
    /// When its certificate ends.
    pub(super) ends: Option<Certificate>,
}

/// Reads the Secret; none without `spec.tls`.
pub(super) async fn look(client: &Client, namespace: &str, gateway: &Gateway) -> Result<Option<Look>, ApplyError> {
    let Some(tls) = &gateway.spec.tls else { return Ok(None) };
    let name = &tls.secret_ref.name;
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = api.get_opt(name).await.map_err(|e| ApplyError::kube::<Secret>(name, e))?;
    let ends = secret.as_ref().and_then(|secret| certificates::of_given(name, secret));
    Ok(Some(Look { trouble: judge(name, namespace, secret.as_ref()), ends }))
}

/// What is wrong with the Secret, in words that say what to do.
fn judge(name: &str, namespace: &str, secret: Option<&Secret>) -> Option<Trouble> {
    let Some(secret) = secret else {
        let message = format!(
            "Secret {name}, which spec.tls names, does not exist in namespace {namespace}: create it with the keys {}",
            TLS_FILES.join(" and ")
        );
        return Some((reason::SECRET_NOT_FOUND, message));
    };
    let invalid =
        |problem: String| Some((reason::SECRET_INVALID, format!("Secret {name}, which spec.tls names: {problem}")));
    let text = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.as_slice());
    let [cert_key, key_key] = TLS_FILES;
    let (Some(cert), Some(key)) = (text(cert_key), text(key_key)) else {
        let missing: Vec<_> = TLS_FILES.into_iter().filter(|key| text(key).is_none()).collect();
        return invalid(format!("the key {} is missing: add it", missing.join(" and ")));
    };
    match tls::examine(cert, key) {
        Ok(()) => None,
        Err(PairError::Certificate(problem)) => invalid(format!("{cert_key} {problem}: put a PEM certificate there")),
        Err(PairError::Key(problem)) => invalid(format!("{key_key} {problem}: put the PEM key of {cert_key} there")),
        Err(PairError::Mismatch) => invalid(format!("{key_key} is not the key of {cert_key}: replace both together")),
        Err(PairError::Unusable(error)) => invalid(format!("{cert_key} and {key_key} cannot be used: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert =
            rcgen::CertificateParams::new(vec!["chat.example.com".to_owned()]).unwrap().self_signed(&key).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    fn secret(entries: &[(&str, &str)]) -> Secret {
        let data = entries.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec())));
        Secret { data: Some(data.collect()), ..Secret::default() }
    }

    #[test]
    fn what_is_wrong_with_the_secret_of_a_gateway_is_said_in_words_and_without_its_content() {
        let ((cert, key), (_, other)) = (pair(), pair());
        let judged = |entries: &[(&str, &str)]| judge("web", "ns", Some(&secret(entries)));
        assert_eq!(judged(&[("tls.crt", &cert), ("tls.key", &key), ("ca.crt", "anything")]), None);
        let (word, message) = judge("web", "ns", None).unwrap();
        assert_eq!(word, reason::SECRET_NOT_FOUND);
        assert!(
            message.contains("web") && message.contains("namespace ns") && message.contains("tls.crt and tls.key"),
            "{message}"
        );
        let flat = key.replace('\n', "");
        for (entries, words) in [
            (vec![], "the key tls.crt and tls.key is missing"),
            (vec![("tls.crt", cert.as_str())], "the key tls.key is missing"),
            (vec![("tls.crt", "none"), ("tls.key", key.as_str())], "tls.crt holds no certificate"),
            (vec![("tls.crt", cert.as_str()), ("tls.key", flat.as_str())], "tls.key"),
            (vec![("tls.crt", cert.as_str()), ("tls.key", other.as_str())], "is not the key of tls.crt"),
        ] {
            let (word, message) = judged(&entries).unwrap();
            assert_eq!(word, reason::SECRET_INVALID, "{message}");
            assert!(message.contains("Secret web") && message.contains(words), "{message}");
            assert!(!message.contains("PRIVATE") && !message.contains("45, 45"), "{message}");
        }
    }
}
