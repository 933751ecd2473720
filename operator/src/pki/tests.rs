//! Certificates and keys: who they stand for, how long, and what is made again.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::*;

fn now() -> Timestamp {
    Timestamp::from_second(1_790_000_000).unwrap()
}

fn days(n: i64) -> SignedDuration {
    SignedDuration::from_secs(n * 86_400)
}

fn request() -> LeafRequest {
    LeafRequest {
        uri: "kith://u-1/service/storage".to_owned(),
        dns: vec!["storage.demo.kith.internal".to_owned(), "demo-storage.ns.svc".to_owned()],
        addresses: vec!["127.0.0.1".parse().unwrap()],
    }
}

#[test]
fn a_leaf_stays_until_two_thirds_of_its_life_or_a_change_of_names() {
    let ca = Authority::generate("demo", "u-1", now()).unwrap();
    let leaf = ca.issue(&request(), now()).unwrap();
    assert_eq!(ca.examine(&leaf, &request(), now()), Renewal::Keep);
    assert_eq!(ca.examine(&leaf, &request(), now() + days(59)), Renewal::Keep);
    assert_eq!(ca.examine(&leaf, &request(), now() + days(61)), Renewal::Renew("it is near its end"));
    let mut other = request();
    other.dns.push("more.example.com".to_owned());
    assert_eq!(ca.examine(&leaf, &other, now()), Renewal::Renew("its names have changed"));
}

#[test]
fn a_leaf_of_another_authority_or_with_another_key_is_renewed() {
    let ca = Authority::generate("demo", "u-1", now()).unwrap();
    let stranger = Authority::generate("demo", "u-1", now()).unwrap();
    let leaf = stranger.issue(&request(), now()).unwrap();
    assert_eq!(ca.examine(&leaf, &request(), now()), Renewal::Renew("it was signed by another authority"));
    let mixed = Leaf { cert_pem: ca.issue(&request(), now()).unwrap().cert_pem, key_pem: leaf.key_pem };
    assert_eq!(ca.examine(&mixed, &request(), now()), Renewal::Renew("the key is not the certificate's"));
    let damaged = Leaf { cert_pem: "damaged".to_owned(), key_pem: mixed.key_pem };
    assert_eq!(ca.examine(&damaged, &request(), now()), Renewal::Renew("the certificate cannot be read"));
}

#[test]
fn an_authority_is_read_back_and_a_wrong_key_is_refused() {
    let ca = Authority::generate("demo", "u-1", now()).unwrap();
    let again = Authority::load(&ca.cert_pem, &ca.key_pem).unwrap();
    let leaf = again.issue(&request(), now()).unwrap();
    assert_eq!(ca.examine(&leaf, &request(), now()), Renewal::Keep);
    let other = Authority::generate("demo", "u-1", now()).unwrap();
    let refused = Authority::load(&ca.cert_pem, &other.key_pem).err().unwrap();
    assert!(refused.to_string().contains("ca.key is not the key of ca.crt"), "{refused}");
}

#[test]
fn leaves_are_accepted_by_the_tls_of_the_services() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::generate("demo", "u-1", Timestamp::now()).unwrap();
    let leaf = ca.issue(&request(), Timestamp::now()).unwrap();
    for (name, text) in [("ca.crt", &ca.cert_pem), ("tls.crt", &leaf.cert_pem), ("tls.key", &leaf.key_pem)] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let files = kith_kit::config::Tls::in_dir(dir.path());
    kith_kit::tls::client_config(&files).unwrap();
    kith_kit::tls::server_config(&files, kith_kit::tls::ClientCerts::Required).unwrap();
}

#[test]
fn tokens_signed_with_the_keys_are_verified_by_the_published_set() {
    let dir = tempfile::tempdir().unwrap();
    let keys = TokenKeys::generate(Timestamp::now()).unwrap();
    for (name, text) in keys.files().unwrap() {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let signer = kith_clients::auth::Signer::load(dir.path(), "demo").unwrap();
    let verifier = kith_clients::auth::Verifier::load(dir.path(), "demo").unwrap();
    let (token, claims) = signer.sign("alice", "d1", "ios", "default", Duration::from_secs(60)).unwrap();
    assert_eq!(verifier.verify(&token).unwrap(), claims);
}

#[test]
fn token_keys_rotate_and_old_ones_stay_while_their_tokens_live() {
    let mut keys = TokenKeys::generate(now()).unwrap();
    let (month, day) = (30 * 86_400, 86_400);
    assert!(!keys.rotate(month, day, now() + days(29)).unwrap());
    assert!(keys.rotate(month, day, now() + days(31)).unwrap());
    assert_eq!(public_keys(&keys), 2);
    assert!(!keys.rotate(month, day, now() + days(32)).unwrap());
    assert!(keys.rotate(month, day, now() + days(33)).unwrap());
    assert_eq!(public_keys(&keys), 1);
}

fn public_keys(keys: &TokenKeys) -> usize {
    public_set(keys).unwrap()["keys"].as_array().unwrap().len()
}

#[test]
fn a_key_stays_as_long_as_the_longest_token_that_it_signed_whatever_is_asked_for_later() {
    let mut keys = TokenKeys::generate(now()).unwrap();
    let (month, day) = (30 * 86_400, 86_400);
    keys.rotate(month, month, now()).unwrap();
    // Stored, read back, and rotated daily with tokens of a day.
    let files = keys.files().unwrap();
    let mut keys = TokenKeys::load(files.iter().map(|(name, text)| (name.as_str(), text.as_str()))).unwrap();
    let first = files.keys().next().unwrap().clone();
    for n in 1..=30 {
        keys.rotate(day, day, now() + days(n)).unwrap();
        assert!(keys.files().unwrap().contains_key(&first), "day {n}: a token of 30 days still lives");
        assert!(public_keys(&keys) <= 4, "the others go with their tokens");
    }
    keys.rotate(day, day, now() + days(32)).unwrap();
    assert!(!keys.files().unwrap().contains_key(&first));
}

#[test]
fn engine_users_have_hashed_passwords_and_the_default_user_is_off() {
    let users = EngineUsers::generate();
    let files = users.files();
    let acl = &files["users.acl"];
    assert!(acl.starts_with("user default off "));
    for (user, _) in USERS {
        let password = users.password(user).unwrap();
        assert_eq!(password.len(), 64);
        assert!(!acl.contains(password), "{user}: the password itself is in the ACL file");
        assert!(acl.contains(&format!("user {user} on #")));
    }
    let stored = files.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    assert!(EngineUsers::load(stored).unwrap() == users);
    let missing = EngineUsers::load([("storage", "x")]).err().unwrap();
    assert!(missing.to_string().contains("operator"), "{missing}");
}
