//! Users: profiles, devices and push tokens, revoked tokens.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::join_all;
use kith_kit::error::Error;
use kith_proto::storage::v1::{
    DeleteDeviceRequest, Device, GetRevocationResponse, GetUsersRequest, GetUsersResponse, PutDeviceRequest,
    RevokeTokensRequest, UpsertResult, UpsertUsersRequest, UpsertUsersResponse, User, UserUpdate,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Core, Plan, check,
    model::{self, key, number, text},
};
use crate::{
    engine::{Field, Op},
    event,
};

const USERS: usize = 100;
const ATTRS: usize = 64;
const ATTRS_BYTES: usize = 4_096;
const DEVICES: usize = 100;
const PROVIDERS: [&str; 4] = ["", "apns", "fcm", "webhook"];
const PROFILE: [&str; 7] = ["v", "nn", "av", "at", "ln", "ls", "sv"];

/// What is kept of a device.
#[derive(Serialize, Deserialize)]
struct DeviceRow {
    #[serde(rename = "p")]
    platform: i32,
    #[serde(default, rename = "k", skip_serializing_if = "String::is_empty")]
    provider: String,
    #[serde(default, rename = "t", skip_serializing_if = "String::is_empty")]
    token: String,
    #[serde(rename = "s")]
    last_seen: i64,
}

fn user_of(user_id: &str, values: &[Option<Bytes>]) -> Result<Option<User>, Error> {
    let mut values = values.iter().map(Option::as_ref);
    let mut next = || values.next().flatten();
    let Some(version) = next() else { return Ok(None) };
    let bad = |what| model::corrupt(&key::profile(user_id), what);
    let version = number(version).ok_or_else(|| bad("a version that is no number"))?;
    let (nickname, avatar_url) = (next().map(text).unwrap_or_default(), next().map(text).unwrap_or_default());
    let attrs = match next() {
        None => BTreeMap::new(),
        Some(bytes) => serde_json::from_slice(bytes).map_err(|_| bad("attributes that cannot be read"))?,
    };
    let (line, last_seen) = (next().map(text).unwrap_or_default(), next().and_then(number).unwrap_or(0));
    // Not there before a line gave a version: rows of older versions of storage do not have it.
    let source_version = match next() {
        None => 0,
        Some(bytes) => number(bytes).ok_or_else(|| bad("a source version that is no number"))?,
    };
    Ok(Some(User {
        user_id: user_id.to_owned(),
        nickname,
        avatar_url,
        attrs,
        version,
        line,
        last_seen,
        source_version,
    }))
}

fn profile_fields(user_id: &str) -> Vec<Field> {
    PROFILE.iter().map(|name| Field::new(key::profile(user_id), *name)).collect()
}

