//! What a client claims and what a catch-up could not read.

use super::*;

/// A session whose client has named cursors, caught up by `tasks`; what is compared then.
fn with_cursors(cursors: &str) -> (Bench, Vec<Job>) {
    let mut bench = Bench::new();
    bench.text(&format!(r#"{{"type":"auth","token":"t","cursors":{cursors}}}"#));
    bench.give(Input::Authenticated(Ok(claims("alice"))));
    let asked = jobs(bench.give(messages(&[], true, true)));
    (bench, asked)
}

#[test]
fn the_clients_cursors_are_compared_after_the_catch_up() {
    let mut bench = Bench::new();
    bench.text(r#"{"type":"auth","token":"t","cursors":{"d:alice:bob":"5","d:alice:carl":"2"}}"#);
    bench.give(Input::Authenticated(Ok(claims("alice"))));
    bench.give(messages(&[("d:alice:carl", 3)], true, false));
    let asked = jobs(bench.give(messages(&[], true, true)));
    assert!(matches!(&asked[..], [Job::Compare(cursors)] if cursors[..] == [(Arc::from("d:alice:bob"), 5)]));
    assert_eq!(shown(&bench.give(found("d:alice:bob", &[6], 6))), ["d:alice:bob/6"]);
}

#[test]
fn a_cursor_above_the_end_hides_no_live_message() {
    let (mut bench, asked) = with_cursors(r#"{"d:alice:bob":"18446744073709551615"}"#);
    assert!(matches!(&asked[..], [Job::Compare(cursors)] if cursors[0].1 == u64::MAX), "{asked:?}");
    assert!(shown(&bench.give(messages(&[("d:alice:bob", 6)], false, false))).is_empty(), "not before it is known");
    assert_eq!(shown(&bench.give(found("d:alice:bob", &[], 6))), ["d:alice:bob/6"]);
    assert_eq!(shown(&bench.give(messages(&[("d:alice:bob", 7)], false, false))), ["d:alice:bob/7"]);
    // The same on a living connection.
    let asked = jobs(bench.text(r#"{"type":"auth","cursors":{"d:alice:carl":"99"}}"#));
    assert!(matches!(&asked[..], [Job::Compare(_)]), "{asked:?}");
    bench.give(messages(&[("d:alice:carl", 1)], false, false));
    assert_eq!(shown(&bench.give(found("d:alice:carl", &[], 1))), ["d:alice:carl/1"]);
}

#[test]
fn a_comparison_that_failed_is_tried_again_and_one_conversation_fails_alone() {
    let (mut bench, asked) = with_cursors(r#"{"d:alice:bob":"5","d:alice:carl":"5","d:alice:dan":"5"}"#);
    assert!(matches!(&asked[..], [Job::Compare(cursors)] if cursors.len() == 3));
    assert!(jobs(bench.give(Input::Compared(Err(Error::unavailable("storage"))))).is_empty());
    assert_eq!(
        jobs(bench.after(AFTER_FAILURE)).iter().filter(|j| matches!(j, Job::Compare(c) if c.len() == 3)).count(),
        1
    );
    let good = Compared::Found { items: vec![item("d:alice:bob", 6)], has_more: false, end: 6 };
    let outputs = bench.give(Input::Compared(Ok(vec![
        ("d:alice:carl".into(), Compared::Failed),
        ("d:alice:dan".into(), Compared::Invisible),
        ("d:alice:bob".into(), good),
    ])));
    let Output::Frame(frame) = &outputs[0] else { panic!("{outputs:?}") };
    assert!(frame.contains("d:alice:bob/6") && frame.contains(r#""has_more":{"d:alice:carl":true}"#), "{frame}");
}

#[test]
fn more_cursors_than_can_be_looked_at_end_the_connection() {
    let mut bench = Bench::new();
    bench.text(r#"{"type":"auth","token":"t"}"#);
    bench.give(Input::Authenticated(Ok(claims("alice"))));
    let codes = (0..10).find_map(|frame| {
        let cursors: Vec<_> = (0..300).map(|n| format!(r#""d:alice:u{frame}x{n}":"1""#)).collect();
        closed(&bench.text(&format!(r#"{{"type":"auth","cursors":{{{}}}}}"#, cursors.join(","))))
    });
    assert_eq!(codes, Some(close::TOO_MANY));
    let mut bench = Bench::live();
    let refused = Error::exhausted("too many acknowledgements", Duration::from_secs(1));
    assert_eq!(closed(&bench.give(Input::Exhausted(refused))), Some(close::TOO_MANY));
}

#[test]
fn a_catch_up_that_tasks_could_not_finish_goes_on_here() {
    let mut bench = Bench::new();
    bench.text(r#"{"type":"auth","token":"t"}"#);
    bench.give(Input::Authenticated(Ok(claims("alice"))));
    bench.give(messages(&[("c", 2)], false, false));
    let failed = Delivery::Messages {
        items: vec![item("c", 1)].into(),
        more: Arc::new([]),
        catch_up: true,
        done: false,
        failed: true,
    };
    let outputs = bench.give(Input::Delivery(failed));
    assert_eq!(shown(&outputs), ["c/1"]);
    let asked = jobs(outputs);
    assert!(matches!(&asked[..], [Job::CatchUp { cursor: None, known }] if known[..] == [(Arc::from("c"), 1)]));
    assert_eq!(shown(&bench.give(Input::CaughtUp(Ok(CatchUpPage::default())))), ["c/2"]);
}

#[test]
fn a_catch_up_that_keeps_failing_holds_live_messages_up_no_longer_and_goes_on() {
    let mut bench = Bench::new();
    bench.text(r#"{"type":"auth","token":"t"}"#);
    bench.give(Input::Authenticated(Ok(claims("alice"))));
    bench.give(messages(&[("c", 1)], false, false));
    bench.after(CATCH_UP_DEADLINE);
    let fail = || Input::CaughtUp(Err(Error::unavailable("storage")));
    for failures in 1..HELD_FAILURES {
        assert!(shown(&bench.give(fail())).is_empty());
        bench.give(Input::Control);
        assert_eq!(
            jobs(bench.after(AFTER_FAILURE * failures)).iter().filter(|j| matches!(j, Job::CatchUp { .. })).count(),
            1
        );
    }
    assert_eq!(shown(&bench.give(fail())), ["c/1"]);
    bench.give(Input::Control);
    let again = jobs(bench.after(AFTER_FAILURE * HELD_FAILURES));
    assert!(again.iter().any(|j| matches!(j, Job::CatchUp { .. })), "{again:?}");
    assert_eq!(shown(&bench.give(messages(&[("c", 2)], false, false))), ["c/2"], "live goes on meanwhile");
    let page = CatchUpPage { items: vec![item("x", 1)], more: vec![], next: None };
    assert_eq!(shown(&bench.give(Input::CaughtUp(Ok(page)))), ["x/1"]);
}

#[test]
fn what_was_left_out_is_read_whatever_the_catch_up_says_of_its_end() {
    let mut bench = Bench::new();
    bench.text(r#"{"type":"auth","token":"t"}"#);
    bench.give(Input::Authenticated(Ok(claims("alice"))));
    assert_eq!(shown(&bench.give(messages(&[("c", 1)], true, false))), ["c/1"]);
    // The second part of the catch-up had no room; its end comes all the same.
    let asked = jobs(bench.give(Input::LeftOut));
    assert!(matches!(&asked[..], [Job::CatchUp { cursor: None, known }] if known[..] == [(Arc::from("c"), 1)]));
    assert!(shown(&bench.give(messages(&[("c", 3)], true, true))).is_empty());
    let items = vec![item("c", 2), item("c", 3)];
    let page = CatchUpPage { items, more: Vec::new(), next: None };
    assert_eq!(shown(&bench.give(Input::CaughtUp(Ok(page)))), ["c/2", "c/3"]);
    // Of a connection that is caught up.
    assert!(matches!(&jobs(bench.give(Input::LeftOut))[..], [Job::CatchUp { .. }]));
}
