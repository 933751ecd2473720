//! What holds of a lease, whatever clocks say and however slowly the API server answers.

use std::sync::Mutex;

use axum::http::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::{rivals::Watches, *};
use crate::dataplane::link::WRITE_DEADLINE;

const SHORT: Timing = Timing { lease: Duration::from_millis(1_800) };

/// An API server that knows one Lease and answers after a while.
#[derive(Clone)]
struct FakeApi {
    lease: Arc<Mutex<Value>>,
    answers_after: Duration,
    requests: Arc<AtomicU64>,
}

impl FakeApi {
    fn new(answers_after: Duration) -> Self {
        Self { lease: Arc::default(), answers_after, requests: Arc::default() }
    }

    fn election(&self, identity: &str) -> Election {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                tokio::time::sleep(fake.answers_after / 2).await;
                let answer = fake.answer(&parts.method, parts.uri.path(), &body);
                tokio::time::sleep(fake.answers_after / 2).await;
                let (code, answer) = answer;
                let response = Response::builder().status(code).header("content-type", "application/json");
                Ok::<_, std::convert::Infallible>(response.body(Body::from(answer.to_string().into_bytes())).unwrap())
            }
        });
        let own = Own { namespace: "ns".to_owned(), lease: "kith-operator".to_owned(), watches: Watches::of(&[]) };
        Election::new(Client::new(service, "ns"), own, identity, SHORT)
    }

    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        self.requests.fetch_add(1, Ordering::AcqRel);
        if path.contains("clusterroles") {
            return (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": []}));
        }
        let mut lease = self.lease.lock().unwrap();
        let refusal = |code: u16, reason: &str| {
            (code, json!({"kind": "Status", "status": "Failure", "message": reason, "reason": reason, "code": code}))
        };
        if lease.is_null() && *method != Method::POST {
            return refusal(404, "NotFound");
        }
        match *method {
            Method::GET => return (200, lease.clone()),
            Method::POST | Method::PUT => *lease = serde_json::from_slice(body).unwrap(),
            _ => {
                let patch: json_patch::Patch = serde_json::from_slice(body).unwrap();
                if json_patch::patch(&mut lease, &patch).is_err() {
                    return refusal(422, "Invalid");
                }
            }
        }
        lease["metadata"]["resourceVersion"] = self.requests.load(Ordering::Acquire).to_string().into();
        (200, lease.clone())
    }
}

