//! The build step of Secrets: what exists and is sound stays byte for byte, what is missing is made, what is near its end is renewed. Pure
//! but for the randomness of new keys.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, Secret},
    jiff::Timestamp,
};
use kith_crds::conditions::{self, Finding, reason};
use kith_platform::Serves;
use kube::api::ObjectMeta;

use super::identity;
use crate::{
    apply::{ApplyError, Live},
    pki::{
        Asked, Authorities, Authority, EngineUsers, Leaf, LeafRequest, PkiError, Renewal, TokenKeys, hosts_of, users,
    },
    plan::{KafkaPlan, Plan},
    render::{
        kafka,
        meta::{self, Component},
    },
    runtime::Login,
    stores::Stores,
};

/// All Secrets of a ChatCluster, and what of them the operator itself uses.
pub struct Secrets {
    /// To be applied.
    pub objects: Vec<Secret>,
    /// The operator's login at the engine.
    pub login: Login,
    /// The brokers' certificate, and what they trust where that is more than one authority: a change of either restarts them.
    pub kafka_certificate: String,
    /// Whether what was asked of the certificate authority is under way or done.
    pub answered: bool,
    /// What was made or renewed, for Events; never with key material.
    pub changes: Vec<String>,
}

/// What the Secrets hang on besides the plan.
#[derive(Clone, Copy, Debug, Default)]
pub struct Situation<'a> {
    /// Pods exist, which trust the authority, take the tokens and hold the passwords in memory.
    pub runs: bool,
    /// Hosts by which brokers are dialled from outside.
    pub broker_hosts: &'a [String],
    /// What a person asks of the certificate authority.
    pub asked: Option<Asked>,
    /// Whether every broker has been started with the certificates that stand.
    pub spread: bool,
}

struct Builder<'a> {
    plan: &'a Plan,
    live: &'a Live<Secret>,
    now: Timestamp,
    trusted: String,
    answered: bool,
    objects: Vec<Secret>,
    changes: Vec<String>,
}

/// Brings all Secrets up to date. While pods run on what makes a ChatCluster known, nothing takes its place.
pub fn build(plan: &Plan, live: &Live<Secret>, situation: &Situation<'_>, now: Timestamp) -> Result<Secrets, Finding> {
    let (objects, changes) = (Vec::new(), Vec::new());
    let mut builder = Builder { plan, live, now, trusted: String::new(), answered: false, objects, changes };
    let runs = situation.runs;
    let authority = builder.authority(situation)?;
    let users = builder.users(runs)?;
    builder.token_keys(runs)?;
    let mut operator = None;
    let mut kafka_certificate = String::new();
    for component in Component::of(&plan.version) {
        if component == Component::Kafka && matches!(plan.event_log.kafka, KafkaPlan::External(_)) {
            continue;
        }
        let leaf = builder.leaf(
            &authority,
            meta::tls_secret(&plan.name, component),
            meta::labels(&plan.name, component),
            &request(plan, component, situation.broker_hosts),
            component == Component::Kafka,
        )?;
        match component {
            Component::Operator => operator = Some(leaf),
            Component::Kafka => kafka_certificate = leaf.cert_pem,
            _ => {}
        }
    }
    let line = line_request(plan, meta::DEFAULT_LINE);
    let client = meta::business_client_secret(&plan.name);
    builder.leaf(&authority, client, meta::cluster_labels(&plan.name), &line, false)?;
    let leaf = operator.ok_or_else(|| broken("operator certificate", &PkiError::Clock))?;
    let password = users.password(users::OPERATOR).unwrap_or_default().to_owned();
    let Builder { objects, changes, trusted, answered, .. } = builder;
    let kafka_certificate = of_brokers(&kafka_certificate, &trusted, &authority.cert_pem);
    let login = Login { ca_pem: trusted, leaf, password };
    Ok(Secrets { objects, login, kafka_certificate, answered, changes })
}

/// Puts in what is there although nobody told of it yet: only what the API server itself does not have is made anew.
pub(super) async fn ask_for_missing(
    stores: &Stores,
    plan: &Plan,
    live: &mut Cow<'_, Live<Secret>>,
) -> Result<(), ApplyError> {
    let external = matches!(plan.event_log.kafka, KafkaPlan::External(_));
    let components = Component::of(&plan.version).filter(|c| !(external && *c == Component::Kafka));
    let leaves = components.map(|component| meta::tls_secret(&plan.name, component));
    for name in leaves.chain([meta::business_client_secret(&plan.name)]) {
        if !live.contains_key(&name)
            && let Some(secret) = stores.ask(&plan.namespace, &name).await?
        {
            live.to_mut().insert(name, secret);
        }
    }
    Ok(())
}

/// What brokers are started with: their certificate, and whom they trust where that is more than the authority that signs.
fn of_brokers(certificate: &str, trusted: &str, authority: &str) -> String {
    let more = if trusted.trim_end() == authority.trim_end() { "" } else { trusted };
    format!("{certificate}{more}")
}

