//! Why pods that are wanted are not even made: what the API server refused to a Deployment or a StatefulSet, for conditions.
//!
//! A Deployment has a condition for it. A StatefulSet only publishes Events, so those are read, and only while pods are missing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, future, stream};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::Event,
    },
    jiff::Timestamp,
};
use kith_crds::conditions::reason;
use kube::{Api, Client, ResourceExt, api::ListParams};

use crate::{apply::Live, words};

/// The controller of StatefulSets tries again with pauses of up to 1,000 s; an older Event is of another trouble.
const FRESH_S: i64 = 1_200;
/// Between two looks at the Events of one StatefulSet.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// All looks of one pass together: it does not wait longer for an explanation.
const DEADLINE: Duration = Duration::from_secs(3);
/// Events read of one StatefulSet: the same one is counted up, so that few are there.
const EVENTS_MAX: u32 = 50;
/// StatefulSets asked after at once.
const SIDE_BY_SIDE: usize = 4;
/// StatefulSets whose last look is remembered.
const REMEMBERED_MAX: usize = 1_024;

/// What is said of pods that could not be made: a reason and a sentence.
pub type Refusal = (&'static str, String);

/// What a Deployment says of pods that could not be made.
pub fn of_deployment(deployment: &Deployment) -> Option<Refusal> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failure = conditions.iter().find(|c| c.type_ == "ReplicaFailure" && c.status == "True")?;
    Some(refusal("Deployment", &deployment.name_any(), failure.message.as_deref().unwrap_or_default()))
}

/// Whether pods of a StatefulSet are not even made.
pub fn lacks_pods(set: &StatefulSet) -> bool {
    let wanted = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    set.status.as_ref().map_or(0, |s| s.replicas) < wanted
}

/// What the newest Event about a pod or claim that could not be made says; none where the last one is old.
pub fn of_events(set: &str, events: &[Event], now: Timestamp) -> Option<Refusal> {
    let time = |event: &Event| {
        let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
        series.or(event.last_timestamp.as_ref().map(|t| t.0)).or(event.event_time.as_ref().map(|t| t.0))
    };
    let fresh = |at: &Timestamp| now.as_second().saturating_sub(at.as_second()) <= FRESH_S;
    let failed = events.iter().filter(|e| e.reason.as_deref() == Some("FailedCreate"));
    let (_, event) = failed.filter_map(|e| Some((time(e).filter(fresh)?, e))).max_by_key(|(at, _)| *at)?;
    let message = event.message.as_deref().unwrap_or_default();
    // `create Pod x in StatefulSet y failed error: …`
    let why = message.split_once("failed error: ").map_or(message, |(_, why)| why);
    Some(refusal("StatefulSet", set, why))
}

fn refusal(kind: &str, name: &str, why: &str) -> Refusal {
    let why = words::plain(why);
    let sentence = format!("the pods of {kind} {name} cannot be made: {why}; {}", words::forbidden(&why));
    (reason::PODS_REFUSED, sentence)
}

/// When Events were looked at, and what they said.
type Looked = (Instant, Option<Refusal>);

/// Looks at Events, no more often than is useful.
#[derive(Default)]
pub struct Refusals(Mutex<BTreeMap<String, Looked>>);

impl Refusals {
    /// What keeps pods of these StatefulSets from being made, by name. What cannot be read in time is left out.
    pub fn look<'a>(
        &'a self,
        client: &'a Client,
        namespace: &'a str,
        sets: impl IntoIterator<Item = &'a StatefulSet>,
    ) -> impl Future<Output = Live<Refusal>> + Send + 'a {
        let lacking = sets.into_iter().filter(|set| lacks_pods(set));
        let lacking: Vec<_> = lacking.map(|set| (set.name_any(), set.uid().unwrap_or_default())).collect();
        let looks = stream::iter(lacking).map(move |(name, uid): (String, String)| async move {
            let found = self.of_set(client, namespace, &name, &uid).await?;
            Some((name, found))
        });
        let answered = looks.buffer_unordered(SIDE_BY_SIDE).take_until(tokio::time::sleep(DEADLINE));
        answered.filter_map(future::ready).collect()
    }

    async fn of_set(&self, client: &Client, namespace: &str, name: &str, uid: &str) -> Option<Refusal> {
        let key = format!("{namespace}/{name}");
        if let Some((_, known)) = self.remembered(&key) {
            return known;
        }
        let found = match events(client, namespace, name, uid).await {
            Ok(events) => of_events(name, &events, Timestamp::now()),
            Err(error) => {
                let why = words::of("Event", &error);
                tracing::debug!(stateful_set = %key, why, "it is not known why pods are missing");
                None
            }
        };
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.retain(|_, (at, _)| at.elapsed() < LOOK_AGAIN);
        if remembered.len() < REMEMBERED_MAX {
            remembered.insert(key, (Instant::now(), found.clone()));
        }
        found
    }

    fn remembered(&self, key: &str) -> Option<Looked> {
        let remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(key).filter(|(at, _)| at.elapsed() < LOOK_AGAIN).cloned()
    }
}

