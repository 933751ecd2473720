//! Amounts as users write them: quantities (`10Gi`) and durations (`1h30m`).
//!
//! They stay text until they are needed, since an object that was stored under an older rule must still be readable.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// An amount that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct InvalidAmount {
    text: String,
    what: &'static str,
}

/// A number of bytes with an optional suffix, as in Kubernetes.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Quantity(pub String);

impl Quantity {
    /// The amount, rounded up to whole bytes.
    pub fn to_bytes(&self) -> Result<u64, InvalidAmount> {
        let invalid = || InvalidAmount { text: self.0.clone(), what: "a quantity such as 10Gi" };
        let split = self.0.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(self.0.len());
        let (number, suffix) = self.0.split_at(split);
        let factor = factor(suffix).ok_or_else(invalid)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.len() > 9 {
            return Err(invalid());
        }
        let scale = 10_u128.pow(fraction.len() as u32);
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| invalid())?;
        let bytes = digits.checked_mul(factor).ok_or_else(invalid)?.div_ceil(scale);
        u64::try_from(bytes).map_err(|_| invalid())
    }

    /// As `k8s-openapi` has it, for pod specs.
    pub fn to_k8s(&self) -> k8s_openapi::apimachinery::pkg::api::resource::Quantity {
        k8s_openapi::apimachinery::pkg::api::resource::Quantity(self.0.clone())
    }
}

fn factor(suffix: &str) -> Option<u128> {
    Some(match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u128.pow(2),
        "G" => 1000_u128.pow(3),
        "T" => 1000_u128.pow(4),
        "P" => 1000_u128.pow(5),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return None,
    })
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 24,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^[0-9]+([.][0-9]{1,9})?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$')",
                "message": "must be a number of bytes with an optional suffix k, M, G, T, P, Ki, Mi, Gi, Ti or Pi, for example 10Gi"
            }]
        })
    }
}

/// A length of time as whole numbers with units, the largest first.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Duration(pub String);

impl Duration {
    /// The length of time.
    pub fn to_std(&self) -> Result<std::time::Duration, InvalidAmount> {
        let invalid = || InvalidAmount { text: self.0.clone(), what: "a duration such as 1h30m" };
        let mut rest = self.0.as_str();
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total_ms: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
            let number: u64 = rest[..digits].parse().map_err(|_| invalid())?;
            rest = &rest[digits..];
            let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let unit_ms = match &rest[..unit] {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                _ => return Err(invalid()),
            };
            rest = &rest[unit..];
            total_ms = number.checked_mul(unit_ms).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(invalid)?;
        }
        Ok(std::time::Duration::from_millis(total_ms))
    }
}

impl From<&str> for Duration {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 20,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^([0-9]{1,9}(ms|s|m|h))+$')",
                "message": "must be a duration in whole hours (h), minutes (m), seconds (s) or milliseconds (ms), for example 1h30m"
            }]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration as Std;

    #[test]
    fn quantities_are_bytes() {
        let cases = [
            ("0", Some(0)),
            ("1500", Some(1500)),
            ("1k", Some(1000)),
            ("10Gi", Some(10 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("0.0001k", Some(1)),
            ("16000Pi", Some(16000 << 50)),
            ("", None),
            ("Gi", None),
            (".5Gi", None),
            ("1e3", None),
            ("-1", None),
            ("1gi", None),
            ("99999999999999999999", None),
            ("1.0000000000", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(Quantity::from(text).to_bytes().ok(), bytes, "{text}");
        }
    }

    #[test]
    fn durations_add_their_parts() {
        let cases = [
            ("30s", Some(Std::from_secs(30))),
            ("1h30m", Some(Std::from_secs(5400))),
            ("1s500ms", Some(Std::from_millis(1500))),
            ("0s", Some(Std::ZERO)),
            ("", None),
            ("5", None),
            ("s", None),
            ("1d", None),
            ("1.5h", None),
            ("-1s", None),
            ("99999999999999999999h", None),
            ("9999999999999999999h", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Duration::from(text).to_std().ok(), expected, "{text}");
        }
    }
}
