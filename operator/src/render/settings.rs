//! The configuration of the services: `kith_kit::config::Config`, rendered from the same types that the services read.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::ConfigMap;
use kith_crds::{Gateway as GatewayObject, chatcluster::ExternalEventLog, conditions::Finding};
use kith_kit::config::{
    Auth, CertFiles, Cluster, Config, Durability, Gateway, Kafka, KafkaSasl, KafkaTls, Limits, TLS_DIR, Tls, Valkey,
};
use kith_platform::{Keys, Service};
use xxhash_rust::xxh3::xxh3_64;

use super::{meta, valkey::CLIENT_PORT, versions};
use crate::{
    pki::users,
    plan::{KafkaPlan, Plan, invalid},
};

/// Where a pod finds the configuration.
pub const CONFIG_FILE: &str = "/etc/kith/config.json";
/// The folder of token keys.
pub const KEYS_DIR: &str = "/etc/kith/keys";
/// The password of the engine's user.
pub const VALKEY_PASSWORD: &str = "/etc/kith/valkey/password";
/// The CA of external brokers.
pub const KAFKA_CA_DIR: &str = "/etc/kith/kafka-ca";
/// The client certificate towards external brokers.
pub const KAFKA_CLIENT_DIR: &str = "/etc/kith/kafka-client";
/// The certificate that clients of a Gateway are shown.
pub const CLIENT_TLS_DIR: &str = "/etc/kith/client-tls";
/// Its files, which are the keys of its Secret: the certificate with its chain, and its key.
pub const TLS_FILES: [&str; 2] = ["tls.crt", "tls.key"];
/// The login at external brokers.
pub const KAFKA_SASL_DIR: &str = "/etc/kith/kafka-sasl";

/// What a service of the ChatCluster reads: the sections that it uses, and of the rest nothing that a spec could change. So a service cannot
/// read what its pods are not replaced for, and is not restarted for what it does not read.
pub fn config(plan: &Plan, service: Service) -> Config {
    let endpoints = |called: Service| {
        let host = format!("{}.{}.svc", meta::component_name(&plan.name, called.into()), plan.namespace);
        (called, format!("dns:{host}:{}", called.port()))
    };
    let called = Service::called_by_others().filter(|called| versions::has(&plan.version, *called));
    Config {
        cluster: Cluster {
            name: plan.cluster_name.clone(),
            uid: plan.data_uid.clone(),
            partitions: plan.valkey.partitions,
            event_partitions: plan.event_log.partitions,
        },
        services: called.map(endpoints).collect(),
        tls: Some(Tls::in_dir(TLS_DIR)),
        valkey: service.reaches_engine().then(|| valkey(plan)),
        kafka: service.log().is_used().then(|| kafka(plan)),
        auth: match service.keys() {
            Keys::Signs => Auth { token_ttl_s: plan.token_ttl_s, ..Auth::in_dir(KEYS_DIR) },
            Keys::Checks | Keys::None => Auth::in_dir(KEYS_DIR),
        },
        durability: if service.reaches_engine() {
            Durability { ack_replicas: plan.valkey.durability.ack_replicas }
        } else {
            Durability::default()
        },
        limits: Limits::default(),
        gateway: None,
    }
}

/// Seeds are the first shard's: it always exists, so that shards come and go without a restart of the services.
fn valkey(plan: &Plan) -> Valkey {
    let service = meta::shard_name(&kith_crds::StorageShard::name_of(&plan.name, 0));
    let mut seeds = vec![format!("{service}.{}.svc:{CLIENT_PORT}", plan.namespace)];
    seeds.extend((0..2).map(|i| format!("{service}-{i}.{service}.{}.svc:{CLIENT_PORT}", plan.namespace)));
    Valkey {
        seeds,
        username: Some(users::STORAGE.to_owned()),
        password_file: Some(PathBuf::from(VALKEY_PASSWORD)),
        tls: true,
    }
}

fn kafka(plan: &Plan) -> Kafka {
    let (tls, sasl) = match &plan.event_log.kafka {
        KafkaPlan::Managed(_) => {
            let own = Tls::in_dir(TLS_DIR);
            (Some(KafkaTls { ca: Some(own.ca), cert: Some(own.cert), key: Some(own.key) }), None)
        }
        KafkaPlan::External(external) => (external_tls(external), external_sasl(external)),
    };
    // Both are at most the number of brokers, which the API bounds far below this.
    let copies = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Kafka {
        bootstrap: plan.bootstrap(),
        tls,
        sasl,
        replication_factor: copies(plan.event_log.replication),
        min_insync: copies(plan.event_log.min_insync),
    }
}

