//! How JSON spells what it has no type for: 64-bit integers as strings, objects that are never arrays.

use std::{borrow::Cow, fmt, marker::PhantomData, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema, transform::RecursiveTransform};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, value::MapAccessDeserializer},
};

/// What a client gives as a JSON object, and never as an array: a derived struct would take its fields from one by their order. Stands at
/// every place of a body or frame where a struct is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

impl<T: Serialize> Serialize for Object<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// An unsigned 64-bit integer: a string in what we write, a string or a number in what we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct U64(pub u64);

/// A signed one, for times in Unix ms and orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct I64(pub i64);

impl Serialize for U64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl Serialize for I64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for U64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        integer(deserializer, "an unsigned 64-bit integer as a string").map(Self)
    }
}

impl<'de> Deserialize<'de> for I64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        integer(deserializer, "a 64-bit integer as a string").map(Self)
    }
}

/// Integers that a string may spell.
trait Integer: FromStr + TryFrom<u64> + TryFrom<i64> {}
impl Integer for u64 {}
impl Integer for i64 {}

fn integer<'de, T: Integer, D: Deserializer<'de>>(deserializer: D, expected: &'static str) -> Result<T, D::Error> {
    struct Visitor<T>(&'static str, PhantomData<T>);
    impl<T: Integer> de::Visitor<'_> for Visitor<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
            T::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
            T::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
        }
        fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
            let digits = value.strip_prefix('-').unwrap_or(value);
            let spelt = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let parsed = spelt.then(|| value.parse().ok()).flatten();
            parsed.ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
        }
    }
    deserializer.deserialize_any(Visitor(expected, PhantomData))
}

/// For `#[serde(with = "Decimal")]`: an integer field that JSON has as a string.
pub struct Decimal;

impl Decimal {
    /// Writes the integer as a string.
    // By reference, as serde hands fields over.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub fn serialize<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads it from a string or a number.
    #[allow(private_bounds)]
    pub fn deserialize<'de, T: Integer, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        integer(deserializer, "a 64-bit integer as a string")
    }
}

/// The same for a field that may be null or absent.
pub struct MaybeDecimal;

impl MaybeDecimal {
    /// Writes the integer as a string, none as null.
    #[allow(clippy::ref_option)]
    pub fn serialize<T: fmt::Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    /// Reads it from a string or a number, null as none.
    #[allow(private_bounds)]
    pub fn deserialize<'de, T: Integer, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
        struct One<T>(T);
        impl<'de, T: Integer> Deserialize<'de> for One<T> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                integer(deserializer, "a 64-bit integer as a string").map(One)
            }
        }
        Ok(Option::<One<T>>::deserialize(deserializer)?.map(|One(value)| value))
    }
}

/// For `#[serde(with = "Whole")]`: a count, a number in JSON; a string is taken, too.
pub struct Whole;

impl Whole {
    /// Writes the number.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(*value)
    }

    /// Reads it from a number or a string.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        integer(deserializer, "a whole number")
    }
}

/// For `#[schemars(with = "AnyObject")]`: JSON that is an object, and whose fields are its writer's.
pub struct AnyObject;

/// Says what the JSON of a type looks like, inside of whatever holds it.
macro_rules! spelt_as {
    ($($type:ty: $name:literal, $schema:tt;)*) => {$(
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}
spelt_as! {
    U64: "U64", {"type": "string", "pattern": "^[0-9]+$"};
    I64: "I64", {"type": "string", "pattern": "^-?[0-9]+$"};
    Decimal: "Decimal", {"type": "string", "pattern": "^-?[0-9]+$"};
    MaybeDecimal: "MaybeDecimal", {"type": ["string", "null"], "pattern": "^-?[0-9]+$"};
    Whole: "Whole", {"type": "integer", "minimum": 0};
    AnyObject: "Object", {"type": "object"};
}

/// The JSON Schema (2020-12) of what a type is written as.
pub fn schema<T: JsonSchema>() -> serde_json::Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    // Defaults are what readers do without; it is described what is written.
    let plain = RecursiveTransform(|schema: &mut Schema| drop(schema.remove("default")));
    let settings = settings.with(|settings| settings.inline_subschemas = true).with_transform(plain);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn an_object_is_never_taken_from_an_array() {
        #[derive(Debug, Deserialize)]
        struct Inner<'a> {
            #[serde(borrow)]
            raw: &'a RawValue,
            #[serde(default)]
            seq: Option<U64>,
        }
        #[derive(Debug, Deserialize)]
        struct Outer<'a> {
            #[serde(borrow)]
            items: Vec<Object<Inner<'a>>>,
        }
        fn read(text: &str) -> Result<Object<Outer<'_>>, serde_json::Error> {
            serde_json::from_str(text)
        }
        let Object(outer) = read(r#"{"items":[{"raw":{"a": 1.50},"seq":"7"}]}"#).unwrap();
        assert_eq!((outer.items[0].0.raw.get(), outer.items[0].0.seq), (r#"{"a": 1.50}"#, Some(U64(7))));
        for bad in
            ["[[]]", r#"[[{"raw":1}]]"#, r#"{"items":[[1,"7"]]}"#, r#"{"items":[{"raw":1},[1]]}"#, "null", "1", "\"\""]
        {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("expected an object"), "{bad}: {error}");
        }
    }

    #[test]
    fn integers_are_taken_as_strings_and_as_numbers() {
        assert_eq!(serde_json::from_str::<U64>("\"18446744073709551615\"").unwrap(), U64(u64::MAX));
        assert_eq!(serde_json::from_str::<U64>("7").unwrap(), U64(7));
        for bad in ["\"\"", "\"+1\"", "\"-1\"", "-1", "1.5", "\"18446744073709551616\"", "null", "true"] {
            assert!(serde_json::from_str::<U64>(bad).is_err(), "{bad}");
        }
        for (text, value) in [("\"-7\"", -7), ("-7", -7), ("\"9223372036854775807\"", i64::MAX)] {
            assert_eq!(serde_json::from_str::<I64>(text).unwrap(), I64(value));
        }
        for bad in ["\"--1\"", "\"-\"", "\"9223372036854775808\"", "9223372036854775808"] {
            assert!(serde_json::from_str::<I64>(bad).is_err(), "{bad}");
        }
    }
}
