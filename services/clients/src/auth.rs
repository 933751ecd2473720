//! Client tokens: JWTs that `business` signs and `api` and `gateway` verify (EdDSA; ES256 keys are accepted too).

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, JwkSet},
};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use kith_contract::{ids, kinds::Platform};
use kith_kit::{clock, config::MAX_TOKEN_LIFE};
use kith_rpc::error::{Error, reason};

/// The longest token taken, in bytes.
const MAX_TOKEN_BYTES: usize = 4_096;
/// Between two looks at the key files.
const RELOAD_CHECK: Duration = Duration::from_secs(10);

/// What a client token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// User id.
    pub sub: String,
    /// Device id.
    pub dev: String,
    /// Platform: the name of a [`Platform`].
    pub plt: String,
    /// Business line.
    pub line: String,
    /// The ChatCluster's `clusterName`.
    pub iss: String,
    /// Unique id of the token.
    pub jti: String,
    /// Issued at, Unix seconds.
    pub iat: u64,
    /// Issued at, Unix ms: a token made in the same second as a kick must still be told apart.
    #[serde(default)]
    pub iat_ms: i64,
    /// Expires at, Unix seconds.
    pub exp: u64,
}

impl Claims {
    /// The platform; none for one that the contract does not name, which no token that was verified has.
    pub fn platform(&self) -> Option<Platform> {
        self.plt.parse().ok()
    }

    /// When the token was issued, Unix ms. Tokens of other issuers may not carry milliseconds.
    pub fn issued_at_ms(&self) -> i64 {
        if self.iat_ms > 0 { self.iat_ms } else { i64::try_from(self.iat).unwrap_or(i64::MAX).saturating_mul(1_000) }
    }

    /// When the token ends, Unix ms: as it says, and never later than [`MAX_TOKEN_LIFE`] after its issue.
    pub fn ends_at_ms(&self) -> i64 {
        let said = i64::try_from(self.exp).unwrap_or(i64::MAX).saturating_mul(1_000);
        let life = i64::try_from(MAX_TOKEN_LIFE.as_millis()).unwrap_or(i64::MAX);
        said.min(self.issued_at_ms().saturating_add(life))
    }
}

/// The refusal of a token whose time is over.
pub fn expired() -> Error {
    Error::unauthenticated("the token has expired: get a new one").with_reason(reason::EXPIRED)
}

/// Why keys could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file cannot be read.
    #[error("token keys {path}: {source}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `jwks.json` is not a JWK set.
    #[error("token keys {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A key of a kind that is not supported.
    #[error("token keys: {0}")]
    Key(#[from] jsonwebtoken::errors::Error),
    /// No private key.
    #[error("token keys {0}: no <kid>.pem private key that jwks.json knows")]
    Missing(PathBuf),
    /// No usable public key.
    #[error("token keys {0}: jwks.json holds no usable key")]
    Empty(PathBuf),
}

/// Verifies client tokens against `jwks.json`, re-read when it changes.
pub struct Verifier {
    path: PathBuf,
    issuer: String,
    state: RwLock<VerifierState>,
}

/// Public keys by `kid`.
type Keys = HashMap<String, (Algorithm, DecodingKey)>;

struct VerifierState {
    keys: Keys,
    json: String,
    stamp: Option<SystemTime>,
    checked: Instant,
}

impl Verifier {
    /// Loads the keys of `dir` for tokens of `issuer`.
    pub fn load(dir: &Path, issuer: &str) -> Result<Self, KeyError> {
        let path = dir.join("jwks.json");
        let (json, keys) = read_jwks(&path)?;
        let state = VerifierState { keys, json, stamp: modified(&path), checked: Instant::now() };
        Ok(Self { path, issuer: issuer.to_owned(), state: RwLock::new(state) })
    }

    /// The JWK set as published at `/.well-known/jwks.json`.
    pub fn jwks(&self) -> String {
        self.refresh();
        self.state.read().json.clone()
    }

