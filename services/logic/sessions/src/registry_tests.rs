//! The rules of presence, one by one and under random interleavings.

use proptest::prelude::*;

use super::*;

fn session(id: &str, user: &str, device: &str, opened_at: i64) -> Session {
    Session {
        id: id.into(),
        user: user.into(),
        device: device.into(),
        platform: 1,
        line: "default".into(),
        opened_at,
        cursors: Vec::new(),
        token_issued_at: opened_at,
    }
}

fn registry() -> (Registry<u32>, Instant) {
    let now = Instant::now();
    let mut registry = Registry::new(3, now);
    registry.attach(1, "gw-1".into());
    (registry, now)
}

#[test]
fn a_fresh_login_is_announced_and_a_reported_one_is_resumed() {
    let (mut r, now) = registry();
    assert!(matches!(r.open(1, session("s1", "alice", "d1", 1), true, now)[..], [Effect::Opened(..)]));
    assert!(matches!(r.open(1, session("s2", "bob", "d1", 1), false, now)[..], [Effect::Resumed(..)]));
    assert!(
        r.open(1, session("s1", "alice", "d1", 1), false, now).is_empty(),
        "said twice on one stream changes nothing"
    );
    assert_eq!(r.presence("alice").unwrap().platforms, [1]);
    assert_eq!(r.presence("carol"), None);
}

#[test]
fn the_same_device_again_kicks_the_older_session_whichever_is_reported_first() {
    let (mut r, now) = registry();
    r.open(1, session("old", "alice", "d1", 1), true, now);
    let effects = r.open(1, session("new", "alice", "d1", 2), true, now);
    assert!(
        matches!(&effects[..], [Effect::Kick { session, code: 4003, .. }, Effect::Closed(..), Effect::Opened(..)] if &**session == "old")
    );
    let effects = r.open(1, session("older", "alice", "d1", 0), false, now);
    assert!(matches!(&effects[..], [Effect::Kick { session, code: 4003, .. }] if &**session == "older"));
    assert_eq!(r.routes("alice").map(|(s, _)| &*s.id).collect::<Vec<_>>(), ["new"]);
}

#[test]
fn a_kick_that_the_gateway_missed_is_repeated() {
    let (mut r, now) = registry();
    r.open(1, session("s1", "alice", "d1", 1), true, now);
    assert_eq!(r.kick("alice", Some("d2"), 1, now).0, 0);
    assert_eq!(r.kick("alice", None, 1, now).0, 1);
    r.detach(1, now);
    r.attach(2, "gw-1".into());
    assert!(matches!(r.open(2, session("s1", "alice", "d1", 1), false, now)[..], [Effect::Kick { stream: 2, .. }]));
    assert_eq!(r.presence("alice"), None);
}

#[test]
fn a_kick_closes_what_is_reported_later_with_an_older_token_and_nothing_else() {
    let (mut r, now) = registry();
    assert_eq!(r.kick("alice", Some("d1"), 10, now).0, 0);
    let late = r.open(1, session("late", "alice", "d1", 10), false, now);
    assert!(matches!(&late[..], [Effect::Kick { session, code: 4003, .. }] if &**session == "late"));
    assert_eq!(r.presence("alice"), None);
    for (id, user, device, issued) in [("s1", "alice", "d1", 11), ("s2", "alice", "d2", 9), ("s3", "bob", "d1", 9)] {
        assert!(matches!(r.open(1, session(id, user, device, issued), true, now)[..], [Effect::Opened(..)]), "{id}");
    }
    // A token that the client gave later counts.
    r.open(1, session("s2", "alice", "d2", 30), false, now);
    assert_eq!(r.kick("alice", None, 20, now).0, 1);
    assert_eq!(r.routes("alice").map(|(s, _)| &*s.id).collect::<Vec<_>>(), ["s2"]);
}