async fn events(client: &Client, namespace: &str, set: &str, uid: &str) -> Result<Vec<Event>, kube::Error> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let about = format!(
        "involvedObject.kind=StatefulSet,involvedObject.name={set},involvedObject.uid={uid},reason=FailedCreate"
    );
    Ok(api.list(&ListParams::default().fields(&about).limit(EVENTS_MAX)).await?.items)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const QUOTA: &str =
        "pods \"demo-0-valkey-0\" is forbidden: exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0";

    /// An Event as the controller of StatefulSets publishes it.
    fn event(reason: &str, last: &str, message: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": "demo-0-valkey.18a", "namespace": "ns"},
            "involvedObject": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "demo-0-valkey", "namespace": "ns", "uid": "u"},
            "reason": reason, "message": message, "type": "Warning", "count": 14,
            "firstTimestamp": "2026-09-21T13:00:00Z", "lastTimestamp": last, "eventTime": null,
            "source": {"component": "statefulset-controller"}, "reportingComponent": "statefulset-controller", "reportingInstance": ""
        }))
        .unwrap()
    }

    fn now() -> Timestamp {
        "2026-09-21T13:30:00Z".parse().unwrap()
    }

    #[test]
    fn a_quota_that_refuses_the_pods_of_a_stateful_set_is_told_in_words() {
        let message = format!("create Pod demo-0-valkey-0 in StatefulSet demo-0-valkey failed error: {QUOTA}");
        let old = event("FailedCreate", "2026-09-21T13:20:00Z", "create Pod x failed error: something else");
        let other = event("SuccessfulCreate", "2026-09-21T13:29:59Z", "create Claim data in StatefulSet successful");
        let events = [old, event("FailedCreate", "2026-09-21T13:29:00Z", &message), other];
        let (word, sentence) = of_events("demo-0-valkey", &events, now()).unwrap();
        assert_eq!(word, reason::PODS_REFUSED);
        assert_eq!(
            sentence,
            format!(
                "the pods of StatefulSet demo-0-valkey cannot be made: {QUOTA}; raise the namespace's ResourceQuota, or ask for less in the spec"
            )
        );
        let long_ago = event("FailedCreate", "2026-09-21T13:00:00Z", &message);
        assert_eq!(of_events("demo-0-valkey", &[long_ago], now()), None);
    }

    #[test]
    fn a_quota_that_refuses_the_pods_of_a_deployment_is_told_in_words() {
        let deployment = |status: &str| -> Deployment {
            serde_json::from_value(json!({
                "metadata": {"name": "demo-storage"}, "spec": {"selector": {}, "template": {}},
                "status": {"conditions": [
                    {"type": "Progressing", "status": "True", "reason": "NewReplicaSetCreated"},
                    {"type": "ReplicaFailure", "status": status, "reason": "FailedCreate", "message": QUOTA}]}
            }))
            .unwrap()
        };
        let (word, sentence) = of_deployment(&deployment("True")).unwrap();
        assert_eq!(word, reason::PODS_REFUSED);
        assert!(
            sentence.contains("Deployment demo-storage") && sentence.contains("exceeded quota: none"),
            "{sentence}"
        );
        assert_eq!(of_deployment(&deployment("False")), None);
    }

    #[test]
    fn events_are_read_only_while_pods_are_missing() {
        let set = |replicas: i32| -> StatefulSet {
            serde_json::from_value(json!({
                "metadata": {"name": "a"}, "spec": {"replicas": 3, "selector": {}, "serviceName": "a", "template": {}},
                "status": {"replicas": replicas}
            }))
            .unwrap()
        };
        assert!(lacks_pods(&set(2)) && !lacks_pods(&set(3)));
    }
}
