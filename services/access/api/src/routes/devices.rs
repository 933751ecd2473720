//! The caller's devices: the list, this one's push token, and sending one away.

use axum::{Json, extract::State};
use kith_contract::{ids, json::U64, kinds::Platform, push};
use kith_kit::clock;
use kith_proto::{
    chat::v1 as chat,
    sessions::v1::KickRequest,
    storage::v1::{self as storage, DeleteDeviceRequest, ListDevicesRequest, PutDeviceRequest, RevokeTokensRequest},
};
use kith_rpc::error::Error;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use crate::{
    caller::Caller,
    extract::{Body, Segments},
    schema,
    state::Shared,
    view::{Changed, ms},
};

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::default()
        .routes(routes!(list))
        // `push-token` is also the id of a device: what the fixed word does not take is that device's.
        .routes(
            routes!(push_token)
                .map(|methods| methods.delete(|app, caller| remove(app, caller, Segments("push-token".to_owned())))),
        )
        .routes(routes!(remove))
}

/// A device of the caller.
#[derive(Debug, Serialize, ToSchema)]
struct Device {
    device_id: String,
    #[schema(value_type = Option<schema::Platform>)]
    platform: Option<Platform>,
    /// Null: no offline push. The token itself is never shown.
    #[schema(value_type = Option<schema::Provider>)]
    push_provider: Option<String>,
    #[schema(value_type = String)]
    last_seen: U64,
    /// The device of this request's token.
    current: bool,
}

/// The caller's devices.
#[derive(Debug, Serialize, ToSchema)]
struct Devices {
    devices: Vec<Device>,
}

/// The caller's devices.
#[utoipa::path(get, path = "/v1/devices", operation_id = "list_devices", tag = "devices",
    responses((status = 200, description = "All of them", body = Devices)))]
async fn list(State(app): State<Shared>, caller: Caller) -> Result<Json<Devices>, Error> {
    let found = app.storage.list_devices(ListDevicesRequest { user_id: caller.user() }).await?;
    let shown = found.devices.into_iter().map(|d| Device {
        platform: d.platform().known(),
        current: d.device_id == caller.device(),
        push_provider: Some(d.push_provider).filter(|p| !p.is_empty()),
        last_seen: ms(d.last_seen),
        device_id: d.device_id,
    });
    Ok(Json(Devices { devices: shown.collect() }))
}

/// Where offline pushes of this device go.
#[derive(Deserialize, ToSchema)]
struct PushToken {
    /// Empty: no offline push, and the token that was kept is forgotten.
    #[schema(value_type = schema::MaybeProvider)]
    provider: String,
    /// Of webpush the browser's subscription as JSON text. Of webhook opaque text that is passed on to the line's own address, and never
    /// itself an address that is called.
    #[serde(default)]
    token: String,
}

/// Where offline pushes go now; the token is not repeated.
#[derive(Debug, Serialize, ToSchema)]
struct PushState {
    device_id: String,
    #[schema(value_type = schema::MaybeProvider)]
    provider: String,
}

/// Sets the push token of the caller's device.
#[utoipa::path(put, path = "/v1/devices/push-token", operation_id = "set_push_token", tag = "devices", request_body = PushToken,
    responses((status = 200, description = "Set", body = PushState)))]
async fn push_token(
    State(app): State<Shared>,
    caller: Caller,
    Body(PushToken { provider, token }): Body<PushToken>,
) -> Result<Json<PushState>, Error> {
    push::check(&provider, &token)?;
    let device = storage::Device {
        device_id: caller.device().to_owned(),
        platform: caller.claims().platform().map_or(chat::Platform::Unspecified, Into::into).into(),
        push_provider: provider.clone(),
        push_token: token,
        last_seen: 0,
    };
    let request = PutDeviceRequest {
        user_id: caller.user(),
        device: Some(device),
        set_push: true,
        token_issued_at: caller.claims().issued_at_ms(),
    };
    app.storage.put_device(request).await?;
    Ok(Json(PushState { device_id: caller.device().to_owned(), provider }))
}

/// Sends a device away: its tokens are dead, its connections close with 4003, its row is gone.
#[utoipa::path(delete, path = "/v1/devices/{id}", operation_id = "remove_device", tag = "devices",
    params(("id" = String, Path, description = "device_id")),
    responses((status = 200, description = "Gone", body = Changed)))]
async fn remove(
    State(app): State<Shared>,
    caller: Caller,
    Segments(device_id): Segments<String>,
) -> Result<Json<Changed>, Error> {
    ids::check_id("device_id", &device_id)?;
    let user_id = caller.user();
    // The tokens first: a device that reconnects after the kick must not get in again.
    let now = clock::now_ms();
    let revoke =
        RevokeTokensRequest { user_id: user_id.clone(), device_id: device_id.clone(), issued_at_or_before: now };
    app.storage.revoke_tokens(revoke).await?;
    app.authenticator.forget(&user_id, &device_id).await;
    let gone = DeleteDeviceRequest { user_id: user_id.clone(), device_id: device_id.clone() };
    let changed = app.storage.delete_device(gone).await?.changed;
    let kick =
        KickRequest { user_id, device_id, reason: "the device was removed".to_owned(), issued_at_or_before: now };
    app.sessions.kick(kick).await?;
    Ok(Json(Changed { changed }))
}
