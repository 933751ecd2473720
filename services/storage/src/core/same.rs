//! Whether a retry says the same as the message that stands: by value, not by bytes. The order of keys, escapes, white space and the order
//! of mentions say nothing, and differ from door to door.

use std::collections::{BTreeMap, BTreeSet};

use kith_proto::chat::v1::Draft;
use serde_json::value::RawValue;

use crate::codec::Row;

/// Levels of nesting up to which content is compared by value: those which the access layer takes. What is deeper is compared by its bytes.
const DEPTH: u32 = 128;

/// Whether `draft` is the message in `row`.
pub(super) fn message(row: &Row, draft: &Draft) -> bool {
    i32::from(row.kind) == draft.r#type
        && row.ext == draft.ext
        && row.mentions.iter().collect::<BTreeSet<_>>() == draft.mentions.iter().collect::<BTreeSet<_>>()
        && content(&row.content, &draft.content)
}

fn content(a: &[u8], b: &[u8]) -> bool {
    a == b || matches!((Value::read(a, DEPTH), Value::read(b, DEPTH)), (Some(a), Some(b)) if a == b)
}

/// A JSON value; numbers are exact.
#[derive(Debug, PartialEq, Eq)]
enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Self>),
    /// Of a key that comes twice the last value counts, as most readers have it.
    Object(BTreeMap<String, Self>),
}

impl Value {
    /// None: no JSON, nested too deeply, or a text that is none.
    fn read(json: &[u8], depth: u32) -> Option<Self> {
        let json = json.trim_ascii();
        let deeper = depth.checked_sub(1);
        Some(match json.first()? {
            b'{' => {
                let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(json).ok()?;
                let read =
                    |(name, value): (String, &RawValue)| Some((name, Self::read(value.get().as_bytes(), deeper?)?));
                Self::Object(fields.into_iter().map(read).collect::<Option<_>>()?)
            }
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_slice(json).ok()?;
                Self::List(items.into_iter().map(|v| Self::read(v.get().as_bytes(), deeper?)).collect::<Option<_>>()?)
            }
            b'"' => Self::Text(serde_json::from_slice(json).ok()?),
            b'-' | b'0'..=b'9' => Self::Number(Number::read(std::str::from_utf8(json).ok()?)?),
            b'n' => serde_json::from_slice(json).ok().map(|()| Self::Null)?,
            _ => Self::Bool(serde_json::from_slice(json).ok()?),
        })
    }
}

/// A decimal number: 0.`digits` times ten to the power of `exponent`, without zeros at either end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Number {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Number {
    /// Of a JSON number; none where the exponent is beyond all use.
    fn read(text: &str) -> Option<Self> {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (number, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = [whole, fraction].concat();
        let leading = digits.len() - digits.trim_start_matches('0').len();
        let digits = digits.trim_matches('0');
        if digits.is_empty() {
            return Some(Self::default());
        }
        let shift = i64::try_from(whole.len()).ok()?.checked_sub(i64::try_from(leading).ok()?)?;
        Some(Self { negative, digits: digits.to_owned(), exponent: exponent.parse::<i64>().ok()?.checked_add(shift)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_the_same_by_value_and_exact_numbers() {
        let same = [
            (r#"{"a":1,"b":[true,null]}"#, r#" { "b" : [ true , null ], "a" : 1 } "#),
            (r#"{"text":"\u00fc\/"}"#, r#"{"text":"ü/"}"#),
            (r#"{"a":1.50}"#, r#"{"a":1.5}"#),
            (r#"{"a":100}"#, r#"{"a":1e2}"#),
            (r#"{"a":0.05}"#, r#"{"a":5E-2}"#),
            (r#"{"a":-0.0}"#, r#"{"a":0}"#),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            ("{broken", "{broken"),
        ];
        for (a, b) in same {
            assert!(content(a.as_bytes(), b.as_bytes()) && content(b.as_bytes(), a.as_bytes()), "{a} {b}");
        }
        let other = [
            (r#"{"a":9007199254740993}"#, r#"{"a":9007199254740992}"#),
            (r#"{"a":0.1}"#, r#"{"a":0.10000000000000000001}"#),
            (r#"{"a":1}"#, r#"{"a":-1}"#),
            (r#"{"a":1}"#, r#"{"a":"1"}"#),
            (r#"{"a":[1,2]}"#, r#"{"a":[2,1]}"#),
            (r#"{"a":null}"#, "{}"),
            (r#"{"a":false}"#, r#"{"a":true}"#),
            ("{broken", "{\"a\":1}"),
        ];
        for (a, b) in other {
            assert!(!content(a.as_bytes(), b.as_bytes()) && !content(b.as_bytes(), a.as_bytes()), "{a} {b}");
        }
    }

    #[test]
    fn content_that_is_nested_beyond_what_is_taken_is_compared_by_its_bytes() {
        let nested = |n: usize| format!("{}1{}", r#"{"a":"#.repeat(n), "}".repeat(n)).into_bytes();
        let spaced = |n: usize| [b" ", nested(n).as_slice()].concat();
        assert!(content(&nested(100), &spaced(100)));
        let deep = 10_000;
        assert!(content(&nested(deep), &nested(deep)) && !content(&nested(deep), &spaced(deep)));
    }
}
