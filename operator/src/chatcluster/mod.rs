//! The ChatCluster controller: observe → validate → build → apply → data-plane step → status.
//!
//! Layers come in order: the storage engine and the event log, then `storage`, then `sessions` and `tasks`, then `business` and the
//! Gateways. A change of a layer waits until the one below serves; what runs already is never taken away for that.

mod base;
mod desired;
mod eventlog;
mod layers;
mod lowered;
mod observe;
mod replace;
mod secrets;
mod shards;
mod status;
mod storage;
mod tend;
mod upkeep;

pub use desired::presence;
pub use lowered::Shortage;
pub use observe::{Observed, observe};
pub use secrets::{Secrets, build as build_secrets, request as certificate_request};
pub use shards::{Steps, steps as shard_steps};
pub use status::{Facts, StorageFacts, Workload, address, gravest, node_of, status, storage_reason};

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kith_crds::{
    ChatCluster,
    conditions::{self, Finding, reason},
    names,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::controller::Action,
};
use thiserror::Error;

use crate::{
    apply::{self, Applier, ApplyError},
    context::{Context, key},
    dataplane::pressure,
    eventlog::Trouble,
    plan::Plan,
    runtime::RuntimeError,
};

/// Between two passes over a platform with nothing to do.
const QUIET: Duration = Duration::from_secs(10);
/// Between two passes while something is under way.
const BUSY: Duration = Duration::from_secs(1);

/// Why a pass failed as a whole. What is the matter with the platform is no error: it goes to conditions.
#[derive(Debug, Error)]
pub enum PassError {
    /// The spec or something it names is not usable.
    #[error("{}", .0.message)]
    Finding(Finding),
    /// The API server refused something or did not answer.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The operator's own folder.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A configuration could not be rendered.
    #[error("rendering the configuration: {0}")]
    Render(#[from] serde_json::Error),
}

impl From<Finding> for PassError {
    fn from(finding: Finding) -> Self {
        Self::Finding(finding)
    }
}

impl PassError {
    /// As the condition Ready shows it.
    pub fn finding(&self) -> Finding {
        let word = match self {
            Self::Finding(finding) => return finding.clone(),
            Self::Apply(ApplyError::NameTaken { .. } | ApplyError::Json { .. }) => reason::APPLY_FAILED,
            Self::Apply(ApplyError::Terminating { .. }) => reason::STARTING,
            Self::Apply(error) if error.response().is_some() => reason::APPLY_FAILED,
            Self::Apply(_) | Self::Runtime(_) | Self::Render(_) => reason::RECONCILE_FAILED,
        };
        Finding::fails(conditions::READY, word, self.to_string())
    }

    /// Whether the namespace is going away: then nothing is made and nothing is reported.
    pub fn namespace_ends(&self) -> bool {
        let Self::Apply(error) = self else { return false };
        error.response().is_some_and(|status| {
            let causes = status.details.iter().flat_map(|d| &d.causes);
            causes.into_iter().any(|c| c.reason == "NamespaceTerminating")
        })
    }
}

/// One pass. The status is written also when the pass fails.
pub async fn reconcile(cluster: Arc<ChatCluster>, context: Arc<Context>) -> Result<Action, PassError> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    if cluster.metadata.deletion_timestamp.is_some() {
        // What was made goes with its owner; nothing is made any more and nothing promoted.
        context.clusters.stop(&namespace, &name);
        return Ok(Action::await_change());
    }
    let mut facts = Facts::default();
    let result = Box::pin(pass(&cluster, &context, &mut facts)).await;
    if let Err(error) = &result {
        if error.namespace_ends() {
            context.clusters.stop(&namespace, &name);
            return Ok(Action::await_change());
        }
        facts.failure = Some(error.finding());
    }
    let wanted = status(&cluster, &facts, Timestamp::now());
    let written = apply::status(&context.client, cluster.as_ref(), cluster.status.as_ref(), &wanted).await;
    announce(&context, &cluster, &wanted).await;
    let action = result?;
    written?;
    context.failures.succeeded(&key(cluster.as_ref()));
    Ok(action)
}

/// What to do after a failed pass: wait, longer each time.
pub fn failed(cluster: &Arc<ChatCluster>, error: &PassError, context: &Arc<Context>) -> Action {
    let key = key(cluster.as_ref());
    let pause = context.failures.failed(&key);
    tracing::warn!(object = %key, %error, pause_ms = pause.as_millis(), "a pass failed");
    Action::requeue(pause)
}

