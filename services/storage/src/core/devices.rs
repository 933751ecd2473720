//! A user's devices with their push tokens, and the revocations of tokens.
//!
//! All are rows of one hash: `d<device>` a device, `g<device>` one that is gone and whose delivered cursors follow (see [`super::gone`]),
//! `r<device>` up to when the tokens of a device are revoked, `R` up to when all are.
//! A token that was issued at or before the later of the two is dead. Devices and revocations are bounded apart, so that neither keeps
//! a user from logging in or from sending a device away: at the bound of devices the one that was not seen for the longest gives way,
//! at the bound of revocations the oldest one becomes one of all devices.

use bytes::Bytes;
use kith_contract::{events::TokenRevoked, json::I64, push};
use kith_kit::config::MAX_TOKEN_LIFE;
use kith_proto::storage::v1::{
    DeleteDeviceRequest, Device, GetRevocationRequest, GetRevocationResponse, PutDeviceRequest, RevokeTokensRequest,
};
use kith_rpc::error::{Error, reason};
use serde::{Deserialize, Serialize};

use super::{
    Core, Plan, check, gone,
    model::{self, key, number},
};
use crate::{
    engine::{Field, Op},
    event::{self, Plain},
};

/// Devices of a user.
pub(super) const DEVICES: usize = 100;
/// Revocations of single devices that a user may have.
const REVOCATIONS: usize = 200;
/// Revocations looked at in one call; only users from before the bound have more.
const MOST_LOOKED_AT: usize = 1_000;
/// The revocation of all tokens of a user.
const ALL: &str = "R";

/// What is kept of a device.
#[derive(Default, Serialize, Deserialize)]
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

fn device_field(user_id: &str, device_id: &str) -> Field {
    Field::new(key::devices(user_id), format!("d{device_id}"))
}

fn revocation_field(user_id: &str, device_id: &str) -> Field {
    let name = if device_id.is_empty() { ALL.to_owned() } else { format!("r{device_id}") };
    Field::new(key::devices(user_id), name)
}

fn device_of(field: &Field) -> &str {
    field.name.strip_prefix('d').unwrap_or_default()
}

/// Takes a device away, and lets its delivered cursors follow.
fn gone_ops(device: &Field, marks: &gone::Marks) -> Vec<Op> {
    let mark = marks.of_device(device_of(device)).map(|(field, at)| Op::Set(field, at));
    [Op::Delete(device.clone())].into_iter().chain(mark).collect()
}

/// The devices among `rows` that give way to a new one at `field`: those not seen for the longest.
fn displaced(user_id: &str, rows: Vec<(String, Bytes)>, field: &Field) -> Vec<Field> {
    let mut devices: Vec<_> = rows.into_iter().filter(|(name, _)| name.starts_with('d')).collect();
    if devices.len() < DEVICES || devices.iter().any(|(name, _)| *name == field.name) {
        return Vec::new();
    }
    let last_seen = |row: &Bytes| serde_json::from_slice::<DeviceRow>(row).map_or(0, |row| row.last_seen);
    devices.sort_by_cached_key(|(name, row)| (last_seen(row), name.clone()));
    devices.truncate(devices.len() + 1 - DEVICES);
    devices.into_iter().map(|(name, _)| Field::new(key::devices(user_id), name)).collect()
}

/// Up to when tokens are revoked. What cannot be read revokes nothing and does not let anybody in: it is an error.
fn time(user_id: &str, value: Option<&Bytes>) -> Result<i64, Error> {
    value.map_or(Ok(0), |at| {
        number(at).ok_or_else(|| model::corrupt(&key::devices(user_id), "a revocation that cannot be read"))
    })
}

/// What becomes of the revocations of a user when one is added.
#[derive(Debug, PartialEq, Eq)]
struct Revoked {
    /// The revocation of all tokens.
    all: i64,
    /// Those of single devices that say nothing any more.
    dropped: Vec<String>,
}

