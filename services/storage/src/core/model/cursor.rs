//! Fields of a conversation's cursors.

use bytes::Bytes;

use super::text;

/// Devices of one member of which a conversation keeps the delivered cursor. The cursor function knows it, too.
pub(crate) const MOST_DEVICES: usize = 100;

pub(crate) fn delivered(user_id: &str, device_id: &str) -> String {
    format!("d{user_id}/{device_id}")
}

/// Up to where devices of a member that are gone had received: of no device, so that it stands beside those of all.
pub(crate) fn gone(user_id: &str) -> String {
    delivered(user_id, "")
}

/// Names the devices of a member that have a delivered cursor, first come first, by slashes.
pub(crate) fn devices(user_id: &str) -> String {
    format!("D{user_id}")
}

/// The devices of a field of [`devices`].
pub(crate) fn read_devices(value: Option<&Bytes>) -> Vec<String> {
    let names = value.map(text).unwrap_or_default();
    names.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The devices with one more, and the one that is forgotten for it; none if it is there already.
pub(crate) fn note_device(value: Option<&Bytes>, device_id: &str) -> Option<(Bytes, Option<String>)> {
    let mut devices = read_devices(value);
    if devices.iter().any(|d| d == device_id) {
        return None;
    }
    let forgotten = (devices.len() >= MOST_DEVICES).then(|| devices.remove(0));
    devices.push(device_id.to_owned());
    Some((devices.join("/").into(), forgotten))
}

/// The devices without one; none if it is not among them, and empty if it was the last.
pub(crate) fn without_device(value: Option<&Bytes>, device_id: &str) -> Option<Bytes> {
    let mut devices = read_devices(value);
    let at = devices.iter().position(|d| d == device_id)?;
    devices.remove(at);
    Some(devices.join("/").into())
}

/// All fields that belong to a member.
pub(crate) fn of_member(user_id: &str, devices_field: Option<&Bytes>) -> Vec<String> {
    let own = ["r", "s", "c", "D"].map(|prefix| format!("{prefix}{user_id}"));
    let delivered = read_devices(devices_field).into_iter().map(|device| delivered(user_id, &device));
    own.into_iter().chain([gone(user_id)]).chain(delivered).collect()
}
