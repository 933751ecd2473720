//! Rust that has something of its own for each service: a subcommand, a field of a type. As `rustfmt` leaves it.

use super::each;
use crate::{Serves, Service};

const WRITTEN: &str = "Written by `cargo servicegen` from `services/platform`: change it there.";

/// `services/kith/src/services.rs`: the subcommands that run services.
pub(super) fn subcommands() -> String {
    let variants = each(|s| format!("    /// {}\n    {}(Run),\n", s.about(), s.variant()));
    let parts = each(|s| format!("            Self::{0}(run) => (Service::{0}, run),\n", s.variant()));
    let runs = each(|s| {
        let bound = if s.listens() { "bound?, " } else { "" };
        let (variant, ident) = (s.variant(), s.ident());
        format!(
            "        Service::{variant} => kith_{ident}::run(config, instance, {bound}readiness, shutdown).await?,\n"
        )
    });
    format!(
        "//! The subcommands that run services, and what each of them runs. {WRITTEN}

use clap::Subcommand;
use kith_kit::{{
    config::{{Config, Instance}},
    readiness::Readiness,
    shutdown::CancellationToken,
}};
use kith_platform::Service;
use tokio::net::TcpListener;

use crate::{{Failure, Run}};

/// A service to run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {{
{variants}}}

impl Command {{
    /// Which service, and what it is told.
    pub(crate) fn parts(self) -> (Service, Run) {{
        match self {{
{parts}        }}
    }}
}}

/// Runs a service until `shutdown`; `listener` is there for those that listen.
pub(crate) async fn run(
    service: Service,
    config: Config,
    instance: Instance,
    listener: Option<TcpListener>,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), Failure> {{
    let bound = listener.ok_or_else(|| Failure::from(\"no listener\"));
    match service {{
{runs}    }}
    Ok(())
}}
"
    )
}

/// `crds/src/chatcluster/settings.rs`: what a ChatCluster's spec says of its services.
pub(super) fn settings() -> String {
    let at_gateways = |s: Service| s.is_at_gateways();
    let fields = each(|s| {
        let kind = if matches!(s.serves(), Serves::Lines(_)) { "BusinessSpec" } else { "ServiceSpec" };
        let (name, about, ident) = (s.name(), s.declaration().about, s.ident());
        let field = format!("    /// `{name}`: {about}\n    #[serde(default)]\n    pub {ident}: {kind},\n");
        if at_gateways(s) { String::new() } else { field }
    });
    let arms = each(|s| {
        let (variant, ident) = (s.variant(), s.ident());
        let arm = format!("            Service::{variant} => Some((self.{ident}.replicas, &self.{ident}.pod)),\n");
        if at_gateways(s) { String::new() } else { arm }
    });
    let elsewhere: Vec<String> =
        Service::ALL.iter().filter(|s| at_gateways(**s)).map(|s| format!("Service::{}", s.variant())).collect();
    let elsewhere = elsewhere.join(" | ");
    format!(
        "//! What a ChatCluster's spec says of its services. {WRITTEN}

use kith_platform::Service;
use schemars::JsonSchema;
use serde::{{Deserialize, Serialize}};

use super::services::{{BusinessSpec, ServiceSpec}};
use crate::shared::{{PodSettings, default_is_empty_object}};

/// The services between the layers.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = \"camelCase\")]
pub struct ServicesSpec {{
{fields}}}

default_is_empty_object!(ServicesSpec);

impl ServicesSpec {{
    /// The number of a service's pods, and their settings; none for what Gateways run.
    pub fn of(&self, service: Service) -> Option<(u32, &PodSettings)> {{
        match service {{
{arms}            {elsewhere} => None,
        }}
    }}
}}
"
    )
}
