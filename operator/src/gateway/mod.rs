//! The Gateway controller: the access layer that clients reach, which starts and changes when all below it is of the same plan's templates.

mod certificate;
pub mod render;
mod status;

pub use status::{Facts, status};

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, Pod, Service},
        networking::v1::Ingress,
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kith_crds::{
    ChatCluster, Gateway,
    conditions::{self, Finding, reason},
    names,
};
use kube::{Api, Resource, ResourceExt, runtime::controller::Action};

use self::render::{HTTPRoute, Listener, Objects};
use crate::{
    apply::{self, Applier, ApplyError, Live, Object},
    certificates,
    chatcluster::PassError,
    clash,
    context::{Context, key},
    lanes, lastspec, refusal,
    render::workloads,
    workload::{rollout, trouble},
};

const QUIET: Duration = Duration::from_secs(60);
const WAITING: Duration = Duration::from_secs(5);

/// One pass. The status is written also when the pass fails.
pub async fn reconcile(gateway: Arc<Gateway>, context: Arc<Context>) -> Result<Action, PassError> {
    let gateway = context.stores.newest(gateway);
    if gateway.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let namespace = gateway.namespace().unwrap_or_default();
    let cluster_name = &gateway.spec.cluster_ref.name;
    let cluster = context.stores.get::<ChatCluster>(&namespace, cluster_name).await?;
    let mut facts = Facts::default();
    let result = match &cluster {
        None => {
            facts.failure = Some(Finding::fails(
                conditions::READY,
                reason::CLUSTER_NOT_FOUND,
                format!(
                    "ChatCluster {cluster_name} does not exist in namespace {namespace}: create it, or delete this Gateway"
                ),
            ));
            Ok(Action::requeue(QUIET))
        }
        Some(cluster) if cluster.metadata.deletion_timestamp.is_some() => {
            facts.failure = Some(Finding::fails(
                conditions::READY,
                reason::DELETING,
                format!("ChatCluster {cluster_name} is being deleted; this Gateway serves nobody any more"),
            ));
            Ok(Action::requeue(WAITING))
        }
        Some(cluster) => lanes::in_time(Box::pin(pass(&gateway, cluster, &context, &mut facts))).await,
    };
    if let Err(error) = &result {
        if error.namespace_ends() {
            return Ok(Action::await_change());
        }
        facts.failure = Some(error.finding());
    }
    let wanted = status(&gateway, &facts, Timestamp::now());
    let written = apply::status(&context.stores, gateway.as_ref(), gateway.status.as_ref(), &wanted).await;
    if matches!(written, Ok(true)) {
        // The ChatCluster's AccessReady and endpoints follow.
        context.wake.cluster(&namespace, cluster_name);
        announce(&context, &gateway, &wanted).await;
    }
    let action = result?;
    written?;
    context.failures.succeeded(&key(gateway.as_ref()));
    Ok(action)
}

/// What to do after a failed pass: wait, longer each time.
pub fn failed(gateway: &Arc<Gateway>, error: &PassError, context: &Arc<Context>) -> Action {
    let key = key(gateway.as_ref());
    let pause = context.failures.failed(&key);
    tracing::warn!(object = %key, %error, pause_ms = pause.as_millis(), "a pass failed");
    Action::requeue(pause)
}

async fn announce(context: &Context, gateway: &Gateway, status: &kith_crds::GatewayStatus) {
    let changed = |kind: &str| {
        let before = gateway.status.as_ref().and_then(|s| conditions::get(&s.conditions, kind));
        let now = conditions::get(&status.conditions, kind)?;
        before.is_none_or(|b| b.status != now.status || b.reason != now.reason).then_some(now)
    };
    if let Some(now) = changed(conditions::READY) {
        let quiet = [reason::STARTING, reason::WAITING_FOR_LAYER_BELOW, reason::ROLLING_OUT];
        let warning = now.status != "True" && !quiet.contains(&now.reason.as_str());
        context.event(gateway, warning, &now.reason, &now.message).await;
    } else if let Some(now) = changed(conditions::PROGRESSING)
        && [reason::SECRET_NOT_FOUND, reason::SECRET_INVALID].contains(&now.reason.as_str())
    {
        // Clients can connect all the same, so nothing but this says it.
        context.event(gateway, true, &now.reason, &now.message).await;
    }
}

