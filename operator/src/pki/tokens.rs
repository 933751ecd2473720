//! The keys that sign client tokens: Ed25519, by key id; the newest id signs, all verify.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::jiff::Timestamp;
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::{Value, json};

use super::{PkiError, hex};

/// Private keys (PKCS#8 PEM) by key id. A key id begins with the time at which it was made, so that the newest is the last by name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TokenKeys(BTreeMap<String, String>);

impl TokenKeys {
    /// One new key.
    pub fn generate(now: Timestamp) -> Result<Self, PkiError> {
        let mut keys = Self::default();
        keys.add(now)?;
        Ok(keys)
    }

    /// Reads stored keys: `<kid>.pem` → PEM. Other entries are left out.
    pub fn load<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, PkiError> {
        let mut keys = BTreeMap::new();
        for (name, pem) in entries {
            if let Some(kid) = name.strip_suffix(".pem") {
                KeyPair::from_pem(pem).map_err(|e| PkiError::read("token key", e))?;
                keys.insert(kid.to_owned(), pem.to_owned());
            }
        }
        if keys.is_empty() { Err(PkiError::read("token keys", "there is no <kid>.pem")) } else { Ok(Self(keys)) }
    }

    fn add(&mut self, now: Timestamp) -> Result<(), PkiError> {
        let key =
            KeyPair::generate_for(&PKCS_ED25519).map_err(|source| PkiError::Make { what: "token key", source })?;
        let kid = format!("{:010}-{}", now.as_second(), hex(&rand::random::<[u8; 4]>()));
        self.0.insert(kid, key.serialize_pem());
        Ok(())
    }

    /// Makes a new key when the newest is older than `interval_s`, and forgets those that stopped signing more than `ttl_s` ago, since
    /// every token of theirs has expired. Answers whether anything changed.
    pub fn rotate(&mut self, interval_s: i64, ttl_s: i64, now: Timestamp) -> Result<bool, PkiError> {
        let newest = self.0.keys().next_back().and_then(|kid| made_at(kid));
        let mut changed = false;
        if newest.is_none_or(|made| now.as_second() - made >= interval_s) {
            self.add(now)?;
            changed = true;
        }
        let times: Vec<(String, Option<i64>)> = self.0.keys().map(|kid| (kid.clone(), made_at(kid))).collect();
        for pair in times.windows(2) {
            // A key signs until its successor is made and mounted; an hour covers the mounting.
            if pair[1].1.is_some_and(|replaced| now.as_second() - replaced > ttl_s + 3_600) {
                self.0.remove(&pair[0].0);
                changed = true;
            }
        }
        Ok(changed)
    }

    /// The files of the Secret: `<kid>.pem` of each key and `jwks.json`.
    pub fn files(&self) -> Result<BTreeMap<String, String>, PkiError> {
        let mut files: BTreeMap<String, String> =
            self.0.iter().map(|(kid, pem)| (format!("{kid}.pem"), pem.clone())).collect();
        files.insert("jwks.json".to_owned(), public_set(self)?.to_string());
        Ok(files)
    }
}

fn made_at(kid: &str) -> Option<i64> {
    kid.split_once('-')?.0.parse().ok()
}

/// The public halves as a JWK set.
pub fn public_set(keys: &TokenKeys) -> Result<Value, PkiError> {
    let mut list = Vec::new();
    for (kid, pem) in &keys.0 {
        let key = KeyPair::from_pem(pem).map_err(|e| PkiError::read("token key", e))?;
        let x = BASE64_URL_SAFE_NO_PAD.encode(key.public_key_raw());
        list.push(json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x}));
    }
    Ok(json!({ "keys": list }))
}
