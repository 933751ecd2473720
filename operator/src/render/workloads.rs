//! The services of the storage, logic and access layers: Deployment, Service, budget and account of each.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{ConfigMap, Container, Service, ServicePort, Volume, VolumeMount},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kith_crds::{chatcluster::ExternalEventLog, names, shared::PodSettings};
use kith_platform::{self as platform, Keys, Serves};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    endpoints,
    meta::{self, Component},
    pod, settings, versions,
};
use crate::{
    pki::users,
    plan::{KafkaPlan, Plan, ServicePlan},
};

/// The name of the port of those that the ChatCluster runs.
const GRPC: &str = "grpc";
/// A stopping service finishes its calls (10 s) and hands over.
const GRACE_S: i64 = 30;

/// What a Deployment of the `kith` image needs besides what all have.
pub struct Spec<'a> {
    /// The subcommand and label.
    pub service: platform::Service,
    /// Name of the Deployment.
    pub name: String,
    /// Labels besides the component's.
    pub extra_labels: BTreeMap<String, String>,
    /// Pods; absent where an autoscaler says.
    pub replicas: Option<u32>,
    /// Settings of the pods.
    pub settings: &'a PodSettings,
    /// Name and number of the port that is served.
    pub port: (&'static str, i32),
    /// Hash of the configuration in the ConfigMap that goes with the name.
    pub config_hash: &'a str,
    /// Volumes and mounts besides configuration and certificate.
    pub mounts: Vec<(Volume, VolumeMount)>,
    /// How long a stopping pod may take, seconds.
    pub grace_s: i64,
}

