//! The services of the platform: the table that declares each of them once, and what follows from it.
//!
//! To add a service, write its row in [`table`](mod@table), its crate and its `.proto`, and run `make generate`. From the row come the component with its
//! names, ports and certificate, who may connect to it and who may call which method, its section in the configuration of the others, its
//! rights on the event log, the order of a rollout, its settings in the custom resource, its subcommand of `kith`, its processes in tests and its rows in `docs/names.md`.
//!
//! This crate knows no Kubernetes, no gRPC and no configuration: it says what is, and others render it. It depends on nothing, so that
//! everything can depend on it. What Rust needs as code of its own is written by [`generate`].

mod callers;
mod declaration;
pub mod generate;
mod names;
mod order;
pub mod table;

pub use callers::{METHODS_OF_ALL, OPERATOR, may_call};
pub use declaration::{ADMIN_PORT, Consumer, Declaration, EventLog, Keys, Layer, Method, Rpc, Serves, topic};
pub use names::listed;
pub use order::in_order;
pub use table::Service;
