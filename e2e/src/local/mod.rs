//! The whole platform as processes of this machine, without Kubernetes: Valkey with replicas, a Kafka broker and every service from the
//! built binary, with the certificates and the configuration that the operator would render. Each part can be killed, frozen,
//! started again.

mod faults;
mod instances;
mod keys;
mod part;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kith_kit::config::{Auth, Cluster, Config, Durability, Gateway, Limits, Services, Tls};
use kith_platform::{Service, in_order};
use kith_testing::{Jit, KafkaBroker, Pki, Process, TestError, ValkeyCluster, ValkeyOptions};
use tempfile::TempDir;

pub use faults::{Fault, FaultError, Run, fault_run};
pub use instances::Instances;
pub use part::Instance;
pub(crate) use part::cpu_of;

use crate::{
    business::{self, Business, BusinessError, Files},
    client::ClientError,
    kafka::Reader,
    target::Target,
    wait::{TimedOut, await_until},
};

/// The ChatCluster's name and UID.
const NAME: &str = "local";
const UID: &str = "0b5ff6c1-6ee2-4a6e-8c5f-5a0d3c9b7a11";
/// From the start of a process to its readiness.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// A process that is asked to end drains first.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// Why the platform could not be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Valkey, Kafka, certificates, processes.
    #[error(transparent)]
    Test(#[from] TestError),
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The key that signs tokens.
    #[error("token key: {0}")]
    Key(#[from] rcgen::Error),
    /// A part did not become ready.
    #[error("{0}\n{1}")]
    NotReady(TimedOut, String),
    /// The service binary is not built.
    #[error("{0} is not there: cargo build --release -p kith")]
    NotBuilt(PathBuf),
    /// ImBusiness.
    #[error(transparent)]
    Business(#[from] BusinessError),
    /// The client.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many processes run of each service; of those that clients see, they know the first one alone.
    pub instances: Instances,
    /// Replicas of the Valkey shard.
    pub replicas: usize,
    /// Partitions of the event log.
    pub event_partitions: u32,
    /// mTLS everywhere, as in a cluster.
    pub tls: bool,
    /// `always`, `everysec` or `no`.
    pub fsync: &'static str,
    /// How the broker's code is compiled.
    pub jit: Jit,
    /// Bounds.
    pub limits: Limits,
    /// The gateway's own settings.
    pub gateway: Gateway,
    /// Logging of the services, as `RUST_LOG`.
    pub log: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            instances: Instances::default(),
            replicas: 1,
            event_partitions: 8,
            tls: true,
            fsync: "always",
            jit: Jit::default(),
            limits: Limits::default(),
            gateway: Gateway::default(),
            log: std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()),
        }
    }
}

/// A running platform; everything ends with it.
pub struct Platform {
    options: Options,
    /// The storage engine.
    pub valkey: ValkeyCluster,
    /// The event log.
    pub kafka: KafkaBroker,
    instances: Vec<Instance>,
    pki: Pki,
    line: Option<Tls>,
    dir: TempDir,
}

impl Platform {
    /// Starts everything and waits until every part is ready.
    pub async fn start(options: Options) -> Result<Self, LocalError> {
        kith_kit::tls::install_provider();
        let binary = part::binary();
        if !binary.is_file() {
            return Err(LocalError::NotBuilt(binary));
        }
        let dir = TempDir::with_prefix("kith-local-").map_err(file(Path::new("temporary folder")))?;
        let pki = Pki::new(NAME, UID)?;
        let tls = if options.tls { Some(pki.service("valkey")?) } else { None };
        let (valkey, kafka) = tokio::try_join!(
            ValkeyCluster::start(ValkeyOptions {
                replicas: options.replicas,
                fsync: options.fsync,
                ack_replicas: 1,
                library: Some(library()?),
                tls,
                cluster: NAME.to_owned(),
                ..ValkeyOptions::default()
            }),
            KafkaBroker::start_with(options.jit),
        )?;
        keys::write(&dir.path().join("keys"))?;
        let line = if options.tls { Some(pki.line("default")?) } else { None };
        let mut platform = Self { options, valkey, kafka, instances: Vec::new(), pki, line, dir };
        platform.add_all()?;
        let all: Vec<usize> = (0..platform.instances.len()).collect();
        for at in &all {
            platform.spawn(*at)?;
        }
        for at in all {
            platform.await_ready(at).await?;
        }
        Ok(platform)
    }

