//! A connection as its client sees it: frames in, frames out, whatever the order.

use kith_proto::chat::v1::Receipt;
use kith_rpc::error::reason;
use proptest::prelude::*;

use super::{
    io::{CatchUpPage, Compared, Pulled},
    *,
};

mod catch_up;

const NOW_MS: i64 = 1_790_000_000_000;

/// A machine with a clock of its own.
struct Bench {
    machine: Machine,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        let settings = Settings { heartbeat: Duration::from_secs(30), frames_per_second: 50, frames_queued: 256 };
        Self { machine: Machine::new(settings, "S1".into(), now), now }
    }

    /// Authenticated, caught up by `tasks`.
    fn live() -> Self {
        let mut bench = Self::new();
        bench.text(r#"{"type":"auth","token":"t"}"#);
        bench.give(Input::Authenticated(Ok(claims("alice"))));
        bench.give(messages(&[], true, true));
        bench
    }

    fn give(&mut self, input: Input) -> Vec<Output> {
        self.machine.handle(input, self.now, NOW_MS);
        self.machine.take()
    }

    fn text(&mut self, text: &str) -> Vec<Output> {
        self.give(Input::Text(text.into()))
    }

    fn after(&mut self, time: Duration) -> Vec<Output> {
        self.now += time;
        self.give(Input::Tick)
    }
}

fn claims(user: &str) -> Arc<Claims> {
    Arc::new(Claims {
        sub: user.into(),
        dev: "d1".into(),
        plt: "ios".into(),
        line: "default".into(),
        iss: "demo".into(),
        jti: "j".into(),
        iat: 0,
        iat_ms: NOW_MS,
        exp: (NOW_MS / 1_000 + 3_600) as u64,
    })
}

fn item(id: &str, seq: u64) -> Item {
    Item { conversation_id: id.into(), seq, json: format!("\"{id}/{seq}\"").into() }
}

fn messages(places: &[(&str, u64)], catch_up: bool, done: bool) -> Input {
    let items = places.iter().map(|(id, seq)| item(id, *seq)).collect();
    Input::Delivery(Delivery::Messages { items, more: Arc::new([]), catch_up, done, failed: false })
}

fn closed(outputs: &[Output]) -> Option<u16> {
    outputs.iter().find_map(|o| if let Output::Close { code, .. } = o { Some(*code) } else { None })
}

/// What the client is shown: frames in short.
fn shown(outputs: &[Output]) -> Vec<String> {
    let frames = outputs.iter().filter_map(|o| if let Output::Frame(text) = o { Some(text) } else { None });
    frames
        .flat_map(|text| {
            let json: serde_json::Value = serde_json::from_str(text).unwrap();
            match json["type"].as_str().unwrap() {
                "messages" => {
                    json["messages"].as_array().unwrap().iter().map(|m| m.as_str().unwrap().to_owned()).collect()
                }
                other => vec![other.to_owned()],
            }
        })
        .collect()
}

/// What is to be done outside, but for looks at the token, which come by the clock.
fn jobs(outputs: Vec<Output>) -> Vec<Job> {
    all_jobs(outputs).into_iter().filter(|job| !matches!(job, Job::Recheck(_))).collect()
}

fn all_jobs(outputs: Vec<Output>) -> Vec<Job> {
    outputs.into_iter().filter_map(|o| if let Output::Job(job) = o { Some(job) } else { None }).collect()
}

