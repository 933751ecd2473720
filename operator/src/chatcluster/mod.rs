//! The ChatCluster controller: observe → validate → build → apply → data-plane step → status.
//!
//! The data plane is cared for first and always: by the last spec that could be used while the present one cannot, and whatever else fails.
//! Layers come in order: the storage engine and the event log, then the services of the storage, logic and access layers as the platform's table
//! has them, then the Gateways. A change of a layer waits until the one below is wholly of its newest template and serves; what runs already is never taken away
//! for that. Gateways compare `status.rolledOut` with what their own settings follow from.

mod alarms;
mod base;
mod broker_care;
mod brokers;
mod copies;
mod desired;
mod early;
mod eventlog;
mod former;
mod identity;
mod layers;
mod left;
mod lowered;
mod measures;
mod milestones;
mod observe;
mod replace;
mod rollouts;
mod secrets;
mod shards;
mod status;
mod storage;
mod tend;
mod told;
mod upkeep;

pub use alarms::Alarms;
pub use broker_care::BrokerCare;
pub use copies::Departures;
pub use desired::presence;
pub use early::start as start_probers;
pub use lowered::Shortage;
pub use observe::{Observed, observe};
pub use secrets::{Secrets, Situation, build as build_secrets, line_request, request as certificate_request};
pub use shards::{Steps, steps as shard_steps};
pub use status::{BrokerFacts, Facts, StorageFacts, Workload, address, gravest, node_of, status, storage_reason};
pub use told::Told;

use std::{borrow::Cow, sync::Arc, time::Duration};

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
    figures::Object,
    lanes, lastspec,
    panics::{self, Panicked},
    pki::Asked,
    plan::Plan,
    render::meta::{self, Component},
    runtime::{Runtime, RuntimeError},
    survey::Brief,
    volumes,
};

/// Between two passes over a platform that is well and was so at the last pass: what changes besides the engine's own numbers is told.
const WELL: Duration = Duration::from_secs(60);
/// The same where something is not well, which may change with time alone.
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
    /// The pass did not end in time.
    #[error("the pass did not end within {} s and was given up; what it did stands, and the next one goes on", lanes::DEADLINE.as_secs())]
    Late,
    /// The pass panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// A step failed, and the others went on.
    #[error("{error}; the rest of the pass went on")]
    Partly {
        /// What went wrong first.
        error: Box<PassError>,
        /// When the next pass comes.
        again: Action,
    },
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
            Self::Partly { error, .. } => return error.finding(),
            Self::Apply(ApplyError::NameTaken { .. } | ApplyError::Json { .. }) => reason::APPLY_FAILED,
            Self::Apply(ApplyError::Terminating { .. }) => reason::STARTING,
            Self::Apply(error) if error.response().is_some() => reason::APPLY_FAILED,
            Self::Apply(_) | Self::Runtime(_) | Self::Render(_) | Self::Late | Self::Panicked(_) => {
                reason::RECONCILE_FAILED
            }
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
    let cluster = context.stores.newest(cluster);
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    if cluster.metadata.deletion_timestamp.is_some() {
        // What was made goes with its owner; nothing is made any more and nothing promoted.
        context.clusters.stop(&namespace, &name);
        return Ok(Action::await_change());
    }
    let mut facts = Facts::default();
    // Caught here, so that it reaches status.
    let pass = lanes::in_time(Box::pin(pass(&cluster, &context, &mut facts)));
    let pass = panics::caught("ChatCluster", pass).await;
    let result = pass.unwrap_or_else(|panicked| Err(panicked.into()));
    if let Some(error) = result.as_ref().err().or(facts.trouble.as_ref()) {
        if error.namespace_ends() {
            context.clusters.stop(&namespace, &name);
            return Ok(Action::await_change());
        }
        facts.failure = Some(error.finding());
    }
    let wanted = status(&cluster, &facts, Timestamp::now());
    let written = apply::status(&context.stores, cluster.as_ref(), cluster.status.as_ref(), &wanted).await;
    announce(&context, &cluster, &wanted).await;
    if let Some(figures) = measures::of(&facts) {
        context.figures.set(&Object::of(cluster.as_ref()), "pass", figures);
    }
    let action = result?;
    if let Some(error) = facts.trouble {
        return Err(PassError::Partly { error: Box::new(error), again: action });
    }
    written?;
    context.failures.succeeded(&key(cluster.as_ref()));
    Ok(action)
}