async fn pass(cluster: &ChatCluster, context: &Arc<Context>, facts: &mut Facts) -> Result<Action, PassError> {
    // validate
    let plan = Plan::resolve(cluster, &context.release)?;
    facts.adopted = Some((plan.version.clone(), plan.images.clone()));
    facts.plan = Some(plan.clone());
    adopt(cluster, context, facts).await?;
    // observe
    let observed = observe(&context.client, &plan.namespace, &plan.name).await?;
    facts.services.clone_from(&observed.services);
    facts.pods.clone_from(&observed.pods);
    facts.gateways = Some(observed.gateways.clone());
    // build and apply, from below
    let applier =
        Applier { client: context.client.clone(), namespace: plan.namespace.clone(), owner: plan.owner.clone() };
    let engine_runs = observed.pods.values().any(|p| {
        p.labels().get(names::LABEL_COMPONENT).is_some_and(|c| c == crate::build::meta::Component::Valkey.name())
    });
    let secrets = build_secrets(&plan, &observed.secrets, engine_runs, Timestamp::now())?;
    applier.apply_all(secrets.objects, &observed.secrets).await?;
    for change in &secrets.changes {
        context.event(cluster, false, "CertificatesChanged", change).await;
    }
    let hash = base::apply(&applier, &plan, &observed).await?;
    let (kafka_ready, brokers) = match eventlog::apply(&applier, &plan, &observed, &secrets.kafka_certificate).await {
        Ok(ready) => (ready, None),
        // What is the matter with the brokers' volumes is the event log's trouble alone.
        Err(PassError::Finding(finding)) => (true, Some(Trouble { reason: finding.reason, message: finding.message })),
        Err(error) => return Err(error),
    };
    // data-plane step
    let runtime = storage::step(cluster, context, &plan, &observed, &secrets.login, &applier, facts).await?;
    let target = eventlog::target(&context.client, &plan, &secrets.login).await?;
    let outcome = match (brokers, target) {
        (Some(trouble), _) | (None, Err(trouble)) => Some(Err(trouble)),
        (None, Ok(target)) => {
            runtime.event_log.aim(target);
            runtime.event_log.outcome()
        }
    };
    facts.event_log = Some(outcome);
    facts.brokers = eventlog::brokers(&plan, &observed);
    // the layers above
    layers::apply(&applier, &plan, &observed, &hash, facts).await?;
    for gateway in observed.gateways.keys() {
        context.wake.gateway(&plan.namespace, gateway);
    }
    let busy = !kafka_ready || facts.storage.as_ref().is_some_and(|s| s.unfinished);
    Ok(Action::requeue(if busy { BUSY } else { QUIET }))
}

/// Writes down the version and images before anything is made with them, so that a later operator finds what was adopted even if this
/// one dies half-way.
async fn adopt(cluster: &ChatCluster, context: &Context, facts: &Facts) -> Result<(), PassError> {
    let Some((version, images)) = &facts.adopted else { return Ok(()) };
    let current = cluster.status.clone().unwrap_or_default();
    if current.version.as_ref() != Some(version) || current.images.as_ref() != Some(images) {
        let mut wanted = current.clone();
        wanted.version = Some(version.clone());
        wanted.images = Some(images.clone());
        apply::status(&context.client, cluster, Some(&current), &wanted).await?;
        let note = format!("runs version {version} from now on");
        context.event(cluster, false, "VersionAdopted", &note).await;
    }
    if cluster.annotations().contains_key(names::ANNOTATION_ADOPT_IMAGES) {
        let name = cluster.name_any();
        let api: Api<ChatCluster> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
        let patch = serde_json::json!({"metadata": {"annotations": {names::ANNOTATION_ADOPT_IMAGES: null}}});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map_err(|e| ApplyError::kube::<ChatCluster>(&name, e))?;
    }
    Ok(())
}

/// An Event when Ready or its reason changes, and when memory runs out.
async fn announce(context: &Context, cluster: &ChatCluster, status: &kith_crds::ChatClusterStatus) {
    let conditions = cluster.status.as_ref().map_or(&[][..], |s| &s.conditions);
    if let Some(now) = pressure::begun(conditions, &status.conditions) {
        context.event(cluster, true, &now.reason, &now.message).await;
    }
    let before = cluster.status.as_ref().and_then(|s| conditions::get(&s.conditions, conditions::READY));
    let Some(now) = conditions::get(&status.conditions, conditions::READY) else { return };
    if before.is_some_and(|b| b.status == now.status && b.reason == now.reason) {
        return;
    }
    let quiet = [reason::STARTING, reason::WAITING_FOR_LAYER_BELOW, reason::ALL_READY];
    let warning = now.status != "True" && !quiet.contains(&now.reason.as_str());
    context.event(cluster, warning, &now.reason, &now.message).await;
}