    fn add_all(&mut self) -> Result<(), LocalError> {
        for service in in_order(Service::ALL.iter().copied()) {
            let tls = if self.options.tls { Some(self.pki.service(service.name())?) } else { None };
            for index in 0..self.options.instances.of(service) {
                self.instances.push(Instance::new(service, index, &self.config(tls.clone()), self.dir.path())?);
            }
        }
        Service::called_by_others().try_for_each(|service| self.publish(service))
    }

    fn config(&self, tls: Option<Tls>) -> Config {
        let endpoints = |service| format!("file:{}", self.endpoints_file(service).display());
        Config {
            cluster: Cluster {
                name: NAME.to_owned(),
                uid: UID.to_owned(),
                partitions: 1024,
                event_partitions: self.options.event_partitions,
            },
            services: Services::all(endpoints),
            tls,
            valkey: Some(self.valkey.config()),
            kafka: Some(self.kafka.config()),
            auth: Auth { keys_dir: self.dir.path().join("keys"), token_ttl_s: 86_400 },
            durability: Durability::default(),
            limits: self.options.limits.clone(),
            gateway: Some(self.options.gateway.clone()),
        }
    }

    fn endpoints_file(&self, service: Service) -> PathBuf {
        self.dir.path().join(format!("{}.endpoints", service.name()))
    }

    /// Writes which instances of a service others may call, as the endpoints of a Service.
    fn publish(&self, service: Service) -> Result<(), LocalError> {
        let path = self.endpoints_file(service);
        let lines: Vec<String> = self
            .instances
            .iter()
            .filter(|i| i.service == service && i.published)
            .map(|i| format!("{}\n", i.listen))
            .collect();
        // Renamed into place: a reader never sees half a file.
        let part = path.with_extension("part");
        std::fs::write(&part, lines.concat()).map_err(file(&part))?;
        std::fs::rename(&part, &path).map_err(file(&path))
    }

    /// Where an instance stands among all.
    pub fn find(&self, service: Service, index: usize) -> Option<usize> {
        self.instances.iter().position(|i| i.service == service && i.index == index)
    }

    /// Instances of a service.
    pub fn count(&self, service: Service) -> usize {
        self.instances.iter().filter(|i| i.service == service).count()
    }

    /// An instance.
    pub fn instance(&self, at: usize) -> &Instance {
        &self.instances[at]
    }

    fn spawn(&mut self, at: usize) -> Result<(), LocalError> {
        self.instances[at].spawn(&self.options.log)?;
        self.instances[at].published = true;
        self.publish_if_called(at)
    }

    fn publish_if_called(&self, at: usize) -> Result<(), LocalError> {
        let service = self.instances[at].service;
        if service.rpcs().is_some() { self.publish(service) } else { Ok(()) }
    }