/// What to do after a failed pass: wait, longer each time. Where the rest of the pass went on, it comes again as soon as without the error.
pub fn failed(cluster: &Arc<ChatCluster>, error: &PassError, context: &Arc<Context>) -> Action {
    let key = key(cluster.as_ref());
    let pause = context.failures.failed(&key);
    tracing::warn!(object = %key, %error, pause_ms = pause.as_millis(), "a pass failed");
    match error {
        PassError::Partly { again, .. } => again.clone(),
        _ => Action::requeue(pause),
    }
}

async fn pass(cluster: &ChatCluster, context: &Arc<Context>, facts: &mut Facts) -> Result<Action, PassError> {
    // observe
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let mut observed = observe(&context.stores, &namespace, &name).await?;
    facts.services.clone_from(&observed.services);
    facts.pods = observed.pods.clone();
    facts.gateways = Some(observed.gateways.clone());
    // validate
    let (plan, usable) = usable_plan(cluster, context, &observed, facts).await?;
    facts.plan = Some(plan.clone());
    let applier = Applier {
        client: context.client.clone(),
        stores: context.stores.clone(),
        namespace: plan.namespace.clone(),
        owner: plan.owner.clone(),
    };
    let secrets = secrets_step(cluster, context, &plan, &observed, &applier).await;
    let secrets = facts.noted(secrets);
    let login = secrets.as_ref().map(|s| s.login.clone()).or_else(|| secrets::login(&plan.name, &observed.secrets));
    // Without them nothing runs yet, and nothing is made that would wait for them.
    let Some(login) = login else {
        return match facts.trouble.take() {
            Some(error) => Err(error),
            None => Ok(Action::requeue(BUSY)),
        };
    };
    // The data-plane step comes before everything that the API server may refuse.
    let step = storage::step(cluster, context, &plan, &observed, &login, facts).await;
    let runtime = facts.noted(step);
    alarm(context, &plan, &observed, runtime.as_deref(), facts).await;
    if let Some(error) = observed.rest.take() {
        // What is not known is not changed.
        facts.noted::<()>(Err(error));
        return Ok(Action::requeue(BUSY));
    }
    // build and apply, from below
    let base = facts.noted(base::apply(&applier, &plan, &observed).await);
    let log = match &secrets {
        Some(secrets) => {
            let rights_stand = runtime.as_ref().is_some_and(|r| matches!(r.event_log.outcome(), Some(Ok(()))));
            eventlog::apply(&applier, &plan, &observed, &secrets.kafka_certificate, rights_stand).await
        }
        None => Ok(Vec::new()),
    };
    let (missing, brokers) = match log {
        Ok(missing) => (missing, None),
        // What is the matter with the brokers' volumes is the event log's trouble alone.
        Err(PassError::Finding(finding)) => {
            (Vec::new(), Some(Trouble { reason: finding.reason, message: finding.message }))
        }
        Err(error) => (facts.noted(Err(error)).unwrap_or_default(), None),
    };
    let new_shards = facts.noted(storage::shards(cluster, context, &plan, &observed, &applier).await).unwrap_or(false);
    if let Some(runtime) = &runtime
        && let Some(target) = facts.noted(eventlog::target(&context.client, &plan, &login).await)
    {
        let outcome = match (brokers, target) {
            (Some(trouble), _) | (None, Err(trouble)) => Some(Err(trouble)),
            (None, Ok(target)) => {
                facts.alarms.certificates = Some(eventlog::certificates(&plan, &observed, &target));
                runtime.survey.aim(Brief::new(&observed.pods, target.clone(), &plan.version));
                runtime.event_log.aim(target);
                facts.topic_settings = runtime.event_log.settings();
                runtime.event_log.outcome()
            }
        };
        facts.event_log = Some(outcome);
    }
    facts.brokers = eventlog::serving(&plan, &observed).map(|brokers| BrokerFacts { missing, ..brokers });
    if let Some(runtime) = &runtime {
        let sight = runtime.event_log.sight();
        let care = broker_care::carry_out(context, cluster, &plan, &observed, sight.as_deref()).await;
        if let (Some(care), Some(brokers)) = (facts.noted(care), &mut facts.brokers) {
            brokers.care = care;
        }
    }
    // the layers above
    if base.is_some() {
        let layers = layers::apply(&applier, &plan, &observed, facts).await;
        facts.noted(layers);
        let left = left::prune(&applier, &plan, &observed).await;
        facts.noted(left);
        let former = former::prune(&applier, &plan.name, &observed).await;
        facts.noted(former);
    }
    if usable {
        let kept = keep(&applier, &plan, &observed).await;
        facts.noted(kept);
    }
    // What is missing of addresses comes with a change of a Service, which is watched.
    let brokers_busy = facts.brokers.as_ref().is_some_and(|brokers| brokers.care.busy);
    let busy = new_shards || brokers_busy || facts.storage.as_ref().is_some_and(|s| s.unfinished);
    Ok(Action::requeue(if busy {
        BUSY
    } else if is_well(facts) {
        WELL
    } else {
        QUIET
    }))
}

