//! The state: what every route may use. Below all that handles requests.

use std::sync::Arc;

use kith_clients::{login::Authenticator, sessions::Sessions, storage::Storage};
use kith_kit::config::Config;
use kith_rpc::{budget::Budget, cursor::Cursors, origins::Origins};
use kith_send::{
    Doorway, Limiter,
    limit::{LateRefusals, TakenBytes},
};

use crate::places::InFlight;

/// Items that a user may name for each request per second that is allowed: on average, and at once.
const ITEMS_PER_REQUEST: u32 = 5;
const ITEMS_AT_ONCE: u32 = 50;

/// Requests without a token that counts, which fail, a second and address, that are answered at once.
const STRANGERS: u32 = 20;

/// What every handler may use.
pub(crate) struct App {
    pub(crate) storage: Storage,
    pub(crate) sessions: Sessions,
    pub(crate) doorway: Doorway,
    /// Of calls that page through more than one list of storage.
    pub(crate) cursors: Cursors,
    pub(crate) authenticator: Authenticator,
    /// Requests per user.
    pub(crate) requests: Limiter,
    /// Requests that may be worked on.
    pub(crate) in_flight: InFlight,
    /// Items of calls that take many: each costs as much as a small call.
    pub(crate) items: Limiter,
    /// Sends per user.
    pub(crate) sends: Limiter,
    /// Bytes under way, and those that were answered lately.
    pub(crate) budget: Budget,
    pub(crate) taken: TakenBytes,
    /// Requests of nobody in particular that failed, by address.
    pub(crate) strangers: Limiter,
    pub(crate) refusals: LateRefusals,
    /// Pages that may call.
    pub(crate) origins: Origins,
    /// How long a sender may recall or edit.
    pub(crate) recall_ms: i64,
}

/// The state as axum hands it out.
pub(crate) type Shared = Arc<App>;

impl App {
    pub(crate) fn new(config: &Config, storage: Storage, sessions: Sessions, authenticator: Authenticator) -> Self {
        let gateway = config.gateway.clone().unwrap_or_default();
        Self {
            doorway: Doorway::of_clients(storage.clone(), gateway.sent_bytes_per_minute),
            cursors: Cursors::new(&config.cluster.uid),
            storage,
            sessions,
            authenticator,
            requests: Limiter::with_burst(gateway.requests_per_second, gateway.burst),
            in_flight: InFlight::new(gateway.requests_in_flight),
            items: Limiter::with_burst(
                gateway.requests_per_second.saturating_mul(ITEMS_PER_REQUEST),
                gateway.requests_per_second.saturating_mul(ITEMS_AT_ONCE),
            ),
            sends: Limiter::new(config.limits.sends_per_second),
            budget: Budget::new("kith_api_over_budget_total"),
            taken: TakenBytes::default(),
            strangers: Limiter::new(STRANGERS),
            refusals: LateRefusals::default(),
            origins: Origins::new(&gateway.api_origins),
            recall_ms: config.limits.recall_ms,
        }
    }
}
