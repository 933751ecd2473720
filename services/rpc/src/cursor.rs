//! Paging cursors: text that is given out with a page and comes back for the next one.
//!
//! A cursor is opaque, versioned, and bound to the list and the caller that it was made for: whatever was not given out for the same
//! list of the same caller by the same cluster is INVALID_ARGUMENT. It is no secret and no permission: who reads a list is checked
//! with every page, and what stands in a cursor is only a place, which its list must treat as an untrusted number.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::error::Error;

/// The form of what follows; a cursor of another one is refused, and its client starts the list anew.
const VERSION: u8 = 1;
const SUM_BYTES: usize = 8;
/// The longest cursor: more than any list gives out.
const MOST_BYTES: usize = 2_048;

/// Writes and reads the cursors of one cluster.
#[derive(Debug, Clone, Copy)]
pub struct Cursors {
    seed: u64,
}

impl Cursors {
    /// Cursors of the cluster with this UID; another's are refused.
    pub fn new(cluster_uid: &str) -> Self {
        Self { seed: xxh3_64(cluster_uid.as_bytes()) }
    }

    /// The cursor of a place in a list. `owner` says whose list it is: everything that must be the same in the next call.
    pub fn write<P: Serialize>(self, list: &str, owner: &[&str], place: &P) -> Result<String, Error> {
        let place = serde_json::to_vec(place).map_err(|e| Error::internal(format!("a cursor of {list}: {e}")))?;
        let mut bytes = Vec::with_capacity(1 + SUM_BYTES + place.len());
        bytes.push(VERSION);
        bytes.extend(self.sum(list, owner, &place));
        bytes.extend(&place);
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The place of a cursor that [`Cursors::write`] gave out for the same list and owner; none for the empty one, which begins the list.
    pub fn read<P: DeserializeOwned>(self, list: &str, owner: &[&str], cursor: &str) -> Result<Option<P>, Error> {
        if cursor.is_empty() {
            return Ok(None);
        }
        self.place(list, owner, cursor)
            .map(Some)
            .ok_or_else(|| Error::invalid("cursor: not one that was given out for this list: begin without a cursor"))
    }

    fn place<P: DeserializeOwned>(self, list: &str, owner: &[&str], cursor: &str) -> Option<P> {
        if cursor.len() > MOST_BYTES {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (sum, place) = rest.split_at_checked(SUM_BYTES)?;
        let whole = *version == VERSION && sum == self.sum(list, owner, place);
        whole.then(|| serde_json::from_slice(place).ok())?
    }

    fn sum(self, list: &str, owner: &[&str], place: &[u8]) -> [u8; SUM_BYTES] {
        let mut hash = Xxh3::with_seed(self.seed);
        let parts = [list].into_iter().chain(owner.iter().copied()).map(str::as_bytes);
        for part in parts.chain([place]) {
            // With its length: parts that are glued together in another way are other parts.
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.digest().to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    type Place = (i64, u64, String);

    proptest! {
        #[test]
        fn a_cursor_is_read_by_its_own_list_and_owner_alone(score in any::<i64>(), number in any::<u64>(), id in "\\PC{0,130}") {
            let cursors = Cursors::new("uid");
            let place = (score, number, id);
            let text = cursors.write("friends", &["alice", "phone"], &place).unwrap();
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{} in a URL", text);
            prop_assert_eq!(cursors.read::<Place>("friends", &["alice", "phone"], &text).unwrap(), Some(place));
            let others = [
                (cursors, "blocks", vec!["alice", "phone"]),
                (cursors, "friends", vec!["bob", "phone"]),
                (cursors, "friends", vec!["alicephone"]),
                (cursors, "friends", vec!["alicep", "hone"]),
                (Cursors::new("another"), "friends", vec!["alice", "phone"]),
            ];
            for (cursors, list, owner) in others {
                let refused = cursors.read::<Place>(list, &owner, &text).unwrap_err();
                prop_assert!(refused.code == Code::InvalidArgument && refused.detail.starts_with("cursor:"));
            }
        }

        #[test]
        fn text_that_was_not_given_out_is_refused(text in "\\PC{1,80}", at in any::<prop::sample::Index>(), other in "[A-Za-z0-9_-]") {
            let cursors = Cursors::new("uid");
            prop_assert!(cursors.read::<Place>("friends", &["alice"], &text).is_err());
            let mut given = cursors.write("friends", &["alice"], &(1_i64, 2_u64, "x".to_owned())).unwrap();
            let at = at.index(given.len());
            if given[at..=at] != other {
                given.replace_range(at..=at, &other);
                prop_assert!(cursors.read::<Place>("friends", &["alice"], &given).is_err());
            }
        }
    }
}