/// Adds the revocation of `device` (empty: of all) as of `at` to those of `others`, the other devices.
fn revoke(all: i64, others: &[(String, i64)], device: &str, at: i64, now: i64) -> Revoked {
    let mut all = if device.is_empty() { all.max(at) } else { all };
    // No token lives as long as that.
    let dead = now.saturating_sub(i64::try_from(MAX_TOKEN_LIFE.as_millis()).unwrap_or(i64::MAX));
    let mut times: Vec<i64> = others.iter().map(|(_, at)| *at).filter(|at| *at > all.max(dead)).collect();
    let room = if device.is_empty() { REVOCATIONS } else { REVOCATIONS - 1 };
    if times.len() > room {
        // The oldest become one of all devices: what they revoke stays revoked, and a token that is newer lives on.
        times.sort_unstable();
        all = all.max(times[times.len() - room - 1]);
    }
    let dropped = others.iter().filter(|(_, at)| *at <= all.max(dead)).map(|(device, _)| device.clone()).collect();
    Revoked { all, dropped }
}

impl Core {
    /// Writes a device's row. On behalf of a token that has been revoked nothing is written: a device that was sent away does not come
    /// back by what its connection leaves behind.
    pub(crate) async fn put_device(&self, request: PutDeviceRequest) -> Result<(), Error> {
        let PutDeviceRequest { user_id, device, set_push, token_issued_at } = request;
        check::user("user_id", &user_id)?;
        let device = device.ok_or_else(|| Error::invalid("device: must be set"))?;
        check::user("device.device_id", &device.device_id)?;
        push::check(&device.push_provider, &device.push_token)?;
        if kith_proto::chat::v1::Platform::try_from(device.platform).is_err() {
            return Err(Error::invalid(format!("device.platform: {} is no platform", device.platform)));
        }
        self.user_exists(&user_id).await?;
        let field = device_field(&user_id, &device.device_id);
        let seen = Field::new(key::profile(&user_id), "ls");
        let revocations = [revocation_field(&user_id, ""), revocation_field(&user_id, &device.device_id)];
        let mut fields = vec![field.clone(), seen.clone()];
        fields.extend(revocations);
        let asked = fields.len();
        let rows = self.hash(self.partition(&user_id), key::devices(&user_id)).await?;
        let marks = gone::Marks::of(&user_id, &rows, Self::now());
        fields.extend(displaced(&user_id, rows, &field));
        let displaced = fields[asked..].to_vec();
        let written = self.update(self.partition(&user_id), fields, |values| {
            let revoked = time(&user_id, values[2].as_ref())?.max(time(&user_id, values[3].as_ref())?);
            if token_issued_at > 0 && token_issued_at <= revoked {
                return Err(Error::unauthenticated("the token has been revoked").with_reason(reason::REVOKED));
            }
            let stored: Option<DeviceRow> = values[0].as_ref().and_then(|b| serde_json::from_slice(b).ok());
            let mut row = stored.unwrap_or_default();
            if device.platform != 0 {
                row.platform = device.platform;
            }
            if set_push || !device.push_provider.is_empty() {
                row.provider.clone_from(&device.push_provider);
                row.token.clone_from(&device.push_token);
            }
            row.last_seen = row.last_seen.max(device.last_seen);
            let packed = serde_json::to_vec(&row).map_err(|e| Error::internal(e.to_string()))?;
            let mut ops = vec![Op::Set(field.clone(), packed.into())];
            if device.last_seen > values[1].as_ref().and_then(number).unwrap_or(0) {
                ops.push(Op::Set(seen.clone(), device.last_seen.to_string().into()));
            }
            ops.extend(displaced.iter().flat_map(|device| gone_ops(device, &marks)));
            // A device that stands is written over: that it was seen, and that its push token is gone, is taken at full memory, too.
            let small = values[0].is_some() && device.push_token.is_empty();
            Ok(if small { Plan::freeing(ops, ()) } else { Plan::new(ops, ()) })
        });
        written.await?;
        self.0.gone.walk(&marks, displaced.iter().map(device_of));
        Ok(())
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
        let DeleteDeviceRequest { user_id, device_id } = request;
        let field = device_field(&user_id, &device_id);
        let rows = self.hash(self.partition(&user_id), key::devices(&user_id)).await?;
        let marks = gone::Marks::of(&user_id, &rows, Self::now());
        let plan = |values: &[Option<Bytes>]| {
            let stands = values[0].is_some();
            Ok(if stands { Plan::freeing(gone_ops(&field, &marks), true) } else { Plan::nothing(false) })
        };
        let deleted = self.update(self.partition(&user_id), vec![field.clone()], plan).await?;
        self.0.gone.walk(&marks, deleted.then_some(device_id.as_str()));
        Ok(deleted)
    }