/// The same as the Secrets hold it now.
pub(super) fn standing_of_brokers(cluster: &str, live: &Live<Secret>) -> Option<String> {
    let own = live.get(&meta::tls_secret(cluster, Component::Kafka))?;
    let authority = live.get(&meta::ca_secret(cluster))?;
    Some(of_brokers(text(own, "tls.crt")?, text(own, "ca.crt")?, text(authority, "ca.crt")?))
}

/// The hosts in the brokers' certificate.
pub(super) fn names_of_brokers(cluster: &str, live: &Live<Secret>) -> Vec<String> {
    let own = live.get(&meta::tls_secret(cluster, Component::Kafka));
    own.and_then(|secret| text(secret, "tls.crt")).map(hosts_of).unwrap_or_default()
}

/// Whether a pod holds what was in the Secrets: one that still waits for them does not.
pub(super) fn has_run(pod: &Pod) -> bool {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let mut states = containers.flat_map(|container| [&container.state, &container.last_state]).flatten();
    states.any(|state| state.running.is_some() || state.terminated.is_some())
}

/// Names of the Secrets that [`login`] reads.
pub(super) fn of_login(cluster: &str) -> [String; 2] {
    [meta::tls_secret(cluster, Component::Operator), meta::engine_users_secret(cluster)]
}

/// The operator's login at the engine as the Secrets hold it, whatever is the matter with the others.
pub(super) fn login(cluster: &str, live: &Live<Secret>) -> Option<Login> {
    let [own, users] = of_login(cluster);
    let (own, users) = (live.get(&own)?, live.get(&users)?);
    let of = |secret, key| text(secret, key).map(str::to_owned);
    Some(Login {
        ca_pem: of(own, "ca.crt")?,
        leaf: Leaf { cert_pem: of(own, "tls.crt")?, key_pem: of(own, "tls.key")? },
        password: of(users, users::OPERATOR)?,
    })
}

fn broken(what: &str, error: &PkiError) -> Finding {
    Finding::fails(conditions::READY, reason::RECONCILE_FAILED, format!("{what}: {error}"))
}

