//! The ids of the external contract: what is a valid one, what it is made of, and which partition holds its entity.
//!
//! An id that is glued from parts parses back to exactly these parts: its separator, the colon, stands in none of them. So one
//! conversation id names one set of members, always.

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

/// Longest user id, device id, client message id, line and channel, in bytes.
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
    /// A byte outside the alphabet of users and devices.
    #[error("{field}: only A-Z a-z 0-9 . _ @ - are allowed")]
    Alphabet {
        /// The field as the caller named it.
        field: &'static str,
    },
    /// A byte outside the alphabet of client message ids.
    #[error("{field}: only A-Z a-z 0-9 . _ : @ - are allowed")]
    ClientAlphabet {
        /// The field as the caller named it.
        field: &'static str,
    },
    /// Words that mean something else: `@all` is no user, and `.` and `..` do not survive a URL.
    #[error("{field}: must not begin with @, nor be . or ..")]
    Reserved {
        /// The field as the caller named it.
        field: &'static str,
    },
    /// None of the three forms.
    #[error(
        "{field}: not a conversation id (d:<a>:<b> with the users sorted, g:<ULID> in capitals, or s:<line>:<channel>)"
    )]
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
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'@' | b'-')
}

fn check_length(field: &'static str, id: &str, max: usize) -> Result<(), IdError> {
    match id.len() {
        0 => Err(IdError::Empty { field }),
        len if len > max => Err(IdError::TooLong { field, len, max }),
        _ => Ok(()),
    }
}

/// Checks a user or device id: 1 to 64 bytes of `[A-Za-z0-9._@-]`, not beginning with `@`, neither `.` nor `..`.
pub fn check_id(field: &'static str, id: &str) -> Result<(), IdError> {
    check_length(field, id, MAX_ID_BYTES)?;
    if !id.bytes().all(is_id_byte) {
        return Err(IdError::Alphabet { field });
    }
    if id.starts_with('@') || matches!(id, "." | "..") {
        return Err(IdError::Reserved { field });
    }
    Ok(())
}

/// Checks a client message id: 1 to 64 bytes of `[A-Za-z0-9._:@-]`. It is part of no other id and of no path, so more is allowed than in
/// the id of a user.
pub fn check_client_msg_id(id: &str) -> Result<(), IdError> {
    let field = "client_msg_id";
    check_length(field, id, MAX_ID_BYTES)?;
    if id.bytes().all(|b| is_id_byte(b) || b == b':') { Ok(()) } else { Err(IdError::ClientAlphabet { field }) }
}

/// What a conversation id says about its conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConversationId<'a> {
    /// `d:<a>:<b>`: the conversation of these two users, who are sorted, and of nobody else.
    Direct(&'a str, &'a str),
    /// `g:<ULID>`
    Group(&'a str),
    /// `s:<line>:<channel>`
    System {
        /// The business line whose channel it is.
        line: &'a str,
        /// Its name within the line.
        channel: &'a str,
    },
}

impl<'a> ConversationId<'a> {
    /// Reads an id; none if it is not one of a conversation.
    pub fn parse(id: &'a str) -> Option<Self> {
        let valid = |part: &&str| check_id("", part).is_ok();
        let (kind, rest) = id.split_once(':')?;
        if kind == "g" {
            return is_ulid(rest).then_some(Self::Group(rest));
        }
        // A second colon in the latter part is refused with it.
        let (first, second) = rest.split_once(':').filter(|(a, b)| valid(a) && valid(b))?;
        match kind {
            "d" if first < second => Some(Self::Direct(first, second)),
            "s" => Some(Self::System { line: first, channel: second }),
            _ => None,
        }
    }

    /// Whether this user can be a member: of a direct conversation its two users alone.
    pub fn admits(&self, user: &str) -> bool {
        match self {
            Self::Direct(a, b) => *a == user || *b == user,
            Self::Group(_) | Self::System { .. } => true,
        }
    }

    /// The other user of the direct conversation in which `user` is.
    pub fn peer_of(&self, user: &str) -> Option<&'a str> {
        match *self {
            Self::Direct(a, b) if a == user => Some(b),
            Self::Direct(a, b) if b == user => Some(a),
            _ => None,
        }
    }
}

/// Whether this is a ULID as we mint them: 26 capitals and digits of Crockford's alphabet, of 128 bits.
fn is_ulid(text: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b.is_ascii_uppercase() && !matches!(b, b'I' | b'L' | b'O' | b'U'));
    text.len() == 26 && text.as_bytes()[0] <= b'7' && text.bytes().all(digit)
}

/// Checks a conversation id and tells what it says.
pub fn check_conversation_id<'a>(field: &'static str, id: &'a str) -> Result<ConversationId<'a>, IdError> {
    check_length(field, id, MAX_CONVERSATION_ID_BYTES)?;
    ConversationId::parse(id).ok_or(IdError::Conversation { field })
}