async fn pass(
    gateway: &Gateway,
    cluster: &ChatCluster,
    context: &Context,
    facts: &mut Facts,
) -> Result<Action, PassError> {
    if let Some(why) = render::refusal(gateway) {
        return Err(Finding::fails(conditions::READY, reason::INVALID_SPEC, why).into());
    }
    let Some(status) = cluster.status.as_ref().filter(|s| s.images.is_some()) else {
        facts.waiting = true;
        return Ok(Action::requeue(WAITING));
    };
    let plan = lastspec::usable_plan(&context.stores, cluster, &context.release).await?;
    clash::refuse_gateway(&context.client, gateway).await?;
    // Not whether something serves there: pods of before do so all through a rollout.
    let open = status.rolled_out == Some(workloads::below_access(&plan)?);
    let name = gateway.name_any();
    let objects = render::objects(&plan, gateway)?;
    // observe
    let (stores, namespace, cluster_name) = (&context.stores, plan.namespace.as_str(), plan.name.as_str());
    let shown = certificate::look(&context.client, namespace, gateway).await?;
    facts.secret = shown.as_ref().and_then(|shown| shown.trouble.clone());
    let own = (names::LABEL_GATEWAY, name.as_str());
    let (maps, deployments, services, budgets, autoscalers, ingresses, pods) = tokio::try_join!(
        stores.part::<ConfigMap>(namespace, cluster_name, own),
        stores.part::<Deployment>(namespace, cluster_name, own),
        stores.part::<Service>(namespace, cluster_name, own),
        stores.part::<PodDisruptionBudget>(namespace, cluster_name, own),
        stores.part::<HorizontalPodAutoscaler>(namespace, cluster_name, own),
        stores.part::<Ingress>(namespace, cluster_name, own),
        stores.part::<Pod>(namespace, cluster_name, own),
    )?;
    let owner = gateway.controller_owner_ref(&()).ok_or_else(|| {
        Finding::fails(
            conditions::READY,
            reason::INVALID_SPEC,
            "the object has no uid; it did not come from an API server",
        )
    })?;
    let applier =
        Applier { client: context.client.clone(), stores: stores.clone(), namespace: plan.namespace.clone(), owner };
    let standing = Standing { maps, deployments, services, budgets, autoscalers };
    // apply
    let (ingress, route) = (objects.ingress.clone(), objects.route.clone());
    Box::pin(listeners(&applier, objects, &standing, open, facts)).await?;
    for (component, _, _) in &facts.listeners {
        facts.trouble = facts.trouble.take().or_else(|| trouble(&pods, component.name(), Some(&name)));
    }
    let mut refused = standing.deployments.values().filter_map(refusal::of_deployment);
    facts.trouble = facts.trouble.take().or_else(|| refused.next());
    entries(&applier, ingress, &ingresses, route, &format!("{}-{name}", plan.name)).await?;
    facts.pods = pods;
    facts.certificates = match shown {
        Some(shown) => Some(shown.ends.into_iter().collect()),
        None => certificates::given(&context.client, namespace, ingress_secret(gateway)).await,
    };
    facts.waiting = facts.listeners.iter().any(|(_, _, waiting)| *waiting);
    Ok(Action::requeue(if facts.waiting || facts.secret.is_some() { WAITING } else { QUIET }))
}

/// What stands of a Gateway's listeners.
struct Standing {
    maps: Live<ConfigMap>,
    deployments: Live<Deployment>,
    services: Live<Service>,
    budgets: Live<PodDisruptionBudget>,
    autoscalers: Live<HorizontalPodAutoscaler>,
}

