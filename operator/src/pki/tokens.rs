//! The keys that sign client tokens: Ed25519, by key id; the newest id signs, all verify.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::jiff::Timestamp;
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::{Value, json};

use super::{PkiError, hex};

/// What a token of a key may have lived for, seconds, where that was not written down, unless the ChatCluster's own setting is longer: the most
/// that a line could ask for.
const LONGEST_S: i64 = 30 * 86_400;
/// A key signs for so long, at most, after its successor was made: the successor is to be mounted everywhere before it signs
/// (`kith_clients::auth` waits for ten minutes).
const HAND_OVER_S: i64 = 3_600;

/// Private keys by key id. A key id begins with the time at which it was made, so that the newest is the last by name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TokenKeys(BTreeMap<String, Key>);

#[derive(Clone, PartialEq, Eq)]
struct Key {
    /// PKCS#8.
    pem: String,
    /// The longest life that a token of it may have had, seconds: how long it must verify after it has signed for the last time. Not known
    /// of keys that an operator of an earlier version made.
    ttl_s: Option<i64>,
    /// Until when it must verify, Unix seconds; known once it signs no more.
    until_s: Option<i64>,
}

impl TokenKeys {
    /// One new key.
    pub fn generate(now: Timestamp) -> Result<Self, PkiError> {
        let mut keys = Self::default();
        keys.add(now)?;
        Ok(keys)
    }

    /// Reads stored keys: `<kid>.pem` → PEM, `<kid>.ttl` and `<kid>.until` → seconds. Other entries are left out.
    pub fn load<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, PkiError> {
        let entries: BTreeMap<&str, &str> = entries.into_iter().collect();
        let mut keys = BTreeMap::new();
        for (name, pem) in &entries {
            if let Some(kid) = name.strip_suffix(".pem") {
                KeyPair::from_pem(pem).map_err(|e| PkiError::read("token key", e))?;
                let number = |what: &str| entries.get(format!("{kid}.{what}").as_str())?.trim().parse().ok();
                let (ttl_s, until_s) = (number("ttl"), number("until"));
                let key = Key { pem: (*pem).to_owned(), ttl_s, until_s };
                keys.insert(kid.to_owned(), key);
            }
        }
        if keys.is_empty() { Err(PkiError::read("token keys", "there is no <kid>.pem")) } else { Ok(Self(keys)) }
    }

    fn add(&mut self, now: Timestamp) -> Result<(), PkiError> {
        let key =
            KeyPair::generate_for(&PKCS_ED25519).map_err(|source| PkiError::Make { what: "token key", source })?;
        let kid = format!("{:010}-{}", now.as_second(), hex(&rand::random::<[u8; 4]>()));
        self.0.insert(kid, Key { pem: key.serialize_pem(), ttl_s: Some(0), until_s: None });
        Ok(())
    }

    /// Makes a new key when the newest is older than `interval_s`, and forgets those of which every token has expired. `ttl_s`: the longest
    /// life of tokens that are issued from now on. Answers whether a key came or went.
    pub fn rotate(&mut self, interval_s: i64, ttl_s: i64, now: Timestamp) -> Result<bool, PkiError> {
        let newest = self.0.keys().next_back().and_then(|kid| made_at(kid));
        let mut changed = false;
        if newest.is_none_or(|made| now.as_second() - made >= interval_s) {
            self.add(now)?;
            changed = true;
        }
        let kids: Vec<String> = self.0.keys().cloned().collect();
        for (n, kid) in kids.iter().enumerate() {
            let since = kids.get(n + 1).and_then(|next| made_at(next)).map(|replaced| now.as_second() - replaced);
            let Some(key) = self.0.get_mut(kid) else { continue };
            if since.is_none_or(|since| since <= HAND_OVER_S) {
                // It may still sign.
                key.ttl_s = Some(key.ttl_s.unwrap_or(LONGEST_S).max(ttl_s));
                continue;
            }
            let longest = key.ttl_s.unwrap_or(LONGEST_S.max(ttl_s));
            let until = *key.until_s.get_or_insert(now.as_second() - since.unwrap_or(0) + HAND_OVER_S + longest);
            if now.as_second() > until {
                self.0.remove(kid);
                changed = true;
            }
        }
        Ok(changed)
    }

    /// The files of the Secret: `<kid>.pem`, `<kid>.ttl` and `<kid>.until` of each key and `jwks.json`.
    pub fn files(&self) -> Result<BTreeMap<String, String>, PkiError> {
        let of = |(kid, key): (&String, &Key)| {
            let ttl = key.ttl_s.map(|ttl_s| (format!("{kid}.ttl"), ttl_s.to_string()));
            let until = key.until_s.map(|until_s| (format!("{kid}.until"), until_s.to_string()));
            [Some((format!("{kid}.pem"), key.pem.clone())), ttl, until].into_iter().flatten()
        };
        let mut files: BTreeMap<String, String> = self.0.iter().flat_map(of).collect();
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
    for (kid, key) in &keys.0 {
        let key = KeyPair::from_pem(&key.pem).map_err(|e| PkiError::read("token key", e))?;
        let x = BASE64_URL_SAFE_NO_PAD.encode(key.public_key_raw());
        list.push(json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x}));
    }
    Ok(json!({ "keys": list }))
}
