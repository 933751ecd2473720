//! What the routes share, and the table of routes.

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{delete, get, patch, post, put},
};
use kith_clients::{login::Authenticator, sessions::Sessions, storage::Storage};
use kith_kit::config::Config;
use kith_rpc::{budget::Budget, cursor::Cursors, origins::Origins};
use kith_send::{
    Doorway, Limiter,
    limit::{LateRefusals, TakenBytes},
};

use crate::{
    budget::InFlight,
    extract::Segments,
    middleware,
    routes::{blocks, conversations, devices, friends, messages, meta, presence, sync, users},
};

/// The largest request body: content of 64 KiB, escaped, and the fields around it.
pub(crate) const MAX_BODY_BYTES: usize = 512 << 10;

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

/// All routes of the HTTP API.
pub(crate) fn router(app: App) -> Router {
    let routes = Router::new()
        .route("/v1/messages", post(messages::send))
        .route("/v1/conversations", get(conversations::list))
        .route(
            "/v1/conversations/{id}",
            get(conversations::get).patch(conversations::update).delete(conversations::clear),
        )
        .route("/v1/conversations/{id}/messages", get(messages::history))
        .route("/v1/conversations/{id}/messages/{seq}", patch(messages::edit))
        .route("/v1/conversations/{id}/messages/{seq}/recall", post(messages::recall))
        .route(
            "/v1/conversations/{id}/messages/{seq}/reactions/{emoji}",
            put(messages::react).delete(messages::unreact),
        )
        .route("/v1/conversations/{id}/read", post(conversations::read))
        .route("/v1/conversations/{id}/receipts", get(conversations::receipts))
        .route("/v1/ack", post(sync::ack))
        .route("/v1/sync", post(sync::sync))
        .route("/v1/me", get(users::me).patch(users::update_me))
        .route("/v1/users/{id}", get(users::get))
        .route("/v1/users:batchGet", post(users::batch_get))
        .route("/v1/friends", get(friends::list))
        .route("/v1/friends/{user}", patch(friends::update).delete(friends::remove))
        // `requests` is also the id of a user, and `push-token` below that of a device: what the fixed word does not take is theirs.
        .route(
            "/v1/friends/requests",
            get(friends::requests)
                .post(friends::request)
                .patch(|app, caller, body| friends::update(app, caller, Segments("requests".to_owned()), body))
                .delete(|app, caller| friends::remove(app, caller, Segments("requests".to_owned()))),
        )
        .route("/v1/friends/requests/{user}", delete(friends::withdraw))
        .route("/v1/friends/requests/{user}/accept", post(friends::accept))
        .route("/v1/friends/requests/{user}/reject", post(friends::reject))
        .route("/v1/blocks", get(blocks::list))
        .route("/v1/blocks/{user}", put(blocks::block).delete(blocks::unblock))
        .route("/v1/presence:query", post(presence::query))
        .route("/v1/devices", get(devices::list))
        .route(
            "/v1/devices/push-token",
            put(devices::push_token)
                .delete(|app, caller| devices::remove(app, caller, Segments("push-token".to_owned()))),
        )
        .route("/v1/devices/{id}", delete(devices::remove))
        .route("/v1/openapi.json", get(meta::openapi))
        .route("/.well-known/jwks.json", get(meta::jwks))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
    let app = Arc::new(app);
    middleware::around(routes, &app).with_state(app)
}