#[tokio::test]
async fn an_api_server_that_takes_a_third_of_the_lease_for_every_answer_ends_nothing() {
    let api = FakeApi::new(SHORT.lease / 3);
    let election = api.election("me");
    assert!(election.acquire(&CancellationToken::new()).await);
    let guard = election.guard();
    let watched = async {
        let end = Instant::now() + SHORT.lease * 3;
        while Instant::now() < end {
            assert!(!guard.time_left().is_zero(), "the lease ran out");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let never = CancellationToken::new();
    tokio::select! {
        ended = election.hold(&never) => panic!("the lease was given up: {ended:?}"),
        () = watched => {}
    }
}

#[tokio::test]
async fn a_lease_is_lost_when_no_renewal_was_answered_for_as_long_as_it_lasts_and_not_before() {
    let api = FakeApi::new(Duration::ZERO);
    let election = api.election("me");
    assert!(election.acquire(&CancellationToken::new()).await);
    let begun = Instant::now();
    // Nobody knows the Lease any more: every renewal fails.
    *api.lease.lock().unwrap() = Value::Null;
    assert!(matches!(election.hold(&CancellationToken::new()).await, Err(LeaseError::Lost)));
    assert!(begun.elapsed() + Duration::from_millis(100) >= SHORT.term(), "given up after {:?}", begun.elapsed());
    assert_eq!(election.guard().time_left(), Duration::ZERO);
}

#[tokio::test]
async fn a_lease_that_another_holds_is_lost_at_once_and_not_taken_away_from_it() {
    let api = FakeApi::new(Duration::ZERO);
    let election = api.election("me");
    assert!(election.acquire(&CancellationToken::new()).await);
    api.lease.lock().unwrap()["spec"]["holderIdentity"] = "other".into();
    let begun = Instant::now();
    assert!(matches!(election.hold(&CancellationToken::new()).await, Err(LeaseError::Lost)));
    assert!(begun.elapsed() < SHORT.term() && election.guard().time_left().is_zero());
    election.release().await.unwrap();
    assert_eq!(api.lease.lock().unwrap()["spec"]["holderIdentity"], "other");
}

#[tokio::test]
async fn a_lease_that_is_given_back_is_taken_at_once() {
    let api = FakeApi::new(Duration::ZERO);
    let (first, second) = (api.election("first"), api.election("second"));
    let end = CancellationToken::new();
    assert!(first.acquire(&end).await);
    first.release().await.unwrap();
    let begun = Instant::now();
    assert!(second.acquire(&end).await);
    assert!(begun.elapsed() < SHORT.lease);
    assert!(matches!(first.remove().await, Err(LeaseError::Lost)), "it is the other's");
}

#[test]
fn answers_after_two_seconds_leave_time_for_a_write_to_the_data_plane() {
    let timing = Timing { lease: LEASE };
    // Asked for at every `renew`, answered `answer` later, good for `term` from when it was asked for: just before an answer the least is left.
    let least = |answer: Duration| timing.term().saturating_sub(answer + timing.renew());
    assert!(least(Duration::from_secs(2)) >= WRITE_DEADLINE, "{:?}", least(Duration::from_secs(2)));
    assert!(!least(Duration::from_millis(3_900)).is_zero(), "nearly four seconds end nothing");
    let under_way = timing.term().as_millis().div_ceil(timing.renew().as_millis());
    assert!(under_way <= RENEWALS_MAX as u128, "renewals wait for one another");
    assert!(timing.term() < LEASE, "a holder is silent before another begins");
}

#[test]
fn a_lease_is_judged_by_its_changes_and_never_by_its_timestamps() {
    let held = |version: &str, renewed_s: i64| Lease {
        metadata: ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some("other".to_owned()),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed_s).unwrap())),
            ..LeaseSpec::default()
        }),
    };
    let free = |lease: &Lease, identity: &str, seen: &mut _, now| is_free(lease, identity, seen, LEASE, now);
    let (now, start) = (Timestamp::now().as_second(), Instant::now());
    // Clocks two minutes apart, in both directions.
    for renewed in [now - 120, now + 120] {
        let mut seen = None;
        assert!(!free(&held("1", renewed), "me", &mut seen, start), "seen for the first time");
        assert!(!free(&held("1", renewed), "me", &mut seen, start + LEASE / 2));
        assert!(!free(&held("2", renewed), "me", &mut seen, start + LEASE), "it was renewed");
        assert!(!free(&held("2", renewed), "me", &mut seen, start + LEASE + LEASE / 2));
        assert!(free(&held("2", renewed), "me", &mut seen, start + LEASE * 2), "not renewed for a whole lease");
    }
    assert!(free(&held("1", now), "other", &mut None, start), "one's own");
}

#[test]
fn a_guard_without_a_lease_allows_nothing() {
    let guard = LeaseGuard::new();
    assert_eq!(guard.time_left(), Duration::ZERO);
    assert!(guard.check(Duration::from_millis(1)).is_err());
    assert!(LeaseGuard::unopposed().check(Duration::from_secs(5)).is_ok());
}

#[test]
fn a_cleared_guard_refuses_at_once() {
    let guard = LeaseGuard::unopposed();
    guard.clear();
    let refused = guard.check(Duration::from_secs(1)).unwrap_err();
    assert_eq!(refused, LeaseTooShort { left_ms: 0, wanted_ms: 1000 });
}
