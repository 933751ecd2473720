//! A value of an event that only storage's function knows, in the moment in which it writes: the one place where it is left out and put in.
//!
//! The function looks for one byte, which JSON text never holds, and puts the value there (`services/storage/lua`). So the events of
//! cursors and of entries that give way are written before it is known what they will say.

use std::{borrow::Cow, fmt::Display};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The byte. Fixed: the function library of every version looks for it.
pub const MARK: char = '\u{1}';
/// As JSON spells it inside a string.
const SPELT: &str = "\\u0001";

/// A value that is there, or will be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<T> {
    /// It.
    Is(T),
    /// Put in by [`fill`], or by storage's function.
    Later,
}

impl<T> Found<T> {
    /// The value; none where it was not put in.
    pub fn told(self) -> Option<T> {
        match self {
            Self::Is(value) => Some(value),
            Self::Later => None,
        }
    }
}

impl<T: Serialize> Serialize for Found<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Is(value) => value.serialize(serializer),
            Self::Later => serializer.serialize_char(MARK),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Found<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::Is)
    }
}

impl<T: JsonSchema> JsonSchema for Found<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// JSON whose value will be found, ready for [`fill`]: the byte itself in place of its escape.
pub fn open(json: &str) -> String {
    let mut mark = [0; 4];
    json.replace(SPELT, MARK.encode_utf8(&mut mark))
}

/// Puts the value in. It goes between quotation marks as it is: a number, or an id, whose alphabet needs no escapes.
pub fn fill(open: &[u8], found: impl Display) -> String {
    String::from_utf8_lossy(open).replace(MARK, &found.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::U64;

    #[test]
    fn what_is_found_later_reads_like_what_was_known() {
        let later = serde_json::to_string(&("a\\u0002", Found::<U64>::Later)).unwrap();
        let filled = fill(open(&later).as_bytes(), u64::MAX);
        let known = serde_json::to_string(&("a\\u0002", Found::Is(U64(u64::MAX)))).unwrap();
        assert_eq!(filled, known);
        assert_eq!(serde_json::from_str::<(String, Found<U64>)>(&filled).unwrap().1.told(), Some(U64(u64::MAX)));
    }
}
