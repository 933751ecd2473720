//! Whatever a node answers, reading it gives values or DATA_LOSS.

use proptest::prelude::*;

use super::*;

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        Just(Value::Okay),
        any::<i64>().prop_map(Value::Int),
        any::<f64>().prop_map(Value::Double),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::BulkString),
        // What looks like a number is met more often than chance gives it.
        any::<u64>().prop_map(|n| Value::BulkString(n.to_string().into_bytes())),
        "[ -~]{0,20}".prop_map(Value::SimpleString),
    ];
    leaf.prop_recursive(3, 40, 8, |inner| proptest::collection::vec(inner, 0..10).prop_map(Value::Array))
}

fn values() -> impl Strategy<Value = Vec<Value>> {
    proptest::collection::vec(value(), 0..14)
}

fn loss_or<T>(outcome: &Result<T, EngineError>) -> bool {
    matches!(outcome, Ok(_) | Err(EngineError::DataLoss(_)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_answers_are_read_or_reported_as_damaged(values in values(), wants in 0..6_usize, all in any::<bool>()) {
        let want = if all { Want::All("c:x".to_owned()) } else { Want::Field(crate::engine::Field::new("c:x", "s")) };
        prop_assert!(loss_or(&read_get(&vec![want; wants], values.clone())));
        for window in [Window::Newest, Window::Before(3), Window::After(3)] {
            prop_assert!(loss_or(&read_history(window, values.clone())));
        }
        prop_assert!(loss_or(&read_heads(values.clone())));
        prop_assert!(loss_or(&read_members(values.clone())));
        prop_assert!(loss_or(&read_list(values.clone())));
        prop_assert!(loss_or(&read_outbox(values.clone())));
        drop(read_claim(&values));
    }

    #[test]
    fn arbitrary_answers_to_mutations_make_no_panic(values in values(), ver in any::<u64>(), body in proptest::collection::vec(any::<u8>(), 0..40)) {
        let body = Bytes::from(body);
        let message = Emits::Message { conversation_id: "d:a:b".to_owned(), row: body.clone(), privileged: false, opening: vec![body.clone()] };
        for emits in [Emits::Nothing, message, Emits::Cursor(body.clone()), Emits::Bodies(vec![body.clone(), body.clone()])] {
            drop(emitted(&emits, ver, &values));
        }
    }

    #[test]
    fn arbitrary_refusals_are_understood_or_named(code in "[A-Z0-9]{1,12}", detail in "[ -~]{0,40}") {
        for code in ["FENCED", "MOVED", "K1REFUSE", "K1CORRUPT", "K1FOREIGN", "OOM", "NOREPLICAS", code.as_str()] {
            drop(verdict(refused(code, &detail)));
        }
        prop_assert!(matches!(verdict(refused("MOVED", &detail)), Verdict::Elsewhere));
    }
}

/// An error as a node sends it.
fn refused(code: &str, detail: &str) -> Value {
    redis::parse_redis_value(format!("-{code} {detail}\r\n").as_bytes()).unwrap()
}

#[test]
fn a_damaged_value_is_named_by_its_key() {
    let Verdict::Refused(EngineError::DataLoss(what)) = verdict(refused("K1CORRUPT", "{t}c:d:a:b")) else { panic!() };
    assert!(what.contains("c:d:a:b"), "{what}");
    let row = vec![Value::Int(1), Value::Int(1), Value::Int(0), Value::Int(1), Value::Nil, Value::Nil];
    let damaged = named("m:d:a:b", read_history(Window::Newest, row)).unwrap_err();
    assert!(matches!(damaged, EngineError::DataLoss(what) if what.contains("m:d:a:b")));
}
