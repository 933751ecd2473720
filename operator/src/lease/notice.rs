//! Says that an operator of another release stands in the way: in the log, in an Event of the pod, and by not being ready.

use k8s_openapi::api::core::v1::ObjectReference;
use kith_kit::readiness::Readiness;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::events::{Events, Saying};

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
        let events = Events::new(client, &self.pod);
        while let Some(Ok(())) = shutdown.run_until_cancelled(rival.changed()).await {
            let who = rival.borrow_and_update().clone();
            match who {
                None => self.readiness.ready(PART),
                Some(who) => {
                    tracing::warn!(%who, "another operator stands in the way");
                    self.readiness.not_ready(PART, who.clone());
                    self.event(&events, &who).await;
                }
            }
        }
    }

    async fn event(&self, events: &Events, who: &str) {
        let pod = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(self.pod.clone()),
            namespace: Some(self.namespace.clone()),
            ..ObjectReference::default()
        };
        let saying = Saying { warning: true, reason: "AnotherOperator", action: "Lead", note: who };
        events.say(&pod, saying).await;
    }
}