    async fn await_ready(&mut self, at: usize) -> Result<(), LocalError> {
        let instance = &mut self.instances[at];
        let name = instance.to_string();
        let admin = instance.admin;
        let process = instance.process_mut();
        let ready = await_until(&format!("{name} to be ready"), READY_DEADLINE, || {
            let running = process.as_mut().is_some_and(Process::is_running);
            async move {
                if !running {
                    return Ok(Err("it has ended".to_owned()));
                }
                part::ready(admin).await.map(Ok)
            }
        })
        .await;
        let failed = |why: TimedOut, instance: &Instance| LocalError::NotReady(why, instance.log_tail());
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(last)) => Err(failed(TimedOut { what: name, deadline: READY_DEADLINE, last }, &self.instances[at])),
            Err(why) => Err(failed(why, &self.instances[at])),
        }
    }

    /// SIGKILL. Others are told a moment later, as a kubelet would.
    pub fn kill(&mut self, at: usize) -> Result<(), LocalError> {
        self.instances[at].kill()?;
        self.instances[at].published = false;
        self.publish_if_called(at)
    }

    /// SIGTERM, and waits for the end of the drain. As in a cluster, nobody is sent to an instance that is ending.
    pub async fn stop(&mut self, at: usize) -> Result<(), LocalError> {
        self.instances[at].published = false;
        self.publish_if_called(at)?;
        self.instances[at].stop(STOP_GRACE).await
    }

    /// Starts an instance again and waits until it is ready.
    pub async fn restart(&mut self, at: usize) -> Result<(), LocalError> {
        self.spawn(at)?;
        self.await_ready(at).await
    }

    /// SIGSTOP, without telling anyone.
    pub fn freeze(&mut self, at: usize) -> Result<(), LocalError> {
        Ok(self.instances[at].freeze()?)
    }

    /// Takes an instance from what others see, as a failed readiness probe does, or puts it back.
    pub fn set_published(&mut self, at: usize, published: bool) -> Result<(), LocalError> {
        self.instances[at].published = published;
        self.publish_if_called(at)
    }

    /// SIGCONT.
    pub fn thaw(&mut self, at: usize) -> Result<(), LocalError> {
        Ok(self.instances[at].thaw()?)
    }

    /// The platform as its users see it.
    pub async fn target(&self) -> Result<Target, LocalError> {
        let address =
            |service| self.find(service, 0).map(|at| self.instances[at].listen.to_string()).unwrap_or_default();
        let files = self.line.as_ref().map(|tls| Files { ca: &tls.ca, identity: Some((&tls.cert, &tls.key)) });
        let business = Business::connect_to(&address(Service::Business), NAME, files).await?;
        let (api, ws) =
            (format!("http://{}", address(Service::Api)), format!("ws://{}/v1/connect", address(Service::Gateway)));
        Ok(Target::new(&api, &ws, business, Reader::plain(&self.kafka.bootstrap()), NAME)?)
    }

    /// A connection to ImBusiness with the certificate of a business line, or with none; in plain text where the platform has no TLS.
    pub async fn business_channel(&self, line: Option<&str>) -> Result<tonic::transport::Channel, LocalError> {
        let address =
            self.find(Service::Business, 0).map(|at| self.instances[at].listen.to_string()).unwrap_or_default();
        let own = line.map(|line| self.pki.line(line)).transpose()?;
        let files = self.line.as_ref().map(|tls| Files {
            ca: &tls.ca,
            identity: own.as_ref().map(|own| (own.cert.as_path(), own.key.as_path())),
        });
        Ok(business::channel(&address, NAME, files).await?)
    }

    /// A configuration as a part of the platform has it, for callers that speak to storage themselves.
    pub fn client_config(&self, component: &str) -> Result<Config, LocalError> {
        let tls = if self.options.tls { Some(self.pki.service(component)?) } else { None };
        Ok(self.config(tls))
    }

    /// CPU time that the services have used so far, by instance.
    pub fn cpu(&self) -> Vec<(String, Duration)> {
        self.instances.iter().filter_map(|i| Some((i.to_string(), part::cpu_of(i.pid()?)?))).collect()
    }

    /// Resident memory of an instance in bytes.
    pub fn memory(&self, at: usize) -> Option<u64> {
        part::memory_of(self.instances[at].pid()?)
    }
}

/// The function library as the platform loads it.
fn library() -> Result<String, LocalError> {
    let path = crate::env::workspace().join("services/storage/lua/kith1.lua");
    std::fs::read_to_string(&path).map_err(file(&path))
}

fn file(path: &Path) -> impl FnOnce(std::io::Error) -> LocalError {
    let path = path.to_owned();
    move |source| LocalError::File { path, source }
}