/// Whether a Service may lead to the pods that are wanted. One that led to plain HTTP and is to lead to TLS, or the other way round, finds no
/// pod of before any more, since their port has another name: not before one of the new pods serves.
fn may_lead_to(listener: &Listener, service: &Service, live: Option<&Deployment>) -> bool {
    let (wanted, Some(live)) = (render::ends_tls(&listener.deployment), live) else { return true };
    render::is_secure(service) == wanted || (render::ends_tls(live) == wanted && render::new_pods_serve(live))
}

/// The listeners and their configuration: made, changed or removed. Pods change when the layer below serves (`open`) and their certificate
/// can be used; until then what runs goes on, with the configuration and the Service that fit what it speaks.
async fn listeners(
    applier: &Applier,
    mut objects: Objects,
    standing: &Standing,
    open: bool,
    facts: &mut Facts,
) -> Result<(), ApplyError> {
    let usable = facts.secret.is_none();
    for listener in &mut objects.listeners {
        render::keep_scale(listener, standing.deployments.get(&listener.deployment.name_any()));
    }
    let mut keep = Vec::new();
    let mut scaled = Vec::new();
    for listener in objects.listeners {
        let name = listener.deployment.name_any();
        let (service, live) = (standing.services.get(&name), standing.deployments.get(&name));
        let current = live.is_some_and(|live| applier.is_current(&listener.deployment, live));
        let service = match service {
            Some(service) if !may_lead_to(&listener, service, live) => service.clone(),
            service => applier.apply(listener.service, service).await?.into_owned(),
        };
        facts.services.insert(name.clone(), service);
        applier.apply(listener.budget, standing.budgets.get(&name)).await?;
        let goes = (open || current) && usable;
        let map = standing.maps.get(&listener.config_map.name_any());
        // A container that starts again while the change waits reads what it read before.
        if goes || map.is_none() {
            applier.apply(listener.config_map, map).await?;
        }
        if goes {
            let deployment = applier.apply(listener.deployment, live).await?;
            facts.listeners.push((listener.component, Some(rollout(&deployment)), false));
        } else {
            facts.held |= !usable && !current;
            facts.listeners.push((listener.component, live.map(rollout), !open && !current));
        }
        if let Some(autoscaler) = listener.autoscaler {
            scaled.push(name.clone());
            applier.apply(autoscaler, standing.autoscalers.get(&name)).await?;
        }
        keep.push(name);
    }
    applier.prune(&keep, &standing.deployments).await?;
    applier.prune(&keep, &standing.services).await?;
    applier.prune(&keep, &standing.budgets).await?;
    applier.prune(&scaled, &standing.autoscalers).await
}

/// The Secret with the certificate that an Ingress shows, if the spec names it. Who has one does not end TLS in the pods.
fn ingress_secret(gateway: &Gateway) -> Option<&str> {
    Some(gateway.spec.exposure.ingress.as_ref()?.tls_secret_ref.as_ref()?.name.as_str())
}

/// Ingress and HTTPRoute: made, changed or removed.
async fn entries(
    applier: &Applier,
    ingress: Option<Ingress>,
    ingresses: &Live<Ingress>,
    route: Option<HTTPRoute>,
    name: &str,
) -> Result<(), ApplyError> {
    let keep: Vec<String> = ingress.iter().map(ResourceExt::name_any).collect();
    applier.apply_all(ingress.into_iter().collect(), ingresses).await?;
    applier.prune(&keep, ingresses).await?;
    let live = one::<HTTPRoute>(applier, name).await?;
    match (route, live) {
        (Some(route), live) => drop(applier.apply(route, live.as_ref()).await?),
        (None, Some(live)) if applier.owns(&live) => applier.delete(&live).await?,
        (None, _) => {}
    }
    Ok(())
}

/// One object; none as well where its kind is not installed.
async fn one<K: Object>(applier: &Applier, name: &str) -> Result<Option<K>, ApplyError> {
    let api: Api<K> = Api::namespaced(applier.client.clone(), &applier.namespace);
    match api.get_opt(name).await {
        // An unknown kind is answered in plain text, which is no NotFound of the API's own.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        found => found.map_err(|e| ApplyError::kube::<K>(name, e)),
    }
}