#[test]
fn a_token_opens_the_session_with_hello_first() {
    let mut bench = Bench::new();
    let asked = jobs(bench.text(r#"{"type":"auth","token":"t","cursors":{"d:alice:bob":"41"}}"#));
    assert!(matches!(&asked[..], [Job::Authenticate(token)] if token == "t"));
    let outputs = bench.give(Input::Authenticated(Ok(claims("alice"))));
    assert!(
        matches!(&outputs[0], Output::Frame(text) if text.contains(r#""type":"hello""#) && text.contains(r#""resumed":false"#))
    );
    assert!(matches!(&outputs[1], Output::Opened(opened) if opened.session_id == "S1" && opened.cursors.len() == 1));
}

#[test]
fn a_resume_token_with_cursors_resumes() {
    let token = resume::issue("S0", "alice", "d1", NOW_MS - 1_000);
    let mut bench = Bench::new();
    bench.text(&format!(r#"{{"type":"auth","token":"t","cursors":{{"d:alice:bob":"1"}},"resume_token":"{token}"}}"#));
    let outputs = bench.give(Input::Authenticated(Ok(claims("alice"))));
    assert!(matches!(&outputs[0], Output::Frame(text) if text.contains(r#""resumed":true"#)));
}

#[test]
fn refusals_close_with_the_code_of_their_reason() {
    let cases = [
        (Error::unauthenticated("bad"), close::AUTHENTICATION),
        (Error::unauthenticated("old").with_reason(reason::EXPIRED), close::EXPIRED),
        (Error::unauthenticated("kicked").with_reason(reason::REVOKED), close::AUTHENTICATION),
        (Error::unavailable("storage"), close::TOO_MANY),
    ];
    for (error, code) in cases {
        let mut bench = Bench::new();
        bench.text(r#"{"type":"auth","token":"t"}"#);
        assert_eq!(closed(&bench.give(Input::Authenticated(Err(error)))), Some(code));
        assert!(bench.text(r#"{"type":"ping"}"#).is_empty(), "a closed connection does nothing more");
    }
}

#[test]
fn silence_before_the_token_ends_the_connection() {
    let mut bench = Bench::new();
    assert_eq!(closed(&bench.after(Duration::from_secs(4))), None);
    assert_eq!(closed(&bench.after(Duration::from_secs(1))), Some(close::AUTHENTICATION));
    let mut bench = Bench::new();
    assert_eq!(closed(&bench.text(r#"{"type":"ack","acks":[]}"#)), Some(close::AUTHENTICATION));
}

#[test]
fn frames_before_hello_wait_for_the_headers_token() {
    let mut bench = Bench::new();
    bench.machine.token_in_header("t".into());
    bench.machine.take();
    assert!(bench.text(r#"{"type":"ack","acks":[{"conversation_id":"d:alice:bob","seq":"1"}]}"#).is_empty());
    let done = jobs(bench.give(Input::Authenticated(Ok(claims("alice")))));
    assert!(matches!(&done[..], [Job::Ack(acks)] if acks.len() == 1));
}

#[test]
fn a_silent_client_is_pinged_and_then_let_go() {
    let mut bench = Bench::live();
    assert!(bench.after(Duration::from_secs(30)).iter().any(|o| matches!(o, Output::Ping)));
    bench.give(Input::Control);
    assert_eq!(closed(&bench.after(Duration::from_secs(59))), None);
    assert_eq!(closed(&bench.after(Duration::from_secs(1))), Some(close::TOO_SLOW));
}

#[test]
fn an_expired_token_ends_the_session_unless_a_fresh_one_came() {
    let mut bench = Bench::live();
    let mut fresh = (*claims("alice")).clone();
    fresh.exp += 3_600;
    bench.text(r#"{"type":"auth","token":"t2"}"#);
    bench.give(Input::Authenticated(Ok(Arc::new(fresh))));
    for _ in 0..70 {
        bench.give(Input::Control);
        assert_eq!(closed(&bench.after(Duration::from_secs(55))), None);
    }
    let mut bench = Bench::live();
    bench.now += Duration::from_secs(3_599);
    bench.give(Input::Control);
    assert_eq!(closed(&bench.after(Duration::from_secs(1))), Some(close::EXPIRED));
}

#[test]
fn the_newest_token_is_looked_at_again_within_two_seconds() {
    let mut bench = Bench::live();
    let asked = all_jobs(bench.after(Duration::from_millis(1_900)));
    assert!(matches!(&asked[..], [Job::Recheck(claims)] if claims.iat_ms == NOW_MS), "{asked:?}");
    assert!(all_jobs(bench.after(Duration::from_secs(10))).is_empty());
    let newer = Arc::new(Claims { iat_ms: NOW_MS + 5, ..(*claims("alice")).clone() });
    bench.text(r#"{"type":"auth","token":"t2"}"#);
    let outputs = bench.give(Input::Authenticated(Ok(newer.clone())));
    assert!(matches!(&outputs[..], [Output::Renewed(renewed)] if renewed.iat_ms == NOW_MS + 5), "{outputs:?}");
    // An older one changes nothing.
    bench.text(r#"{"type":"auth","token":"t"}"#);
    assert!(bench.give(Input::Authenticated(Ok(claims("alice")))).is_empty());
    let asked = all_jobs(bench.after(Duration::from_millis(1_900)));
    assert!(matches!(&asked[..], [Job::Recheck(claims)] if Arc::ptr_eq(claims, &newer)), "{asked:?}");
    let revoked = || Err(Error::unauthenticated("kicked").with_reason(reason::REVOKED));
    assert_eq!(closed(&bench.give(Input::Rechecked(claims("alice"), revoked()))), None, "that token was replaced");
    assert_eq!(closed(&bench.give(Input::Rechecked(newer, revoked()))), Some(close::KICKED));
}

#[test]
fn a_look_that_storage_did_not_answer_is_repeated_soon() {
    let mut bench = Bench::live();
    let asked = all_jobs(bench.after(Duration::from_millis(1_900)));
    let [Job::Recheck(claims)] = &asked[..] else { panic!("{asked:?}") };
    bench.give(Input::Rechecked(claims.clone(), Err(Error::unavailable("storage"))));
    assert_eq!(all_jobs(bench.after(Duration::from_secs(5))).len(), 1);
    assert_eq!(all_jobs(bench.give(Input::Recheck)).len(), 1, "so is one that was asked for");
}

#[test]
fn another_users_token_on_a_living_connection_is_refused() {
    let mut bench = Bench::live();
    bench.text(r#"{"type":"auth","token":"t2"}"#);
    assert_eq!(closed(&bench.give(Input::Authenticated(Ok(claims("bob"))))), Some(close::AUTHENTICATION));
}

#[test]
fn too_many_frames_and_wrong_frames_have_their_codes() {
    let mut bench = Bench::live();
    let codes: Vec<_> = (0..110).filter_map(|_| closed(&bench.text(r#"{"type":"ping"}"#))).collect();
    assert_eq!(codes, [close::TOO_MANY]);
    let mut bench = Bench::live();
    let codes: Vec<_> = (0..110).filter_map(|_| closed(&bench.give(Input::Control))).collect();
    assert_eq!(codes, [close::TOO_MANY], "WebSocket pings are frames, too");
    assert_eq!(closed(&Bench::live().text("nonsense")), Some(close::PROTOCOL));
    assert_eq!(closed(&Bench::live().give(Input::Binary)), Some(close::PROTOCOL));
}

#[test]
fn catch_up_comes_before_what_is_live() {
    let mut bench = Bench::new();
    bench.text(r#"{"type":"auth","token":"t"}"#);
    bench.give(Input::Authenticated(Ok(claims("alice"))));
    assert!(shown(&bench.give(messages(&[("c", 3)], false, false))).is_empty());
    assert_eq!(shown(&bench.give(messages(&[("c", 1), ("c", 2)], true, false))), ["c/1", "c/2"]);
    assert_eq!(shown(&bench.give(messages(&[], true, true))), ["c/3"]);
}

#[test]
fn without_tasks_the_gateway_catches_up_itself() {
    let mut bench = Bench::new();
    bench.text(r#"{"type":"auth","token":"t"}"#);
    bench.give(Input::Authenticated(Ok(claims("alice"))));
    let asked = jobs(bench.after(CATCH_UP_DEADLINE));
    assert!(matches!(&asked[..], [Job::CatchUp { cursor: None, .. }]));
    let page = CatchUpPage { items: vec![item("c", 1)], more: vec![], next: Some("n".into()) };
    let outputs = bench.give(Input::CaughtUp(Ok(page)));
    assert_eq!(shown(&outputs), ["c/1"]);
    assert!(matches!(&jobs(outputs)[..], [Job::CatchUp { cursor: Some(c), .. }] if c == "n"));
    // Storage fails once: tried again later, and nothing is let through meanwhile.
    assert!(jobs(bench.give(Input::CaughtUp(Err(Error::unavailable("storage"))))).is_empty());
    assert!(shown(&bench.give(messages(&[("c", 2)], false, false))).is_empty());
    assert_eq!(jobs(bench.after(AFTER_FAILURE)).len(), 1);
    assert_eq!(shown(&bench.give(Input::CaughtUp(Ok(CatchUpPage::default())))), ["c/2"]);
}

#[test]
fn after_a_suspicion_storage_is_read_from_where_the_client_is() {
    let mut bench = Bench::live();
    bench.give(messages(&[("c", 1)], false, false));
    let asked = jobs(bench.give(Input::Suspect));
    assert!(matches!(&asked[..], [Job::CatchUp { known, .. }] if known[..] == [(Arc::from("c"), 1)]));
    assert!(jobs(bench.give(Input::Suspect)).is_empty(), "one at a time");
    let again = jobs(bench.give(Input::CaughtUp(Ok(CatchUpPage::default()))));
    assert!(matches!(&again[..], [Job::CatchUp { .. }]), "the second suspicion is not forgotten");
}

fn found(id: &str, seqs: &[u64], end: u64) -> Input {
    let items = seqs.iter().map(|seq| item(id, *seq)).collect();
    Input::Compared(Ok(vec![(id.into(), Compared::Found { items, has_more: false, end })]))
}

#[test]
fn a_failed_read_is_tried_again_and_a_lost_conversation_is_not() {
    let mut bench = Bench::live();
    bench.give(messages(&[("c", 1)], false, false));
    assert_eq!(jobs(bench.give(messages(&[("c", 4)], false, false))).len(), 1);
    assert!(jobs(bench.give(Input::Pulled("c".into(), Err(Error::unavailable("storage"))))).is_empty());
    assert_eq!(jobs(bench.after(AFTER_FAILURE)).len(), 1);
    let items = (2..=4).map(|s| item("c", s)).collect();
    assert_eq!(
        shown(&bench.give(Input::Pulled("c".into(), Ok(Pulled { items, has_more: false })))),
        ["c/2", "c/3", "c/4"]
    );
    bench.give(messages(&[("c", 9)], false, false));
    bench.give(Input::Pulled("c".into(), Err(Error::not_found("gone"))));
    assert!(jobs(bench.after(AFTER_FAILURE)).is_empty());
}

#[test]
fn sends_are_answered_by_their_id() {
    let mut bench = Bench::live();
    let frame = r#"{"type":"send","id":"7","message":{"client_msg_id":"c","recipient_id":"bob","type":"text","content":{"text":"x"}}}"#;
    let started = jobs(bench.text(frame));
    let [Job::Send { key, send }] = &started[..] else { panic!("{started:?}") };
    assert_eq!((key.as_str(), send.id.as_str()), ("d:alice:bob", "7"));
    let receipt = Receipt { conversation_id: "d:alice:bob".into(), seq: 1, ..Receipt::default() };
    let outputs = bench.give(Input::Sent { key: key.clone(), id: "7".into(), result: Ok(receipt) });
    assert!(matches!(&outputs[..], [Output::Frame(text)] if text.contains(r#""type":"sent","id":"7""#)));
    assert_eq!(shown(&bench.text(r#"{"type":"send","id":"8","message":{}}"#)), ["error"]);
}

#[test]
fn typing_is_passed_on_once_in_a_while() {
    let mut bench = Bench::live();
    let frame = r#"{"type":"typing","conversation_id":"d:alice:bob"}"#;
    assert_eq!(jobs(bench.text(frame)).len(), 1);
    assert_eq!(jobs(bench.text(frame)).len(), 0);
    bench.now += TYPING_PAUSE;
    assert_eq!(jobs(bench.text(frame)).len(), 1);
}

#[test]
fn a_drain_says_when_to_come_back_and_closes() {
    let outputs = Bench::live().give(Input::Drain { after_ms: 1_200 });
    assert!(matches!(&outputs[0], Output::Frame(text) if text.contains(r#""type":"reconnect","after_ms":"1200""#)));
    assert_eq!(closed(&outputs), Some(close::DRAINED));
}

#[test]
fn many_messages_are_shown_in_few_frames() {
    let mut bench = Bench::live();
    for seq in 1..=250 {
        bench.machine.handle(messages(&[("c", seq)], false, false), bench.now, NOW_MS);
    }
    let outputs = bench.machine.take();
    assert_eq!(outputs.len(), 3);
    assert_eq!(shown(&outputs).len(), 250);
}

fn any_input() -> impl Strategy<Value = Input> {
    let id = || (0..2_u8).prop_map(|i| Arc::<str>::from(format!("c{i}")));
    let place = || (id(), 0..12_u64);
    prop_oneof![
        "\\PC{0,40}".prop_map(|text| Input::Text(text.into())),
        Just(()).prop_map(|()| Input::Text(r#"{"type":"auth","token":"t","cursors":{"d:a:b":"3"}}"#.into())),
        Just(()).prop_map(|()| Input::Authenticated(Ok(claims("alice")))),
        Just(()).prop_map(|()| Input::Authenticated(Err(Error::unavailable("x")))),
        (proptest::collection::vec(place(), 0..5), any::<bool>(), any::<bool>()).prop_map(
            |(places, catch_up, done)| {
                let items = places.into_iter().map(|(id, seq)| item(&id, seq)).collect();
                Input::Delivery(Delivery::Messages {
                    items,
                    more: Arc::new([]),
                    catch_up,
                    done,
                    failed: done != catch_up,
                })
            }
        ),
        Just(()).prop_map(|()| Input::Suspect),
        Just(()).prop_map(|()| Input::LeftOut),
        place().prop_map(|(id, seq)| Input::Base(id, Ok(seq))),
        id().prop_map(|id| Input::Base(id, Err(Error::not_found("x")))),
        (id(), proptest::collection::vec(0..12_u64, 0..5), any::<bool>()).prop_map(|(id, mut seqs, has_more)| {
            seqs.sort_unstable();
            let items = seqs.into_iter().map(|s| item(&id, s)).collect();
            Input::Pulled(id, Ok(Pulled { items, has_more }))
        }),
        (id(), 0..12_u64, 0..12_u64).prop_map(|(id, seq, end)| found(&id, &[seq], end)),
        Just(()).prop_map(|()| Input::Compared(Err(Error::unavailable("x")))),
        proptest::collection::vec(place(), 0..5).prop_map(|places| {
            let items = places.into_iter().map(|(id, seq)| item(&id, seq)).collect();
            Input::CaughtUp(Ok(CatchUpPage { items, more: vec![], next: None }))
        }),
        Just(()).prop_map(|()| Input::CaughtUp(Err(Error::unavailable("x")))),
        Just(()).prop_map(|()| Input::Tick),
        Just(()).prop_map(|()| Input::Control),
    ]
}

proptest! {
    #[test]
    fn whatever_comes_in_nothing_is_shown_twice_or_backwards(inputs in proptest::collection::vec((any_input(), 0..3_000_u64), 0..80)) {
        let mut bench = Bench::live();
        let mut last = std::collections::HashMap::new();
        for (input, ms) in inputs {
            bench.now += Duration::from_millis(ms);
            for name in shown(&bench.give(input)) {
                if let Some((id, seq)) = name.split_once('/') {
                    let seq: u64 = seq.parse().unwrap();
                    let before = last.insert(id.to_owned(), seq);
                    prop_assert!(before.is_none_or(|b| b < seq), "{} after {:?}", name, before);
                }
            }
        }
    }
}
