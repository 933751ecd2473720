//! The users of the storage engine: random passwords and the ACL file that holds their hashes.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::{PkiError, hex};

/// Whom the service `storage` logs in as.
pub const STORAGE: &str = "storage";
/// Whom the operator logs in as.
pub const OPERATOR: &str = "operator";

/// Users with what they may do, in the words of Valkey's ACL.
///
/// `storage` may do what data needs and may read the topology, but changes neither nodes nor functions. `replication` is the engine's
/// own: besides the replication stream, a slot move between primaries may hold any write command.
pub const USERS: [(&str, &str); 4] = [
    (
        STORAGE,
        "~* &* +@all -@admin -@dangerous -@scripting +fcall +fcall_ro +function|list +info +cluster|info +cluster|myid +cluster|myshardid +cluster|nodes +cluster|shards +cluster|slots +cluster|keyslot +role",
    ),
    (OPERATOR, "~* &* +@all"),
    ("probe", "resetkeys resetchannels -@all +ping +info +role +cluster|info +hello +client|setinfo"),
    ("replication", "~* &* +@all"),
];

/// Passwords by user.
#[derive(Clone, PartialEq, Eq)]
pub struct EngineUsers(BTreeMap<String, String>);

impl EngineUsers {
    /// New random passwords for all users.
    pub fn generate() -> Self {
        let password = || hex(&rand::random::<[u8; 32]>());
        Self(USERS.iter().map(|(user, _)| ((*user).to_owned(), password())).collect())
    }

    /// Reads the stored passwords; every user must have one.
    pub fn load<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, PkiError> {
        let found: BTreeMap<&str, &str> = entries.into_iter().collect();
        let mut passwords = BTreeMap::new();
        for (user, _) in USERS {
            match found.get(user) {
                Some(password) if !password.is_empty() && !password.contains(char::is_whitespace) => {
                    passwords.insert(user.to_owned(), (*password).to_owned());
                }
                Some(_) => {
                    return Err(PkiError::read(
                        "engine users",
                        format!("the password of {user} is empty or holds spaces"),
                    ));
                }
                None => return Err(PkiError::read("engine users", format!("the password of {user} is missing"))),
            }
        }
        Ok(Self(passwords))
    }

    /// The password of `user`.
    pub fn password(&self, user: &str) -> Option<&str> {
        self.0.get(user).map(String::as_str)
    }

    /// The files of the Secret: one password per user, the ACL file and the replication settings.
    pub fn files(&self) -> BTreeMap<String, String> {
        let mut files = self.0.clone();
        let mut acl = String::from("user default off resetkeys resetchannels -@all\n");
        for (user, rules) in USERS {
            let hash = hex(&Sha256::digest(self.0[user].as_bytes()));
            acl.push_str(&format!("user {user} on #{hash} {rules}\n"));
        }
        files.insert("users.acl".to_owned(), acl);
        files.insert(
            "replication.conf".to_owned(),
            format!("primaryuser replication\nprimaryauth {}\n", self.0["replication"]),
        );
        files
    }
}
