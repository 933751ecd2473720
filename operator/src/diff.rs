//! Whether an object on the API server already says what is wanted, so that nothing needs to be written. Pure.

use serde_json::{Map, Value};

/// Whether `live` holds everything of `wanted`. What only `live` has (defaults of the API server, other managers' fields) does not
/// count. Lists match element by element, except finalizers and owner references, which others add to as well.
pub fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => contains_map(live, wanted),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(l, w)| contains(l, w))
        }
        (Value::String(live), Value::String(wanted)) => live == wanted || same_amount(live, wanted),
        (Value::Null, wanted) => is_empty(wanted),
        (live, wanted) => live == wanted,
    }
}

fn contains_map(live: &Map<String, Value>, wanted: &Map<String, Value>) -> bool {
    wanted.iter().all(|(key, wanted)| match (key.as_str(), live.get(key)) {
        ("finalizers" | "ownerReferences", Some(Value::Array(live))) => {
            wanted.as_array().is_some_and(|wanted| wanted.iter().all(|w| live.iter().any(|l| contains(l, w))))
        }
        (_, Some(live)) => contains(live, wanted),
        (_, None) => is_empty(wanted),
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Whether two texts are the same Kubernetes quantity: the API server rewrites `1000m` as `1`.
fn same_amount(a: &str, b: &str) -> bool {
    matches!((amount(a), amount(b)), (Some(a), Some(b)) if a == b)
}

/// A quantity in billionths.
fn amount(text: &str) -> Option<i128> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let scale: i128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => 1_000_000_000,
        "k" => 1_000_000_000_000,
        "M" => 10_i128.pow(15),
        "G" => 10_i128.pow(18),
        "T" => 10_i128.pow(21),
        "P" => 10_i128.pow(24),
        "Ki" => (1 << 10) * 1_000_000_000,
        "Mi" => (1 << 20) * 1_000_000_000,
        "Gi" => (1 << 30) * 1_000_000_000,
        "Ti" => (1 << 40) * 1_000_000_000,
        "Pi" => (1 << 50) * 1_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || whole.len() > 12 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    Some(digits.checked_mul(scale)? / 10_i128.pow(fraction.len() as u32))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_of_the_api_server_are_no_difference() {
        let wanted =
            json!({"spec": {"containers": [{"name": "a", "args": ["x"]}], "volumes": [{"emptyDir": {}}], "none": []}});
        let live = json!({"spec": {"containers": [{"name": "a", "args": ["x"], "terminationMessagePath": "/dev/x"}],
            "volumes": [{"emptyDir": {}}], "dnsPolicy": "ClusterFirst"}});
        assert!(contains(&live, &wanted));
    }

    #[test]
    fn a_changed_a_missing_and_an_added_element_are_differences() {
        let wanted = json!({"a": [{"n": 1}, {"n": 2}], "s": "x"});
        for live in [
            json!({"a": [{"n": 1}, {"n": 3}], "s": "x"}),
            json!({"a": [{"n": 1}], "s": "x"}),
            json!({"a": [{"n": 1}, {"n": 2}, {"n": 3}], "s": "x"}),
            json!({"a": [{"n": 1}, {"n": 2}], "s": "y"}),
            json!({"s": "x"}),
        ] {
            assert!(!contains(&live, &wanted), "{live}");
        }
    }

    #[test]
    fn equal_quantities_in_other_words_are_no_difference() {
        for (a, b, same) in [
            ("1000m", "1", true),
            ("1024Mi", "1Gi", true),
            ("0.5", "500m", true),
            ("1", "2", false),
            ("ab", "cd", false),
        ] {
            assert_eq!(contains(&json!(a), &json!(b)), same, "{a} {b}");
        }
    }

    #[test]
    fn finalizers_of_others_are_no_difference() {
        let live = json!({"metadata": {"finalizers": ["other", "kith.dev/cleanup"]}});
        assert!(contains(&live, &json!({"metadata": {"finalizers": ["kith.dev/cleanup"]}})));
        assert!(!contains(&live, &json!({"metadata": {"finalizers": ["kith.dev/none"]}})));
    }
}
