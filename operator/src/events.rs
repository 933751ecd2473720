//! Events about objects: what happened later is an Event of its own, and does not vanish in the count of one that was there before.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use xxhash_rust::xxh3::xxh3_64;

/// Who speaks.
const CONTROLLER: &str = "kith.dev/operator";
/// The same note about the same object is not said again for so long.
const QUIET: Duration = Duration::from_secs(60);
/// Notes that are remembered for it: the oldest is forgotten for one more.
const REMEMBERED: usize = 4_096;
/// The API server takes notes of up to 1024 bytes.
const LONGEST: usize = 1_000;

/// What is said about an object.
#[derive(Clone, Copy, Debug)]
pub struct Saying<'a> {
    /// Whether something asks for a look.
    pub warning: bool,
    /// The word.
    pub reason: &'a str,
    /// What the operator was about.
    pub action: &'static str,
    /// The sentence.
    pub note: &'a str,
}

/// Writes Events.
pub struct Events {
    client: Client,
    /// This process.
    instance: String,
    said: Mutex<Said>,
}

impl Events {
    /// Events of the process `instance`.
    pub fn new(client: Client, instance: &str) -> Self {
        Self { client, instance: instance.to_owned(), said: Mutex::default() }
    }

    /// Says it, unless the same was said within the last minute. An Event that cannot be written is logged and nothing else: it is a courtesy.
    pub async fn say(&self, about: &ObjectReference, saying: Saying<'_>) {
        let key = key(about, saying);
        if !self.said(|said| said.admit(key, Instant::now())) {
            return;
        }
        let event = event(about, saying, &self.instance, Timestamp::now());
        let namespace = about.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        if let Err(error) = api.create(&PostParams::default(), &event).await {
            self.said(|said| said.forget(key));
            let object = about.name.as_deref().unwrap_or_default();
            tracing::debug!(object, reason = saying.reason, %error, "an Event could not be written");
        }
    }

    fn said<T>(&self, change: impl FnOnce(&mut Said) -> T) -> T {
        change(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Notes of the last minute, by the hash of object, word and sentence.
#[derive(Default)]
struct Said(HashMap<u64, Instant>);

impl Said {
    /// Whether it is to be said; if so, it counts as said now.
    fn admit(&mut self, key: u64, now: Instant) -> bool {
        self.0.retain(|_, at| now.saturating_duration_since(*at) < QUIET);
        if self.0.contains_key(&key) {
            return false;
        }
        if self.0.len() >= REMEMBERED
            && let Some(oldest) = self.0.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(key, now);
        true
    }

    /// It was not said after all.
    fn forget(&mut self, key: u64) {
        self.0.remove(&key);
    }
}

fn key(about: &ObjectReference, saying: Saying<'_>) -> u64 {
    let parts =
        [&about.uid, &about.kind, &about.namespace, &about.name].map(|part| part.as_deref().unwrap_or_default());
    let [uid, kind, namespace, name] = parts;
    xxh3_64([uid, kind, namespace, name, saying.reason, saying.note].join("\n").as_bytes())
}

fn event(about: &ObjectReference, saying: Saying<'_>, instance: &str, now: Timestamp) -> Event {
    let name = format!("{}.{:x}", about.name.as_deref().unwrap_or(CONTROLLER), now.as_nanosecond());
    Event {
        metadata: ObjectMeta { name: Some(name), namespace: about.namespace.clone(), ..ObjectMeta::default() },
        type_: Some(if saying.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(saying.reason.to_owned()),
        action: Some(saying.action.to_owned()),
        note: Some(cut(saying.note).to_owned()),
        event_time: Some(MicroTime(now)),
        regarding: Some(about.clone()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

/// As much of a note as is taken.
fn cut(note: &str) -> &str {
    let end = (0..=LONGEST.min(note.len())).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
    &note[..end]
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Arc};

    use axum::http::{Request, Response};
    use kube::client::Body;

    use super::*;

    fn saying(note: &str) -> Saying<'_> {
        Saying { warning: false, reason: "CertificatesChanged", action: "Reconcile", note }
    }

    fn about() -> ObjectReference {
        let text = |text: &str| Some(text.to_owned());
        ObjectReference { kind: text("ChatCluster"), name: text("demo"), namespace: text("ns"), ..Default::default() }
    }

    /// Requests and the notes in them.
    type Notes = Arc<Mutex<Vec<(String, String)>>>;

    /// An API server that keeps the notes it is sent, or refuses them.
    fn events(code: u16) -> (Events, Notes) {
        let notes = Notes::default();
        let kept = notes.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let kept = kept.clone();
            async move {
                let asked = format!("{} {}", request.method(), request.uri().path());
                let body = request.into_body().collect_bytes().await.unwrap();
                let event: Event = serde_json::from_slice(&body).unwrap();
                kept.lock().unwrap().push((asked, event.note.unwrap_or_default()));
                let refusal = br#"{"kind":"Status","status":"Failure","code":403,"reason":"Forbidden","message":""}"#;
                let answer = if code == 201 { body.to_vec() } else { refusal.to_vec() };
                Ok::<_, Infallible>(Response::builder().status(code).body(Body::from(answer)).unwrap())
            }
        });
        (Events::new(Client::new(service, "ns"), "operator-0"), notes)
    }

    #[tokio::test]
    async fn what_happened_later_is_an_event_of_its_own_and_the_same_is_said_once() {
        let (events, notes) = events(201);
        let other = ObjectReference { name: Some("other".to_owned()), ..about() };
        for note in ["another authority is trusted", "the next authority signs", "the next authority signs"] {
            events.say(&about(), saying(note)).await;
        }
        events.say(&other, saying("the next authority signs")).await;
        let created = |note: &str| ("POST /apis/events.k8s.io/v1/namespaces/ns/events".to_owned(), note.to_owned());
        let signs = || created("the next authority signs");
        assert_eq!(*notes.lock().unwrap(), [created("another authority is trusted"), signs(), signs()]);
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_tried_again_when_it_is_said_again() {
        let (events, notes) = events(403);
        for _ in 0..2 {
            events.say(&about(), saying("a note")).await;
        }
        assert_eq!(notes.lock().unwrap().len(), 2);
    }

    #[test]
    fn a_note_may_be_said_again_after_a_minute_and_what_is_remembered_is_bounded() {
        let (mut said, begin) = (Said::default(), Instant::now());
        assert!(said.admit(1, begin) && !said.admit(1, begin + QUIET / 2));
        assert!(said.admit(1, begin + QUIET));
        let later = begin + QUIET;
        let last = REMEMBERED as u64 + 100;
        for key in 0..=last {
            said.admit(key, later + Duration::from_millis(key / 1_000));
        }
        assert_eq!(said.0.len(), REMEMBERED);
        assert!(!said.admit(last, later + Duration::from_secs(1)), "the newest are remembered");
    }

    #[test]
    fn a_long_note_is_cut_between_two_characters() {
        let long = "ä".repeat(LONGEST);
        let event = event(&about(), saying(&long), "operator-0", Timestamp::UNIX_EPOCH);
        assert_eq!(event.note.unwrap().len(), LONGEST);
        assert_eq!(cut("short"), "short");
    }
}
