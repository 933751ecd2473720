//! The key that signs client tokens, as the operator makes it: an Ed25519 key in PKCS#8 and its public half as a JWK set.

use std::path::Path;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData};

use super::{LocalError, file};

/// Name of the key.
const KID: &str = "k1";

/// Writes `<kid>.pem` and `jwks.json` into `dir`.
pub(super) fn write(dir: &Path) -> Result<(), LocalError> {
    std::fs::create_dir_all(dir).map_err(file(dir))?;
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let jwks = serde_json::json!({"keys": [{
        "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": KID,
        "x": URL_SAFE_NO_PAD.encode(key.der_bytes()),
    }]});
    for (name, text) in [(format!("{KID}.pem"), key.serialize_pem()), ("jwks.json".to_owned(), jwks.to_string())] {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(file(&path))?;
    }
    Ok(())
}
