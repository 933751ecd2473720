//! The ids of the external contract: what is a valid one, and which partition holds its entity.

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

/// Longest user, device and client message id, in bytes.
pub const MAX_ID_BYTES: usize = 64;

/// Longest conversation id: `d:`, two user ids and a colon.
pub const MAX_CONVERSATION_ID_BYTES: usize = 2 * MAX_ID_BYTES + 3;

/// Why an id was refused; says the field and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// Nothing was given.
    #[error("{field}: must not be empty")]
    Empty {
        /// The field as the caller named it.
        field: &'static str,
    },
    /// Over the limit.
    #[error("{field}: {len} bytes, at most {max}")]
    TooLong {
        /// The field as the caller named it.
        field: &'static str,
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A byte outside the alphabet.
    #[error("{field}: only A-Z a-z 0-9 . _ : @ - are allowed")]
    Alphabet {
        /// The field as the caller named it.
        field: &'static str,
    },
    /// Neither `d:<a>:<b>` with sorted users, nor `g:<ULID>`, nor `s:<id>`.
    #[error("{field}: not a conversation id (d:<a>:<b> with the users sorted, g:<ULID> or s:<id>)")]
    Conversation {
        /// The field as the caller named it.
        field: &'static str,
    },
    /// A direct conversation with oneself.
    #[error("{field}: a direct conversation needs two different users")]
    Same {
        /// The field as the caller named it.
        field: &'static str,
    },
}

const fn is_id_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'@' | b'-')
}

/// Checks a user, device or client message id: 1 to 64 bytes of `[A-Za-z0-9._:@-]`.
pub fn check_id(field: &'static str, id: &str) -> Result<(), IdError> {
    check_bytes(field, id, MAX_ID_BYTES)
}

fn check_bytes(field: &'static str, id: &str, max: usize) -> Result<(), IdError> {
    if id.is_empty() {
        Err(IdError::Empty { field })
    } else if id.len() > max {
        Err(IdError::TooLong { field, len: id.len(), max })
    } else if id.bytes().all(is_id_byte) {
        Ok(())
    } else {
        Err(IdError::Alphabet { field })
    }
}

/// What a conversation id says about its conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConversationId {
    /// `d:<a>:<b>`. User ids may hold colons, so the two users are not always to be read from it: the member rows tell.
    Direct,
    /// `g:<ULID>`
    Group,
    /// `s:<id>`
    System,
}

/// Checks a conversation id and tells its kind.
pub fn check_conversation_id(field: &'static str, id: &str) -> Result<ConversationId, IdError> {
    check_bytes(field, id, MAX_CONVERSATION_ID_BYTES)?;
    let invalid = IdError::Conversation { field };
    match id.split_once(':') {
        Some(("d", rest)) if direct_users(rest).next().is_some() => Ok(ConversationId::Direct),
        Some(("g", rest)) if rest.len() == 26 && rest.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            Ok(ConversationId::Group)
        }
        Some(("s", rest)) if !rest.is_empty() && rest.len() <= MAX_ID_BYTES => Ok(ConversationId::System),
        _ => Err(invalid),
    }
}

/// Every way to read two sorted users out of what follows `d:`; more than one when the ids hold colons.
fn direct_users(rest: &str) -> impl Iterator<Item = (&str, &str)> {
    rest.match_indices(':')
        .map(|(at, _)| (&rest[..at], &rest[at + 1..]))
        .filter(|(a, b)| !a.is_empty() && !b.is_empty() && a < b && a.len() <= MAX_ID_BYTES && b.len() <= MAX_ID_BYTES)
}

/// The users that `user` may be talking to in the direct conversation `id`: one, or several where ids hold colons. Empty when the id
/// is not a direct conversation of `user`.
pub fn direct_peers<'a>(id: &'a str, user: &str) -> Vec<&'a str> {
    let Some(rest) = id.strip_prefix("d:") else { return Vec::new() };
    direct_users(rest)
        .filter_map(|(a, b)| match (a == user, b == user) {
            (true, _) => Some(b),
            (_, true) => Some(a),
            _ => None,
        })
        .collect()
}

/// The id of the direct conversation of two users, whatever their order.
pub fn direct_conversation_id(a: &str, b: &str) -> Result<String, IdError> {
    check_id("user_id", a)?;
    check_id("user_id", b)?;
    match a.cmp(b) {
        std::cmp::Ordering::Less => Ok(format!("d:{a}:{b}")),
        std::cmp::Ordering::Greater => Ok(format!("d:{b}:{a}")),
        std::cmp::Ordering::Equal => Err(IdError::Same { field: "recipient_id" }),
    }
}

/// The partition that holds an entity: `xxh3_64(id) mod partitions` (DESIGN 3).
pub fn partition_of(id: &str, partitions: u32) -> u32 {
    (xxh3_64(id.as_bytes()) % u64::from(partitions)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_outside_the_alphabet_or_the_limits_are_refused_by_name() {
        assert_eq!(check_id("user_id", ""), Err(IdError::Empty { field: "user_id" }));
        assert_eq!(check_id("user_id", "a b"), Err(IdError::Alphabet { field: "user_id" }));
        assert!(check_id("user_id", &"x".repeat(64)).is_ok());
        assert!(matches!(check_id("user_id", &"x".repeat(65)), Err(IdError::TooLong { len: 65, .. })));
    }

    #[test]
    fn conversation_ids_are_told_apart() {
        assert_eq!(check_conversation_id("c", "d:alice:bob"), Ok(ConversationId::Direct));
        assert_eq!(check_conversation_id("c", "g:01ARZ3NDEKTSV4RRFFQ69G5FAV"), Ok(ConversationId::Group));
        assert!(check_conversation_id("c", "d:bob:alice").is_err());
        assert!(check_conversation_id("c", "d:bob:bob").is_err());
        assert!(check_conversation_id("c", "x:1").is_err());
        assert!(check_conversation_id("c", "d:").is_err());
    }

    #[test]
    fn a_user_with_colons_finds_the_peer() {
        let id = direct_conversation_id("app:1", "app:2").unwrap();
        assert_eq!(direct_peers(&id, "app:1"), ["app:2"]);
        assert!(direct_peers(&id, "app").iter().all(|p| *p != "app:2"));
    }

    proptest! {
        #[test]
        fn a_direct_id_is_the_same_from_both_sides_and_valid(a in "[A-Za-z0-9._:@-]{1,64}", b in "[A-Za-z0-9._:@-]{1,64}") {
            prop_assume!(a != b);
            let id = direct_conversation_id(&a, &b).unwrap();
            prop_assert_eq!(&id, &direct_conversation_id(&b, &a).unwrap());
            prop_assert_eq!(check_conversation_id("c", &id), Ok(ConversationId::Direct));
            prop_assert!(direct_peers(&id, &a).contains(&b.as_str()));
        }
    }
}