fn external_tls(external: &ExternalEventLog) -> Option<KafkaTls> {
    let tls = external.tls.as_ref()?;
    let client = tls.client_certificate_secret_ref.as_ref().map(|_| PathBuf::from(KAFKA_CLIENT_DIR));
    Some(KafkaTls {
        ca: tls.ca_secret_ref.as_ref().map(|_| PathBuf::from(KAFKA_CA_DIR).join("ca.crt")),
        cert: client.as_ref().map(|dir| dir.join("tls.crt")),
        key: client.as_ref().map(|dir| dir.join("tls.key")),
    })
}

fn external_sasl(external: &ExternalEventLog) -> Option<KafkaSasl> {
    let sasl = external.sasl.as_ref()?;
    let dir = PathBuf::from(KAFKA_SASL_DIR);
    Some(KafkaSasl {
        mechanism: sasl.mechanism.as_str().to_owned(),
        username_file: dir.join("username"),
        password_file: dir.join("password"),
    })
}

/// What the pods of one of a Gateway's listeners read: the ChatCluster's configuration with the Gateway's own settings for this listener. A
/// finding names the field that cannot be used.
pub fn gateway_config(plan: &Plan, gateway: &GatewayObject, service: Service) -> Result<Config, Finding> {
    let ms = |field: &str, duration: &kith_crds::shared::Duration| {
        let length = duration.to_std().map_err(|error| invalid(format!("spec.{field}: {error}")))?;
        u32::try_from(length.as_millis()).map_err(|_| invalid(format!("spec.{field}: {} is too long", duration.0)))
    };
    let most = &gateway.spec.limits.sent_bytes_per_minute_per_user;
    let field = "spec.limits.sentBytesPerMinutePerUser";
    let sent_bytes = most.to_bytes().map_err(|error| invalid(format!("{field}: {error}")))?;
    let sent_bytes = u32::try_from(sent_bytes).map_err(|_| invalid(format!("{field}: {} is too much", most.0)))?;
    let tls = gateway.spec.tls.as_ref().map(|_| {
        let [cert, key] = TLS_FILES.map(|file| PathBuf::from(CLIENT_TLS_DIR).join(file));
        CertFiles { cert, key }
    });
    let common = Gateway { sent_bytes_per_minute: sent_bytes, tls, ..Gateway::default() };
    let settings = if service == Service::Api {
        let api = &gateway.spec.api;
        Gateway {
            requests_per_second: api.limits.requests_per_second_per_user,
            burst: api.limits.burst_per_user,
            requests_in_flight: api.limits.requests_in_flight_per_pod,
            idle_ms: ms("api.idleTimeout", &api.idle_timeout)?,
            api_origins: api.allowed_origins.clone(),
            ..common
        }
    } else {
        let websocket = &gateway.spec.websocket;
        Gateway {
            heartbeat_ms: ms("websocket.heartbeat", &websocket.heartbeat)?,
            max_connections: websocket.limits.connections_per_pod,
            max_sessions_per_user: websocket.limits.connections_per_user,
            frames_per_second: websocket.limits.frames_per_second,
            frames_queued: websocket.limits.frames_queued,
            drain_ms: ms("websocket.drain.deadline", &websocket.drain.deadline)?,
            drain_per_second: websocket.drain.connections_per_second,
            websocket_origins: websocket.allowed_origins.clone(),
            ..common
        }
    };
    Ok(Config { gateway: Some(settings), ..config(plan, service) })
}

/// A configuration as a ConfigMap, and its hash for the pods' templates.
pub fn config_map(
    name: String,
    labels: std::collections::BTreeMap<String, String>,
    config: &Config,
) -> Result<(ConfigMap, String), serde_json::Error> {
    let text = serde_json::to_string_pretty(config)?;
    let hash = format!("{:016x}", xxh3_64(text.as_bytes()));
    let map = ConfigMap {
        metadata: meta::meta(name, labels),
        data: Some([("config.json".to_owned(), text)].into()),
        ..ConfigMap::default()
    };
    Ok((map, hash))
}