/// A Deployment of one service.
pub fn deployment(plan: &Plan, spec: Spec<'_>) -> Deployment {
    let component = Component::from(spec.service);
    let mut labels = meta::labels(&plan.name, component);
    labels.extend(spec.extra_labels.clone());
    labels.extend(versions::label(&plan.version));
    let mut selector = meta::selector_labels(&plan.name, component);
    selector.extend(spec.extra_labels.clone());
    let mut volumes = vec![
        pod::config_volume("config", meta::config_map(&spec.name)),
        pod::secret_volume("tls", meta::tls_secret(&plan.name, component), &["ca.crt", "tls.crt", "tls.key"]),
    ];
    let mut config_mount = pod::mount("config", settings::CONFIG_FILE);
    // A single file does not follow changes of the ConfigMap: a process never sees another configuration than it started with.
    config_mount.sub_path = Some("config.json".to_owned());
    let mut mounts = vec![config_mount, pod::mount("tls", kith_kit::config::TLS_DIR)];
    for (volume, mount) in spec.mounts {
        volumes.push(volume);
        mounts.push(mount);
    }
    let container = Container {
        name: component.name().to_owned(),
        image: Some(plan.images.kith.clone()),
        image_pull_policy: Some(plan.pull_policy.to_owned()),
        args: Some([component.name(), "--config", settings::CONFIG_FILE].map(str::to_owned).to_vec()),
        env: Some(vec![pod::env_field("POD_IP", "status.podIP"), pod::env_field("POD_NAME", "metadata.name")]),
        ports: Some(vec![pod::port(spec.port.0, spec.port.1), pod::port("admin", pod::ADMIN_PORT)]),
        liveness_probe: Some(pod::http_probe("/healthz", 10, 3)),
        readiness_probe: Some(pod::http_probe("/readyz", 2, 2)),
        startup_probe: Some(pod::http_probe("/healthz", 1, 60)),
        volume_mounts: Some(mounts),
        ..Container::default()
    };
    let template = pod::template(pod::Parts {
        labels: labels.clone(),
        selector: selector.clone(),
        annotations: [(names::ANNOTATION_CONFIG_HASH.to_owned(), spec.config_hash.to_owned())].into(),
        settings: spec.settings,
        service_account: meta::component_name(&plan.name, component),
        container,
        volumes,
        grace_s: spec.grace_s,
    });
    Deployment {
        metadata: meta::meta(spec.name, labels),
        spec: Some(DeploymentSpec {
            replicas: spec.replicas.and_then(|n| i32::try_from(n).ok()),
            revision_history_limit: Some(3),
            selector: meta::selector(selector),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template,
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// Everything of one service.
pub struct ServiceObjects {
    /// What the pods read.
    pub config_map: ConfigMap,
    /// The pods.
    pub deployment: Deployment,
    /// How they are found; none of those that serve nobody.
    pub service: Option<Service>,
    /// How many may be evicted.
    pub budget: PodDisruptionBudget,
}

/// Renders one of the ChatCluster's services.
pub fn service(plan: &Plan, service: &ServicePlan) -> Result<ServiceObjects, serde_json::Error> {
    let (which, component) = (service.service, Component::from(service.service));
    let name = meta::component_name(&plan.name, component);
    let (labels, selector) = (meta::labels(&plan.name, component), meta::selector_labels(&plan.name, component));
    let config = settings::config(plan, which);
    let (config_map, hash) = settings::config_map(meta::config_map(&name), labels.clone(), &config)?;
    let deployment = deployment(
        plan,
        Spec {
            service: which,
            name: name.clone(),
            extra_labels: BTreeMap::new(),
            replicas: Some(service.replicas),
            settings: &service.pod,
            port: (GRPC, i32::from(which.port())),
            config_hash: &hash,
            mounts: mounts(plan, which),
            grace_s: GRACE_S,
        },
    );
    let port = endpoints::port(GRPC, i32::from(which.port()));
    let found = match which.serves() {
        Serves::Platform(_) => {
            Some(endpoints::headless(name.clone(), labels.clone(), selector.clone(), vec![port], false))
        }
        Serves::Lines(_) => Some(exposed_service(plan, name.clone(), labels.clone(), selector.clone(), port)),
        Serves::Nobody | Serves::Clients => None,
    };
    let budget = endpoints::disruption_budget(name, labels, selector, 1, true);
    Ok(ServiceObjects { config_map, deployment, service: found, budget })
}

/// A hash of the pod templates of the layers below access, in the order of a rollout. Who renders it from the same plan gets the same.
pub fn below_access(plan: &Plan) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::new();
    for of in plan.in_order().into_iter().filter(|of| of.service.is_below_access()) {
        let template = service(plan, of)?.deployment.spec.map(|spec| spec.template);
        bytes.extend(serde_json::to_vec(&template)?);
    }
    Ok(format!("{:016x}", xxh3_64(&bytes)))
}

/// The Service of those that serve business lines, as the spec exposes it.
fn exposed_service(
    plan: &Plan,
    name: String,
    labels: BTreeMap<String, String>,
    selector: BTreeMap<String, String>,
    mut port: ServicePort,
) -> Service {
    let exposure = &plan.spec.services.business.exposure;
    port.node_port = exposure.node_port.map(i32::from);
    let exposed = endpoints::Exposure {
        kind: exposure.kind.as_str(),
        class: exposure.load_balancer_class.clone(),
        source_ranges: Vec::new(),
        traffic_policy: exposure.external_traffic_policy.as_str(),
        annotations: exposure.annotations.clone(),
    };
    endpoints::exposed(name, labels, selector, port, &exposed)
}

/// What a service mounts besides its configuration and certificate: only what it needs.
fn mounts(plan: &Plan, service: platform::Service) -> Vec<(Volume, VolumeMount)> {
    let mut list = Vec::new();
    if service.reaches_engine() {
        let secret = meta::engine_users_secret(&plan.name);
        list.push((
            pod::secret_file("valkey", secret, users::STORAGE, "password"),
            pod::mount("valkey", "/etc/kith/valkey"),
        ));
    }
    list.extend(keys(plan, service));
    if let (true, KafkaPlan::External(external)) = (service.log().is_used(), &plan.event_log.kafka) {
        list.extend(external_mounts(external));
    }
    list
}

/// The keys of client tokens, as a service needs them: the public ones alone, or all.
pub fn keys(plan: &Plan, service: platform::Service) -> Option<(Volume, VolumeMount)> {
    let files: &[&str] = match service.keys() {
        Keys::None => return None,
        Keys::Checks => &["jwks.json"],
        Keys::Signs => &[],
    };
    let volume = pod::secret_volume("keys", meta::token_keys_secret(&plan.name), files);
    Some((volume, pod::mount("keys", settings::KEYS_DIR)))
}

fn external_mounts(external: &ExternalEventLog) -> Vec<(Volume, VolumeMount)> {
    let mut list = Vec::new();
    if let Some(tls) = &external.tls {
        if let Some(ca) = &tls.ca_secret_ref {
            let volume = pod::secret_file("kafka-ca", ca.name.clone(), &ca.key, "ca.crt");
            list.push((volume, pod::mount("kafka-ca", settings::KAFKA_CA_DIR)));
        }
        if let Some(client) = &tls.client_certificate_secret_ref {
            let volume = pod::secret_volume("kafka-client", client.name.clone(), &["tls.crt", "tls.key"]);
            list.push((volume, pod::mount("kafka-client", settings::KAFKA_CLIENT_DIR)));
        }
    }
    if let Some(sasl) = &external.sasl {
        let volume = pod::secret_volume("kafka-sasl", sasl.secret_ref.name.clone(), &["username", "password"]);
        list.push((volume, pod::mount("kafka-sasl", settings::KAFKA_SASL_DIR)));
    }
    list
}