#[test]
fn one_session_too_many_ends_the_oldest() {
    let (mut r, now) = registry();
    for i in 0..3 {
        r.open(1, session(&format!("s{i}"), "alice", &format!("d{i}"), i), true, now);
    }
    let effects = r.open(1, session("s9", "alice", "d9", 9), true, now);
    assert!(effects.iter().any(|e| matches!(e, Effect::Kick { session, code: 4029, .. } if &**session == "s0")));
    assert_eq!(r.routes("alice").count(), 3);
}

#[test]
fn a_lost_session_stays_online_and_gets_what_was_held() {
    let (mut r, now) = registry();
    r.open(1, session("s1", "alice", "d1", 1), true, now);
    r.detach(1, now);
    assert_eq!(r.routes("alice").next().unwrap().1, Route::Held);
    assert!(r.hold("s1", 7) && r.hold("s1", 8));
    r.attach(2, "gw-1".into());
    let effects = r.open(2, session("s1", "alice", "d1", 1), false, now);
    assert!(matches!(effects[..], [Effect::Send { stream: 2, payload: 7, .. }, Effect::Send { payload: 8, .. }]));
    assert!(r.expire(now + LOST_GRACE * 2).is_empty());
}

#[test]
fn a_lost_session_that_is_not_reported_again_ends() {
    let (mut r, now) = registry();
    r.open(1, session("s1", "alice", "d1", 1), true, now);
    r.open(1, session("s2", "bob", "d1", 1), true, now);
    r.detach(1, now);
    assert!(r.expire(now + LOST_GRACE / 2).is_empty());
    r.attach(2, "gw-1".into());
    r.open(2, session("s1", "alice", "d1", 1), false, now);
    assert!(matches!(&r.synced(2)[..], [Effect::Closed(s, _)] if &*s.user == "bob"), "the gateway named all it has");
    r.detach(2, now);
    assert!(matches!(&r.expire(now + LOST_GRACE)[..], [Effect::Closed(s, _)] if &*s.user == "alice"));
    assert!(r.is_empty());
}

#[test]
fn a_lost_session_that_missed_too_much_reconnects() {
    let (mut r, now) = registry();
    r.open(1, session("s1", "alice", "d1", 1), true, now);
    r.detach(1, now);
    assert_eq!((0..200).filter(|i| r.hold("s1", *i)).count(), MAX_HELD);
    r.attach(2, "gw-1".into());
    let effects = r.open(2, session("s1", "alice", "d1", 1), false, now);
    assert!(matches!(effects[..], [Effect::Kick { code: 4004, .. }, Effect::Closed(..)]));
}

#[test]
fn a_session_that_moved_is_not_over() {
    let (mut r, now) = registry();
    r.open(1, session("s1", "alice", "d1", 1), true, now);
    assert!(r.close(1, "s1", true).is_empty());
    r.open(1, session("s1", "alice", "d1", 1), false, now);
    assert!(matches!(r.close(1, "s1", false)[..], [Effect::Closed(..)]));
    assert!(r.close(1, "s1", false).is_empty());
}

#[test]
fn a_late_close_from_the_old_stream_does_not_end_a_session_that_is_on_a_new_one() {
    let (mut r, now) = registry();
    r.open(1, session("s1", "alice", "d1", 1), true, now);
    r.attach(2, "gw-1".into());
    r.open(2, session("s1", "alice", "d1", 1), false, now);
    assert!(r.close(1, "s1", false).is_empty());
    r.detach(1, now);
    assert_eq!(r.routes("alice").next().unwrap().1, Route::Stream(2));
}

#[test]
fn nobody_is_called_offline_before_gateways_have_reported() {
    let (mut r, now) = registry();
    r.synced(1);
    assert!(!r.is_settled(now), "at a start, gateways may come that are not known yet");
    r.expire(now + SETTLE);
    assert!(r.is_settled(now + SETTLE));
    r.owners_changed(now + SETTLE);
    assert!(!r.is_settled(now + SETTLE));
    r.synced(1);
    assert!(r.is_settled(now + SETTLE));
    r.owners_changed(now + SETTLE);
    assert!(r.is_settled(now + SETTLE * 2), "a gateway that never says so does not hold deliveries up for ever");
}

