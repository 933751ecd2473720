//! What a row of the table says of a service.

use crate::Service;

/// The port of gRPC between services, and of ImBusiness.
const GRPC_PORT: u16 = 7_443;

/// The port of every service and of the operator where /healthz, /readyz and /metrics are served.
pub const ADMIN_PORT: u16 = 9_090;

/// Topics of the event log that more than one part names, without the name of the ChatCluster and the dot that come before them.
pub mod topic {
    /// What storage changed, in order per partition.
    pub const EVENTS: &str = "events";
    /// Who logged in and out.
    pub const SESSIONS: &str = "sessions";
    /// Copies of the records that `tasks` set aside.
    pub const SET_ASIDE: &str = "events.dlq";
}

/// One service, as the table declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declaration {
    /// In names of objects, in certificates, on the command line; the crate is `kith-<name>`. Lower-case letters and hyphens.
    pub name: &'static str,
    /// What it is, as a sentence that goes on from its name; users read it in `kubectl explain` and in the help of `kith`.
    pub about: &'static str,
    /// Where it stands; calls go down the layers.
    pub layer: Layer,
    /// Where it serves.
    pub port: u16,
    /// Whom it serves, and so how it is found.
    pub serves: Serves,
    /// Whether it reaches the storage engine.
    pub engine: bool,
    /// What it does with the keys of client tokens.
    pub keys: Keys,
    /// What it does on the event log.
    pub log: EventLog,
    /// The version of Kith that it came with, for example `0.2.0`: a ChatCluster of an earlier one has nothing of it. None: it was always
    /// there.
    pub since: Option<&'static str>,
}

impl Declaration {
    /// What a row says that names nothing but itself.
    pub(crate) const BASE: Self = Self {
        name: "",
        about: "",
        layer: Layer::Logic,
        port: GRPC_PORT,
        serves: Serves::Nobody,
        engine: false,
        keys: Keys::None,
        log: EventLog::NONE,
        since: None,
    };
}

/// A layer, from below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// Keeps chat data.
    Storage,
    /// Decides what happens with it.
    Logic,
    /// Is what clients and business lines see.
    Access,
}

impl Layer {
    /// From below.
    pub const ALL: [Self; 3] = [Self::Storage, Self::Logic, Self::Access];

    /// As text calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Logic => "logic",
            Self::Access => "access",
        }
    }
}

/// Whom a service serves. It decides how the service is found, who may connect to it, and which names are in its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// Nobody: it works off the event log.
    Nobody,
    /// Other services of the ChatCluster, with mTLS, and those alone that these methods name. Each instance is dialled by its address,
    /// which a headless Service tells.
    Platform(&'static [Rpc]),
    /// Business lines, at one Service of the ChatCluster that everyone may connect to; it tells its callers apart itself. The name is that
    /// of its gRPC service.
    Lines(&'static str),
    /// Clients, at the Gateways: each Gateway runs pods of its own, which everyone may connect to.
    Clients,
}

/// A gRPC service and who may call which of its methods; a method that is not here may be called by nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rpc {
    /// `<package>.<Service>`, for example `kith.sessions.v1.Sessions`.
    pub name: &'static str,
    /// All methods.
    pub methods: &'static [Method],
}

/// A method and those who may call it.
pub type Method = (&'static str, &'static [Service]);

/// What a service does with the keys of client tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// Nothing.
    None,
    /// It checks tokens and has the public keys alone.
    Checks,
    /// It signs tokens and has the private keys, too.
    Signs,
}

/// What a service does on the event log, and what it therefore may do there. Topics and groups stand without the name of the ChatCluster
/// and the dot that come before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventLog {
    /// Topics that it writes.
    pub writes: &'static [&'static str],
    /// Topics that it reads outside of any group, when it looks for what was lost.
    pub scans: &'static [&'static str],
    /// Topics that it reads event by event.
    pub consumes: &'static [Consumer],
    /// Topics that it makes when it first needs them, and writes.
    pub makes: &'static [&'static str],
}

impl EventLog {
    /// Nothing.
    pub const NONE: Self = Self { writes: &[], scans: &[], consumes: &[], makes: &[] };

    /// Whether the service does anything there.
    pub const fn is_used(&self) -> bool {
        !(self.writes.is_empty() && self.scans.is_empty() && self.consumes.is_empty() && self.makes.is_empty())
    }
}

/// A consumer group. It keeps its marks in a topic of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumer {
    /// The group.
    pub group: &'static str,
    /// What it reads.
    pub topic: &'static str,
}