impl Builder<'_> {
    /// What a person can do about a Secret of the identity.
    fn way_out(&self) -> String {
        format!(
            "Delete it, and it is put back from its copy in Secret {}; where that is gone, too, restore it from a backup, or delete all pods of the ChatCluster together: then new ones are made, and every client must log in again",
            identity::name(&self.plan.data_uid)
        )
    }

    /// It is gone, as is its copy, and pods run on it.
    fn gone(&self, name: &str) -> Finding {
        let message = format!("Secret {name} is gone while pods run on what was in it. {}", self.way_out());
        Finding::fails(conditions::READY, reason::SECRET_NOT_FOUND, message)
    }

    fn push(&mut self, name: String, labels: BTreeMap<String, String>, kind: &str, files: BTreeMap<String, String>) {
        self.objects.push(Secret {
            metadata: ObjectMeta { name: Some(name), labels: Some(labels), ..ObjectMeta::default() },
            type_: Some(kind.to_owned()),
            data: Some(files.into_iter().map(|(k, v)| (k, ByteString(v.into_bytes()))).collect()),
            ..Secret::default()
        });
    }

    fn authority(&mut self, situation: &Situation<'_>) -> Result<Authority, Finding> {
        let name = meta::ca_secret(&self.plan.name);
        let mut all = match self.live.get(&name) {
            Some(secret) => Authorities::load(|file| text(secret, file).map(str::to_owned)).map_err(|error| {
                Finding::fails(
                    conditions::READY,
                    reason::SECRET_INVALID,
                    format!("Secret {name}: {error}. {}", self.way_out()),
                )
            })?,
            None if situation.runs => return Err(self.gone(&name)),
            None => {
                self.changes.push(format!("made the certificate authority (Secret {name})"));
                Authorities::generate(&self.plan.cluster_name, &self.plan.data_uid, self.now)
                    .map_err(|error| broken("certificate authority", &error))?
            }
        };
        let make = || Authority::generate(&self.plan.cluster_name, &self.plan.data_uid, self.now);
        let step = all
            .step(situation.asked, situation.spread, make, self.now)
            .map_err(|error| broken("certificate authority", &error))?;
        self.changes.extend(step.changed.map(str::to_owned));
        self.answered = step.answered;
        self.trusted = all.trusted();
        self.push(name, meta::cluster_labels(&self.plan.name), "Opaque", all.files());
        Ok(all.signing)
    }

    fn users(&mut self, runs: bool) -> Result<EngineUsers, Finding> {
        let name = meta::engine_users_secret(&self.plan.name);
        let users = match self.live.get(&name) {
            Some(secret) => {
                let entries = secret
                    .data
                    .iter()
                    .flatten()
                    .filter_map(|(k, v)| Some((k.as_str(), std::str::from_utf8(&v.0).ok()?)));
                EngineUsers::load(entries).map_err(|error| {
                    Finding::fails(
                        conditions::READY,
                        reason::SECRET_INVALID,
                        format!("Secret {name}: {error}. {}", self.way_out()),
                    )
                })?
            }
            None if runs => return Err(self.gone(&name)),
            None => {
                self.changes.push(format!("made the engine's users (Secret {name})"));
                EngineUsers::generate()
            }
        };
        self.push(name, meta::labels(&self.plan.name, Component::Valkey), "Opaque", users.files());
        Ok(users)
    }

    fn token_keys(&mut self, runs: bool) -> Result<(), Finding> {
        let name = meta::token_keys_secret(&self.plan.name);
        let mut keys = match self.live.get(&name) {
            Some(secret) => {
                let entries = secret
                    .data
                    .iter()
                    .flatten()
                    .filter_map(|(k, v)| Some((k.as_str(), std::str::from_utf8(&v.0).ok()?)));
                TokenKeys::load(entries).map_err(|error| {
                    Finding::fails(
                        conditions::READY,
                        reason::SECRET_INVALID,
                        format!("Secret {name}: {error}. {}", self.way_out()),
                    )
                })?
            }
            None if runs => return Err(self.gone(&name)),
            None => {
                self.changes.push(format!("made the key that signs client tokens (Secret {name})"));
                TokenKeys::generate(self.now).map_err(|error| broken("token keys", &error))?
            }
        };
        let rotated = keys
            .rotate(self.plan.key_rotation_s, i64::from(self.plan.token_ttl_s), self.now)
            .map_err(|error| broken("token keys", &error))?;
        if rotated {
            self.changes.push(format!("rotated the keys that sign client tokens (Secret {name})"));
        }
        let files = keys.files().map_err(|error| broken("token keys", &error))?;
        self.push(name, meta::cluster_labels(&self.plan.name), "Opaque", files);
        Ok(())
    }

    /// `joined`: also as one file of key and certificate, as Kafka wants it.
    fn leaf(
        &mut self,
        authority: &Authority,
        name: String,
        labels: BTreeMap<String, String>,
        request: &LeafRequest,
        joined: bool,
    ) -> Result<Leaf, Finding> {
        let stored = self.live.get(&name).map(|secret| Leaf {
            cert_pem: text(secret, "tls.crt").unwrap_or_default().to_owned(),
            key_pem: text(secret, "tls.key").unwrap_or_default().to_owned(),
        });
        let kept = match stored {
            None => None,
            Some(leaf) => match authority.examine(&leaf, request, self.now) {
                Renewal::Keep => Some(leaf),
                Renewal::Renew(why) => {
                    self.changes.push(format!("renewed the certificate in Secret {name}: {why}"));
                    None
                }
            },
        };
        let leaf = match kept {
            Some(leaf) => leaf,
            None => authority.issue(request, self.now).map_err(|error| broken(&name, &error))?,
        };
        let mut files: BTreeMap<String, String> =
            [("ca.crt", self.trusted.clone()), ("tls.crt", leaf.cert_pem.clone()), ("tls.key", leaf.key_pem.clone())]
                .map(|(k, v)| (k.to_owned(), v))
                .into();
        if joined {
            files.insert("keystore.pem".to_owned(), format!("{}{}", leaf.key_pem, leaf.cert_pem));
        }
        self.push(name, labels, "kubernetes.io/tls", files);
        Ok(leaf)
    }
}

fn text<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    std::str::from_utf8(&secret.data.as_ref()?.get(key)?.0).ok()
}

/// Who a business line is; nobody dials it.
pub fn line_request(plan: &Plan, line: &str) -> LeafRequest {
    LeafRequest { uri: format!("kith://{}/line/{line}", plan.data_uid), dns: Vec::new(), addresses: Vec::new() }
}

/// Who a component is and by which names it is dialled; brokers from outside by `broker_hosts`.
pub fn request(plan: &Plan, component: Component, broker_hosts: &[String]) -> LeafRequest {
    let name = meta::component_name(&plan.name, component);
    let namespace = &plan.namespace;
    let mut dns = vec![meta::internal_name(&plan.cluster_name, component)];
    let mut addresses = Vec::new();
    let mut add = |host: &str| match host.parse::<IpAddr>() {
        Ok(address) => addresses.push(address),
        Err(_) => dns.push(host.to_owned()),
    };
    match component {
        Component::Service(service) => match service.serves() {
            Serves::Platform(_) => add(&format!("{name}.{namespace}.svc")),
            Serves::Lines(_) => {
                for host in [
                    name.clone(),
                    format!("{name}.{namespace}"),
                    format!("{name}.{namespace}.svc"),
                    format!("{name}.{namespace}.svc.cluster.local"),
                ] {
                    add(&host);
                }
                plan.spec.services.business.exposure.extra_hosts.iter().for_each(|host| add(host));
            }
            Serves::Nobody | Serves::Clients => {}
        },
        Component::Kafka => {
            let [inside @ .., _] = kafka::inside_hosts(plan);
            for host in inside.iter().chain(broker_hosts) {
                add(host);
            }
        }
        Component::Valkey | Component::Operator => {}
    }
    LeafRequest { uri: format!("kith://{}/service/{}", plan.data_uid, component.name()), dns, addresses }
}