#[derive(Debug, Clone)]
enum Step {
    Open { stream: u64, session: u8, fresh: bool },
    Close { stream: u64, session: u8, moved: bool },
    Detach(u64),
    Attach(u64),
    Synced(u64),
    Kick(u8),
    Hold(u8),
    Overflow(u8),
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u64, 0..12_u8, any::<bool>()).prop_map(|(stream, session, fresh)| Step::Open { stream, session, fresh }),
        2 => (0..3_u64, 0..12_u8, any::<bool>()).prop_map(|(stream, session, moved)| Step::Close { stream, session, moved }),
        1 => (0..3_u64).prop_map(Step::Detach),
        2 => (0..3_u64).prop_map(Step::Attach),
        1 => (0..3_u64).prop_map(Step::Synced),
        1 => (0..4_u8).prop_map(Step::Kick),
        1 => (0..12_u8).prop_map(Step::Hold),
        1 => (0..12_u8).prop_map(Step::Overflow),
        1 => (0..8_u8).prop_map(Step::Wait),
    ]
}

impl<P> Registry<P> {
    /// The three indexes tell one story.
    fn check(&self) {
        let of_users: usize = self.users.values().map(Vec::len).sum();
        assert_eq!(of_users, self.sessions.len());
        let lost = self.sessions.values().filter(|e| matches!(e.place, Place::Lost { .. })).count();
        assert_eq!(lost, self.lost);
        let attached: usize = self.streams.values().map(|s| s.sessions.len()).sum();
        assert_eq!(attached + lost, self.sessions.len());
        for (id, entry) in &self.sessions {
            assert!(self.users[&entry.session.user].contains(id));
            if let Place::Attached(stream) = entry.place {
                assert!(self.streams[&stream].sessions.contains(id));
            }
        }
        for ids in self.users.values() {
            assert!(!ids.is_empty() && ids.len() <= self.max_per_user);
            let devices: HashSet<_> = ids.iter().map(|id| &self.sessions[id].session.device).collect();
            assert_eq!(devices.len(), ids.len(), "one session a device");
        }
    }
}

proptest! {
    #[test]
    fn the_indexes_agree_after_any_history_and_every_opened_session_is_closed_once(steps in proptest::collection::vec(step(), 0..200)) {
        let mut now = Instant::now();
        let mut r: Registry<u32> = Registry::new(2, now);
        let mut open: HashSet<Arc<str>> = HashSet::new();
        for step in steps {
            let effects = match step {
                Step::Open { stream, session: n, fresh } => {
                    r.open(stream, session(&format!("s{n}"), &format!("u{}", n % 4), &format!("d{}", n % 3), i64::from(n)), fresh, now)
                }
                Step::Close { stream, session, moved } => {
                    let id = format!("s{session}");
                    let effects = r.close(stream, &id, moved);
                    if moved && r.session(&id).is_none() {
                        open.remove(&*id);
                    }
                    effects
                }
                Step::Detach(stream) => { r.detach(stream, now); Vec::new() }
                Step::Attach(stream) => {
                    r.detach(stream, now);
                    r.attach(stream, format!("gw-{stream}").into());
                    Vec::new()
                }
                Step::Synced(stream) => r.synced(stream),
                Step::Kick(user) => r.kick(&format!("u{user}"), None, 5, now).1,
                Step::Hold(n) => { r.hold(&format!("s{n}"), 1); Vec::new() }
                Step::Overflow(n) => r.overflowed(&format!("s{n}")),
                Step::Wait(seconds) => { now += Duration::from_secs(u64::from(seconds)); r.expire(now) }
            };
            for effect in effects {
                match effect {
                    Effect::Opened(s, _) | Effect::Resumed(s, _) => prop_assert!(open.insert(s.id)),
                    Effect::Closed(s, _) => prop_assert!(open.remove(&s.id)),
                    Effect::Send { stream, .. } | Effect::Kick { stream, .. } => prop_assert!(r.streams.contains_key(&stream)),
                }
            }
            r.check();
            prop_assert_eq!(open.len(), r.len());
        }
    }
}