/// Whether nothing is known that could change with time alone, without a word from a watch, the prober or the event log.
fn is_well(facts: &Facts) -> bool {
    let engine = facts.storage.as_ref().is_some_and(|storage| {
        !storage.news && storage.readiness.is_ready() && storage.problems.is_empty() && storage.trouble.is_none()
    });
    let brokers = facts.brokers.as_ref().is_none_or(|brokers| {
        brokers.ready >= brokers.wanted
            && brokers.missing.is_empty()
            && !brokers.care.rolling
            && brokers.care.problems.is_empty()
    });
    engine && brokers && facts.trouble.is_none()
}

/// What whoever is on call must know. After the data-plane step, and nothing waits long for it.
async fn alarm(context: &Context, plan: &Plan, observed: &Observed, runtime: Option<&Runtime>, facts: &mut Facts) {
    let sets = observed.stateful_sets.values();
    facts.alarms = Alarms {
        capacity: volumes::capacities(&observed.claims),
        survey: runtime.map(|r| r.survey.found()).unwrap_or_default(),
        // Looked at with the login at the brokers, whose certificates count as well.
        certificates: None,
        refused: context.refusals.look(&context.client, &plan.namespace, sets).await,
    };
    if let Some(storage) = &mut facts.storage {
        let kafka = meta::component_name(&plan.name, Component::Kafka);
        let refused = facts.alarms.refused.iter().find(|(set, _)| **set != kafka);
        storage.trouble = storage.trouble.take().or_else(|| refused.map(|(_, refusal)| refusal.clone()));
    }
}

/// The plan of the present spec; while that cannot be used, of the last one that could, so that what runs goes on being cared for. Says
/// whether it is the present one.
async fn usable_plan(
    cluster: &ChatCluster,
    context: &Context,
    observed: &Observed,
    facts: &mut Facts,
) -> Result<(Plan, bool), PassError> {
    let error = match Plan::resolve(cluster, &context.release) {
        Ok(plan) => match adopt(cluster, context, &plan).await {
            Ok(()) => {
                facts.adopted = Some((plan.version.clone(), plan.images.clone()));
                return Ok((plan, true));
            }
            Err(error) => error.into(),
        },
        Err(finding) => PassError::Finding(lastspec::say(finding)),
    };
    let kept = observed.config_maps.get(&meta::last_spec_config_map(&cluster.name_any()));
    match lastspec::restore(cluster, kept, &context.release) {
        Some(plan) => {
            facts.noted::<()>(Err(error));
            Ok((plan, false))
        }
        None => Err(error),
    }
}

