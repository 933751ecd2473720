//! Says that an operator of another release stands in the way: in the log, in an Event of the pod, and by not being ready.

use k8s_openapi::api::core::v1::ObjectReference;
use kith_kit::admin::Readiness;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The part of readiness that it is.
const PART: &str = "other-operators";

/// The pod that speaks.
pub struct Speaker {
    /// Its name.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// What it can be asked.
    pub readiness: Readiness,
}

impl Speaker {
    /// Follows `rival` until `shutdown`.
    pub async fn follow(self, client: Client, mut rival: watch::Receiver<Option<String>>, shutdown: CancellationToken) {
        let reporter = Reporter { controller: "kith.dev/operator".to_owned(), instance: Some(self.pod.clone()) };
        let recorder = Recorder::new(client, reporter);
        while let Some(Ok(())) = shutdown.run_until_cancelled(rival.changed()).await {
            let who = rival.borrow_and_update().clone();
            match who {
                None => self.readiness.ready(PART),
                Some(who) => {
                    tracing::warn!(%who, "another operator stands in the way");
                    self.readiness.not_ready(PART, who.clone());
                    self.event(&recorder, who).await;
                }
            }
        }
    }

    async fn event(&self, recorder: &Recorder, who: String) {
        let pod = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(self.pod.clone()),
            namespace: Some(self.namespace.clone()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: "AnotherOperator".to_owned(),
            note: Some(who),
            action: "Lead".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &pod).await {
            tracing::debug!(%error, "an Event could not be written");
        }
    }
}