    /// The claims of a valid token. Revocation is not known here: the caller asks storage.
    pub fn verify(&self, token: &str) -> Result<Claims, Error> {
        self.refresh();
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Error::unauthenticated("the token is too long"));
        }
        let malformed = || Error::unauthenticated("the token is malformed");
        let kid = jsonwebtoken::decode_header(token).map_err(|_| malformed())?.kid.ok_or_else(malformed)?;
        let state = self.state.read();
        let (algorithm, key) =
            state.keys.get(&kid).ok_or_else(|| Error::unauthenticated("the token was signed with an unknown key"))?;
        let mut validation = Validation::new(*algorithm);
        // A token ends when it says so; see also the check below, which is the one that counts the last second.
        validation.leeway = 0;
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        validation.validate_aud = false;
        let claims = jsonwebtoken::decode::<Claims>(token, key, &validation)
            .map_err(|e| match e.kind() {
                ErrorKind::ExpiredSignature => expired(),
                ErrorKind::InvalidIssuer => Error::unauthenticated("the token is of another cluster"),
                _ => malformed(),
            })?
            .claims;
        if claims.ends_at_ms() <= clock::now_ms() {
            return Err(expired());
        }
        ids::check_id("sub", &claims.sub)?;
        ids::check_id("dev", &claims.dev)?;
        if claims.plt.parse::<Platform>().is_err() {
            return Err(malformed());
        }
        Ok(claims)
    }

    fn refresh(&self) {
        if self.state.read().checked.elapsed() < RELOAD_CHECK {
            return;
        }
        let mut state = self.state.write();
        state.checked = Instant::now();
        let stamp = modified(&self.path);
        if stamp == state.stamp {
            return;
        }
        match read_jwks(&self.path) {
            Ok((json, keys)) => {
                state.json = json;
                state.keys = keys;
                state.stamp = stamp;
                tracing::info!("token keys reloaded");
            }
            Err(error) => tracing::error!(%error, "token keys changed but do not load; keeping the old ones"),
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn read_jwks(path: &Path) -> Result<(String, Keys), KeyError> {
    let json = std::fs::read_to_string(path).map_err(|source| KeyError::Read { path: path.to_owned(), source })?;
    let set: JwkSet =
        serde_json::from_str(&json).map_err(|source| KeyError::Parse { path: path.to_owned(), source })?;
    let mut keys = HashMap::new();
    for jwk in &set.keys {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
            AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P256 => Algorithm::ES256,
            _ => continue,
        };
        if let Some(kid) = &jwk.common.key_id {
            keys.insert(kid.clone(), (algorithm, DecodingKey::from_jwk(jwk)?));
        }
    }
    if keys.is_empty() { Err(KeyError::Empty(path.to_owned())) } else { Ok((json, keys)) }
}

/// Signs client tokens with the newest key: the last `<kid>.pem` by name that `jwks.json` knows.
pub struct Signer {
    dir: PathBuf,
    issuer: String,
    state: RwLock<SignerState>,
}

struct SignerState {
    kid: String,
    key: EncodingKey,
    checked: Instant,
}

impl Signer {
    /// Loads the newest key of `dir`.
    pub fn load(dir: &Path, issuer: &str) -> Result<Self, KeyError> {
        let (kid, key) = read_signing_key(dir)?;
        let state = RwLock::new(SignerState { kid, key, checked: Instant::now() });
        Ok(Self { dir: dir.to_owned(), issuer: issuer.to_owned(), state })
    }

    /// A token for `sub` on `dev`, valid for `ttl`. Ids and platform must have been checked.
    pub fn sign(&self, sub: &str, dev: &str, plt: &str, line: &str, ttl: Duration) -> Result<(String, Claims), Error> {
        if self.state.read().checked.elapsed() >= RELOAD_CHECK {
            let mut state = self.state.write();
            state.checked = Instant::now();
            match read_signing_key(&self.dir) {
                Ok((kid, key)) => {
                    state.kid = kid;
                    state.key = key;
                }
                Err(error) => tracing::error!(%error, "signing key does not load; keeping the old one"),
            }
        }
        let iat_ms = clock::now_ms();
        let iat = iat_ms.unsigned_abs() / 1_000;
        let claims = Claims {
            sub: sub.to_owned(),
            dev: dev.to_owned(),
            plt: plt.to_owned(),
            line: line.to_owned(),
            iss: self.issuer.clone(),
            jti: ulid::Ulid::generate().to_string(),
            iat,
            iat_ms,
            exp: iat.saturating_add(ttl.min(MAX_TOKEN_LIFE).as_secs()),
        };
        let state = self.state.read();
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(state.kid.clone());
        let token = jsonwebtoken::encode(&header, &claims, &state.key).map_err(|error| {
            tracing::error!(%error, "a token could not be signed");
            Error::internal("the token could not be signed")
        })?;
        Ok((token, claims))
    }
}

/// Between the making of a key and its first signature: by then it is mounted wherever tokens are verified. (A kubelet looks at Secrets every
/// minute or so.)
const SETTLED_S: i64 = 600;

/// The key that signs at `now_s`: the newest that every verifier has; the oldest where none is known for so long, as at the very beginning.
/// A key id begins with the second in which it was made.
fn signing_kid(mut kids: Vec<String>, now_s: i64) -> Option<String> {
    kids.sort_unstable();
    let made = |kid: &str| kid.split_once('-').and_then(|(made, _)| made.parse::<i64>().ok());
    let settled = |kid: &&String| made(kid).is_none_or(|made| made.saturating_add(SETTLED_S) <= now_s);
    kids.iter().rfind(settled).or(kids.first()).cloned()
}

fn read_signing_key(dir: &Path) -> Result<(String, EncodingKey), KeyError> {
    let read = |path: &Path| -> Result<Vec<u8>, KeyError> {
        std::fs::read(path).map_err(|source| KeyError::Read { path: path.to_owned(), source })
    };
    let (_, known) = read_jwks(&dir.join("jwks.json"))?;
    let entries = std::fs::read_dir(dir).map_err(|source| KeyError::Read { path: dir.to_owned(), source })?;
    let kids = entries
        .filter_map(Result::ok)
        .filter_map(|e| e.file_name().to_str()?.strip_suffix(".pem").map(str::to_owned))
        .filter(|kid| known.contains_key(kid));
    let kid = signing_kid(kids.collect(), clock::now_ms() / 1_000).ok_or_else(|| KeyError::Missing(dir.to_owned()))?;
    let key = EncodingKey::from_ed_pem(&read(&dir.join(format!("{kid}.pem")))?)?;
    Ok((kid, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_signs_when_all_who_verify_have_it() {
        let kids = |list: &[&str]| list.iter().map(|kid| (*kid).to_owned()).collect::<Vec<_>>();
        let (old, new) = ("1790000000-aa", "1790090000-bb");
        assert_eq!(signing_kid(kids(&[new, old]), 1_790_090_000).as_deref(), Some(old));
        assert_eq!(signing_kid(kids(&[new, old]), 1_790_090_000 + SETTLED_S).as_deref(), Some(new));
        assert_eq!(signing_kid(kids(&[new]), 1_790_090_000).as_deref(), Some(new), "there is no other");
        assert_eq!(signing_kid(kids(&["made-by-hand", old]), 0).as_deref(), Some("made-by-hand"));
        assert_eq!(signing_kid(Vec::new(), 0), None);
    }
}