/// Keeps the spec that was just used, for a pass to which the present one is of no use.
async fn keep(applier: &Applier, plan: &Plan, observed: &Observed) -> Result<(), PassError> {
    let map = lastspec::keep(plan)?;
    let live = observed.config_maps.get(&map.name_any());
    applier.apply(map, live).await?;
    Ok(())
}

/// Brings the Secrets up to date.
async fn secrets_step(
    cluster: &ChatCluster,
    context: &Context,
    plan: &Plan,
    observed: &Observed,
    applier: &Applier,
) -> Result<Secrets, PassError> {
    let mut live = Cow::Borrowed(&observed.secrets);
    secrets::ask_for_missing(&context.stores, plan, &mut live).await?;
    let copy = identity::find(&context.stores, plan, &live).await?;
    let (known, put_back) = identity::put_back(plan, &live, copy.as_ref());
    let runs = observed.pods.values().any(secrets::has_run);
    let word = cluster.annotations().get(names::ANNOTATION_ROTATE_AUTHORITY);
    let asked = word.and_then(|word| Asked::read(word));
    let broker_hosts = &eventlog::hosts(plan, observed);
    let situation = Situation { runs, broker_hosts, asked, spread: eventlog::settled(plan, observed) };
    let mut secrets = build_secrets(plan, &known, &situation, Timestamp::now())?;
    let objects = std::mem::take(&mut secrets.objects);
    // First what must never be lost.
    identity::keep(&context.stores, plan, &objects, copy.as_ref()).await?;
    applier.apply_all(objects, &live).await?;
    for change in put_back.iter().chain(&secrets.changes) {
        context.event(cluster, false, "CertificatesChanged", change).await;
    }
    if let Some(word) = word.filter(|_| asked.is_none()) {
        let note = format!(
            "{} is {word:?}, which is none of prepare, now and forget-previous",
            names::ANNOTATION_ROTATE_AUTHORITY
        );
        context.event(cluster, true, "CertificatesChanged", &note).await;
    }
    if secrets.answered || (word.is_some() && asked.is_none()) {
        forget(context, cluster, names::ANNOTATION_ROTATE_AUTHORITY).await?;
    }
    Ok(secrets)
}

/// Takes an annotation away that has been answered.
async fn forget(context: &Context, cluster: &ChatCluster, annotation: &str) -> Result<(), ApplyError> {
    let name = cluster.name_any();
    let api: Api<ChatCluster> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let patch = serde_json::json!({"metadata": {"annotations": {annotation: null}}});
    let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    // Told to the stores, or the next pass would take it for asked once more.
    upkeep::deleted(patched.map(|standing| context.stores.wrote(&standing)))
        .map_err(|e| ApplyError::kube::<ChatCluster>(&name, e))
}

/// Writes down the version and images before anything is made with them, so that a later operator finds what was adopted even if this
/// one dies half-way.
async fn adopt(cluster: &ChatCluster, context: &Context, plan: &Plan) -> Result<(), ApplyError> {
    let Plan { version, images, .. } = plan;
    let current = cluster.status.clone().unwrap_or_default();
    if current.version.as_ref() != Some(version) || current.images.as_ref() != Some(images) {
        let mut wanted = current.clone();
        wanted.version = Some(version.clone());
        wanted.images = Some(images.clone());
        apply::status(&context.stores, cluster, Some(&current), &wanted).await?;
        let note = format!("runs version {version} from now on");
        context.event(cluster, false, "VersionAdopted", &note).await;
    }
    if cluster.annotations().contains_key(names::ANNOTATION_ADOPT_IMAGES) {
        forget(context, cluster, names::ANNOTATION_ADOPT_IMAGES).await?;
    }
    Ok(())
}

/// An Event when Ready or its reason changes, and when an alarm begins.
async fn announce(context: &Context, cluster: &ChatCluster, status: &kith_crds::ChatClusterStatus) {
    let conditions = cluster.status.as_ref().map_or(&[][..], |s| &s.conditions);
    let alarms = alarms::begun(conditions, &status.conditions);
    for now in pressure::begun(conditions, &status.conditions).into_iter().chain(alarms) {
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