/// The other user of the direct conversation `id`; none when it is not a direct conversation of `user`.
pub fn direct_peer<'a>(id: &'a str, user: &str) -> Option<&'a str> {
    ConversationId::parse(id)?.peer_of(user)
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
        for bad in ["a b", "a:b", ":", "a/b", "é"] {
            assert_eq!(check_id("user_id", bad), Err(IdError::Alphabet { field: "user_id" }), "{bad}");
        }
        assert!(check_id("user_id", &"x".repeat(64)).is_ok());
        assert!(matches!(check_id("user_id", &"x".repeat(65)), Err(IdError::TooLong { len: 65, .. })));
    }

    #[test]
    fn ids_that_mean_something_else_or_do_not_survive_a_url_are_refused() {
        for bad in [".", "..", "@", "@all", "@bob"] {
            assert_eq!(check_id("user_id", bad), Err(IdError::Reserved { field: "user_id" }), "{bad}");
        }
        for good in ["...", ".a", "a@b", "-", "_"] {
            assert_eq!(check_id("user_id", good), Ok(()), "{good}");
        }
    }

    #[test]
    fn a_client_message_id_may_hold_a_colon_and_nothing_more_than_it_could() {
        for good in ["c:1", "@1", ".", &"x".repeat(64)] {
            assert_eq!(check_client_msg_id(good), Ok(()), "{good}");
        }
        for bad in ["", "a b", "a/b", &"x".repeat(65)] {
            assert!(check_client_msg_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn conversation_ids_are_told_apart() {
        let parse = ConversationId::parse;
        assert_eq!(parse("d:alice:bob"), Some(ConversationId::Direct("alice", "bob")));
        assert_eq!(parse("g:01ARZ3NDEKTSV4RRFFQ69G5FAV"), Some(ConversationId::Group("01ARZ3NDEKTSV4RRFFQ69G5FAV")));
        assert_eq!(parse("s:shop:news"), Some(ConversationId::System { line: "shop", channel: "news" }));
        for bad in [
            "",
            "d",
            "d:",
            "d::",
            "d:a",
            "d:a:",
            "d::b",
            "d:bob:alice",
            "d:bob:bob",
            "d:a:b:c",
            "d:a:b:",
            "d:.:a",
            "d:@all:bob",
            "x:1",
            "x:a:b",
            "D:a:b",
            "s:news",
            "s:",
            "s::news",
            "s:a:b:c",
            "g:",
            "g:1",
            "g:01arz3ndektsv4rrffq69g5fav",
            "g:01ARZ3NDEKTSV4RRFFQ69G5FAU",
            "g:81ARZ3NDEKTSV4RRFFQ69G5FAV",
            "g:01ARZ3NDEKTSV4RRFFQ69G5FA",
            "g:01ARZ3NDEKTSV4RRFFQ69G5FAVX",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
            assert!(check_conversation_id("c", bad).is_err(), "{bad}");
        }
        assert!(check_conversation_id("c", &format!("d:{}:{}", "a".repeat(64), "b".repeat(64))).is_ok());
        assert!(check_conversation_id("c", &format!("d:{}:{}", "a".repeat(64), "b".repeat(65))).is_err());
    }

    #[test]
    fn a_direct_conversation_admits_its_two_users_and_nobody_else() {
        let direct = ConversationId::parse("d:alice:bob").unwrap();
        assert!(direct.admits("alice") && direct.admits("bob"));
        assert!(!direct.admits("carol") && !direct.admits("") && !direct.admits("alice:bob"));
        assert_eq!((direct.peer_of("bob"), direct.peer_of("carol")), (Some("alice"), None));
        assert!(ConversationId::parse("g:01ARZ3NDEKTSV4RRFFQ69G5FAV").unwrap().admits("anyone"));
    }

    proptest! {
        #[test]
        fn a_direct_id_is_the_same_from_both_sides_and_parses_to_its_users(a in "[A-Za-z0-9._@-]{1,64}", b in "[A-Za-z0-9._@-]{1,64}") {
            prop_assume!(a != b && check_id("", &a).is_ok() && check_id("", &b).is_ok());
            let id = direct_conversation_id(&a, &b).unwrap();
            prop_assert_eq!(&id, &direct_conversation_id(&b, &a).unwrap());
            let (low, high) = if a < b { (&a, &b) } else { (&b, &a) };
            prop_assert_eq!(check_conversation_id("c", &id), Ok(ConversationId::Direct(low, high)));
            prop_assert_eq!(direct_peer(&id, &a), Some(b.as_str()));
        }

        #[test]
        fn an_id_that_parses_is_the_one_that_its_parts_make(id in "[dgs]:[a-c:.@A-Z0-9]{0,28}") {
            let made = match ConversationId::parse(&id) {
                None => return Ok(()),
                Some(ConversationId::Direct(a, b)) => direct_conversation_id(a, b).unwrap(),
                Some(ConversationId::Group(ulid)) => format!("g:{ulid}"),
                Some(ConversationId::System { line, channel }) => format!("s:{line}:{channel}"),
            };
            prop_assert_eq!(made, id);
        }
    }
}