    pub(crate) async fn revoke_tokens(&self, request: RevokeTokensRequest) -> Result<(), Error> {
        let RevokeTokensRequest { user_id, device_id, issued_at_or_before: at } = request;
        check::user("user_id", &user_id)?;
        if !device_id.is_empty() {
            check::user("device_id", &device_id)?;
        }
        let (partition, devices) = (self.partition(&user_id), key::devices(&user_id));
        let (all, this) = (revocation_field(&user_id, ""), revocation_field(&user_id, &device_id));
        let stands = self.hash(partition, devices).await?.into_iter().map(|(name, _)| Field::new(&*all.key, name));
        let mut fields = vec![all.clone(), this.clone()];
        fields.extend(stands.filter(|f| f.name.starts_with('r') && *f != this).take(MOST_LOOKED_AT));
        let now = Self::now();
        self.update(partition, fields.clone(), |values| {
            let before = time(&user_id, values[0].as_ref())?;
            if at <= before.max(time(&user_id, values[1].as_ref())?) {
                return Ok(Plan::nothing(()));
            }
            let mut others: Vec<(String, i64)> = Vec::new();
            for (field, value) in fields[2..].iter().zip(&values[2..]) {
                if let Some(device) = field.name.strip_prefix('r') {
                    others.push((device.to_owned(), time(&user_id, value.as_ref())?));
                }
            }
            let Revoked { all: after, dropped } = revoke(before, &others, &device_id, at, now);
            let until = if device_id.is_empty() { after } else { at };
            let mut told = TokenRevoked {
                all_issued_at_or_before: None,
                device_id: (&device_id).into(),
                dropped: [].as_slice().into(),
                issued_at_or_before: until,
                user_id: (&user_id).into(),
            };
            let mut ops = vec![Op::Set(this.clone(), until.to_string().into())];
            if after > before && !device_id.is_empty() {
                told.all_issued_at_or_before = Some(I64(after));
                ops.push(Op::Set(all.clone(), after.to_string().into()));
            }
            if !dropped.is_empty() {
                ops.extend(dropped.iter().map(|device| Op::Delete(revocation_field(&user_id, device))));
                told.dropped = dropped.into();
            }
            ops.push(Op::Emit(event::body(&Plain::TokenRevoked(told), now)));
            Ok(Plan::freeing(ops, ()))
        })
        .await
    }

    /// Up to when tokens are revoked: of one device, or of all that have revocations.
    pub(crate) async fn get_revocation(&self, request: GetRevocationRequest) -> Result<GetRevocationResponse, Error> {
        let GetRevocationRequest { user_id, device_id } = request;
        check::user("user_id", &user_id)?;
        let mut response = GetRevocationResponse::default();
        if !device_id.is_empty() {
            check::user("device_id", &device_id)?;
            let fields = [revocation_field(&user_id, ""), revocation_field(&user_id, &device_id)];
            let values = self.fields(self.partition(&user_id), &fields, Self::end()).await?;
            response.all_issued_at_or_before = time(&user_id, values[0].as_ref())?;
            if values[1].is_some() {
                response.device_issued_at_or_before.insert(device_id, time(&user_id, values[1].as_ref())?);
            }
            return Ok(response);
        }
        for (name, value) in self.hash(self.partition(&user_id), key::devices(&user_id)).await? {
            if name == ALL {
                response.all_issued_at_or_before = time(&user_id, Some(&value))?;
            } else if let Some(device) = name.strip_prefix('r') {
                response.device_issued_at_or_before.insert(device.to_owned(), time(&user_id, Some(&value))?);
            }
        }
        Ok(response)
    }
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