impl Core {
    /// A user's profile.
    pub(super) async fn profile(&self, user_id: &str) -> Result<Option<User>, Error> {
        let fields = self.hash(self.partition(user_id), key::profile(user_id)).await?;
        let values: Vec<Option<Bytes>> =
            PROFILE.iter().map(|name| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())).collect();
        user_of(user_id, &values)
    }

    pub(crate) async fn upsert_users(&self, request: UpsertUsersRequest) -> Result<UpsertUsersResponse, Error> {
        check::count("users", request.users.len(), USERS)?;
        let results = join_all(request.users.into_iter().map(|update| async {
            self.upsert_user(update)
                .await
                .unwrap_or_else(|error| UpsertResult { error: Some(error.into()), ..Default::default() })
        }))
        .await;
        Ok(UpsertUsersResponse { results })
    }

    async fn upsert_user(&self, update: UserUpdate) -> Result<UpsertResult, Error> {
        check::user("user_id", &update.user_id)?;
        check::text("nickname", update.nickname.as_deref().unwrap_or_default())?;
        check::text("avatar_url", update.avatar_url.as_deref().unwrap_or_default())?;
        check::text("line", &update.line)?;
        let id = &update.user_id;
        self.update(self.partition(id), profile_fields(id), |values| {
            let stored = user_of(id, values)?;
            let created = stored.is_none();
            let mut user = stored.clone().unwrap_or_else(|| User { user_id: id.clone(), ..User::default() });
            // A record of the line's own source, which comes again or too late. A user's own edit leaves the source's version alone.
            if update.version != 0 && update.version <= user.source_version {
                return Ok(Plan::nothing(UpsertResult {
                    user: Some(user),
                    created: false,
                    changed: false,
                    error: None,
                }));
            }
            if let Some(nickname) = &update.nickname {
                user.nickname.clone_from(nickname);
            }
            if let Some(avatar_url) = &update.avatar_url {
                user.avatar_url.clone_from(avatar_url);
            }
            if update.set_attrs {
                user.attrs.clone_from(&update.attrs);
            } else {
                user.attrs.extend(update.attrs.clone());
            }
            if !update.line.is_empty() && user.line.is_empty() {
                user.line.clone_from(&update.line);
            }
            check::count("attrs", user.attrs.len(), ATTRS)?;
            if user.attrs.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > ATTRS_BYTES {
                return Err(Error::invalid(format!("attrs: at most {ATTRS_BYTES} bytes in all")));
            }
            if update.version == 0 && stored.as_ref() == Some(&user) {
                return Ok(Plan::nothing(UpsertResult {
                    user: Some(user),
                    created: false,
                    changed: false,
                    error: None,
                }));
            }
            if update.version != 0 {
                user.source_version = update.version;
            }
            user.version = user.version.saturating_add(1);
            let ops = write_profile(&user)?;
            Ok(Plan::new(ops, UpsertResult { user: Some(user), created, changed: true, error: None }))
        })
        .await
    }

    pub(crate) async fn get_users(&self, request: GetUsersRequest) -> Result<GetUsersResponse, Error> {
        check::count("user_ids", request.user_ids.len(), USERS)?;
        for id in &request.user_ids {
            check::user("user_ids", id)?;
        }
        let found = join_all(request.user_ids.iter().map(|id| self.profile(id))).await;
        let users = found.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?;
        Ok(GetUsersResponse { users })
    }

    pub(crate) async fn put_device(&self, request: PutDeviceRequest) -> Result<(), Error> {
        let PutDeviceRequest { user_id, device } = request;
        check::user("user_id", &user_id)?;
        let device = device.ok_or_else(|| Error::invalid("device: must be set"))?;
        check::user("device.device_id", &device.device_id)?;
        check::text("device.push_token", &device.push_token)?;
        if !PROVIDERS.contains(&device.push_provider.as_str()) {
            return Err(Error::invalid("device.push_provider: apns, fcm, webhook or empty"));
        }
        if kith_proto::chat::v1::Platform::try_from(device.platform).is_err() {
            return Err(Error::invalid(format!("device.platform: {} is no platform", device.platform)));
        }
        self.user_exists(&user_id).await?;
        let field = Field::new(key::devices(&user_id), format!("d{}", device.device_id));
        let seen = Field::new(key::profile(&user_id), "ls");
        let known = self.hash(self.partition(&user_id), key::devices(&user_id)).await?;
        if known.len() >= DEVICES && !known.iter().any(|(name, _)| *name == field.name) {
            return Err(Error::invalid(format!("device: at most {DEVICES} devices a user")));
        }
        self.update(self.partition(&user_id), vec![field.clone(), seen.clone()], |values| {
            let stored: Option<DeviceRow> = values[0].as_ref().and_then(|b| serde_json::from_slice(b).ok());
            let mut row = stored.unwrap_or(DeviceRow {
                platform: 0,
                provider: String::new(),
                token: String::new(),
                last_seen: 0,
            });
            if device.platform != 0 {
                row.platform = device.platform;
            }
            if !device.push_provider.is_empty() {
                row.provider.clone_from(&device.push_provider);
                row.token.clone_from(&device.push_token);
            }
            row.last_seen = row.last_seen.max(device.last_seen);
            let packed = serde_json::to_vec(&row).map_err(|e| Error::internal(e.to_string()))?;
            let mut ops = vec![Op::Set(field.clone(), packed.into())];
            let before = values[1].as_ref().and_then(number).unwrap_or(0_i64);
            if device.last_seen > before {
                ops.push(Op::Set(seen.clone(), device.last_seen.to_string().into()));
            }
            Ok(Plan::new(ops, ()))
        })
        .await
    }

    pub(crate) async fn list_devices(&self, user_id: &str) -> Result<Vec<Device>, Error> {
        check::user("user_id", user_id)?;
        let fields = self.hash(self.partition(user_id), key::devices(user_id)).await?;
        let mut devices = Vec::new();
        for (name, value) in fields {
            let Some(device_id) = name.strip_prefix('d') else { continue };
            let row: DeviceRow = serde_json::from_slice(&value)
                .map_err(|_| model::corrupt(&key::devices(user_id), "a device that cannot be read"))?;
            devices.push(Device {
                device_id: device_id.to_owned(),
                platform: row.platform,
                push_provider: row.provider,
                push_token: row.token,
                last_seen: row.last_seen,
            });
        }
        devices.sort_unstable_by(|a, b| a.device_id.cmp(&b.device_id));
        Ok(devices)
    }

    pub(crate) async fn delete_device(&self, request: DeleteDeviceRequest) -> Result<bool, Error> {
        check::user("user_id", &request.user_id)?;
        check::user("device_id", &request.device_id)?;
        let field = Field::new(key::devices(&request.user_id), format!("d{}", request.device_id));
        self.update(self.partition(&request.user_id), vec![field.clone()], |values| {
            Ok(if values[0].is_some() {
                Plan::freeing(vec![Op::Delete(field.clone())], true)
            } else {
                Plan::nothing(false)
            })
        })
        .await
    }

    pub(crate) async fn revoke_tokens(&self, request: RevokeTokensRequest) -> Result<(), Error> {
        check::user("user_id", &request.user_id)?;
        let name = if request.device_id.is_empty() {
            "R".to_owned()
        } else {
            check::user("device_id", &request.device_id)?;
            format!("r{}", request.device_id)
        };
        let field = Field::new(key::devices(&request.user_id), name);
        self.update(self.partition(&request.user_id), vec![field.clone()], |values| {
            let before = values[0].as_ref().and_then(number).unwrap_or(0_i64);
            let after = request.issued_at_or_before.max(before);
            let data = json!({
                "user_id": request.user_id, "device_id": request.device_id, "issued_at_or_before": after.to_string(),
            });
            let event = Op::Emit(event::body("token.revoked", &request.user_id, Self::now(), &data));
            Ok(Plan::freeing(vec![Op::Set(field.clone(), after.to_string().into()), event], ()))
        })
        .await
    }

    pub(crate) async fn get_revocation(&self, user_id: &str) -> Result<GetRevocationResponse, Error> {
        check::user("user_id", user_id)?;
        let mut response = GetRevocationResponse::default();
        for (name, value) in self.hash(self.partition(user_id), key::devices(user_id)).await? {
            let Some(at) = number(&value) else { continue };
            if name == "R" {
                response.all_issued_at_or_before = at;
            } else if let Some(device) = name.strip_prefix('r') {
                response.device_issued_at_or_before.insert(device.to_owned(), at);
            }
        }
        Ok(response)
    }
}

fn write_profile(user: &User) -> Result<Vec<Op>, Error> {
    let mut ops = profile_ops(user).map_err(|e| Error::internal(e.to_string()))?;
    let data = json!({
        "user_id": user.user_id, "nickname": user.nickname, "avatar_url": user.avatar_url, "attrs": user.attrs,
        "version": user.version.to_string(), "source_version": user.source_version.to_string(), "line": user.line,
    });
    ops.push(Op::Emit(event::body("profile.updated", &user.user_id, Core::now(), &data)));
    Ok(ops)
}

/// Writes a profile, all but when its user was seen last.
pub(crate) fn profile_ops(user: &User) -> Result<Vec<Op>, serde_json::Error> {
    let attrs = serde_json::to_vec(&user.attrs)?;
    let set = |name: &str, value: Bytes| Op::Set(Field::new(key::profile(&user.user_id), name), value);
    let mut ops = vec![
        set("v", user.version.to_string().into()),
        set("nn", user.nickname.clone().into()),
        set("av", user.avatar_url.clone().into()),
        set("at", attrs.into()),
        set("ln", user.line.clone().into()),
    ];
    if user.source_version != 0 {
        ops.push(set("sv", user.source_version.to_string().into()));
    }
    Ok(ops)
}
