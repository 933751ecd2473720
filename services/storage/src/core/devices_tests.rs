//! Devices and revocations are bounded, and what was revoked stays revoked.

use std::{collections::BTreeMap, sync::Arc};

use kith_kit::config::Limits;
use kith_proto::storage::v1::{UpsertUsersRequest, UserUpdate};
use proptest::prelude::*;

use super::*;
use crate::engine::memory::MemoryEngine;

const DAY: i64 = 86_400_000;

async fn alice() -> Core {
    let core = Core::new(Arc::new(MemoryEngine::default()), 4, Limits::default(), None);
    let users = vec![UserUpdate { user_id: "alice".into(), ..UserUpdate::default() }];
    core.upsert_users(UpsertUsersRequest { users }).await.unwrap();
    core
}

async fn put(core: &Core, device_id: &str, last_seen: i64, token_issued_at: i64) -> Result<(), Error> {
    let device = Device { device_id: device_id.into(), platform: 1, last_seen, ..Device::default() };
    core.put_device(PutDeviceRequest {
        user_id: "alice".into(),
        device: Some(device),
        set_push: false,
        token_issued_at,
    })
    .await
}

async fn revoke_device(core: &Core, device_id: &str, at: i64) {
    let request = RevokeTokensRequest { user_id: "alice".into(), device_id: device_id.into(), issued_at_or_before: at };
    core.revoke_tokens(request).await.unwrap();
}

async fn revoked_until(core: &Core, device_id: &str) -> i64 {
    let request = GetRevocationRequest { user_id: "alice".into(), device_id: device_id.into() };
    let found = core.get_revocation(request).await.unwrap();
    found.device_issued_at_or_before.get(device_id).copied().unwrap_or(0).max(found.all_issued_at_or_before)
}

#[tokio::test]
async fn sending_made_up_devices_away_keeps_nobody_from_a_new_device() {
    let core = alice().await;
    let now = Core::now();
    for n in 0..300 {
        revoke_device(&core, &format!("made-up-{n}"), now + n).await;
    }
    put(&core, "phone", now, now + 1_000).await.unwrap();
    let listed = core.list_devices("alice").await.unwrap();
    assert_eq!(listed.iter().map(|d| d.device_id.as_str()).collect::<Vec<_>>(), ["phone"]);
    let everything = GetRevocationRequest { user_id: "alice".into(), device_id: String::new() };
    let kept = core.get_revocation(everything).await.unwrap();
    assert_eq!(kept.device_issued_at_or_before.len(), REVOCATIONS);
    for n in 0..300 {
        assert!(revoked_until(&core, &format!("made-up-{n}")).await >= now + n, "{n}");
    }
    assert!(revoked_until(&core, "phone").await < now + 200, "a token that is newer lives");
}

#[tokio::test]
async fn a_device_that_was_sent_away_is_not_listed_again_by_its_old_connection() {
    let core = alice().await;
    put(&core, "phone", 1, 10).await.unwrap();
    revoke_device(&core, "phone", 20).await;
    let gone = DeleteDeviceRequest { user_id: "alice".into(), device_id: "phone".into() };
    assert!(core.delete_device(gone).await.unwrap());
    let refused = put(&core, "phone", 2, 20).await.unwrap_err();
    assert_eq!(refused.reason.as_deref(), Some(reason::REVOKED));
    assert!(core.list_devices("alice").await.unwrap().is_empty());
    put(&core, "phone", 3, 21).await.unwrap();
    assert_eq!(core.list_devices("alice").await.unwrap()[0].last_seen, 3, "a new login lists it");
}

#[tokio::test]
async fn a_new_device_takes_the_place_of_the_one_not_seen_for_the_longest() {
    let core = alice().await;
    for n in 0..DEVICES as i64 + 5 {
        put(&core, &format!("d{n}"), if n == 3 { 10_000 } else { 100 + n }, 0).await.unwrap();
    }
    let listed = core.list_devices("alice").await.unwrap();
    assert_eq!(listed.len(), DEVICES);
    let gone: Vec<_> = (0..8).filter(|n| listed.iter().all(|d| d.device_id != format!("d{n}"))).collect();
    assert_eq!(gone, [0, 1, 2, 4, 5]);
}

#[test]
fn revocations_end_with_the_tokens_that_they_are_about() {
    let now = 1_000 * DAY;
    let others = [("old".to_owned(), now - 366 * DAY), ("young".to_owned(), now - 364 * DAY)];
    assert_eq!(revoke(0, &others, "d", now, now), Revoked { all: 0, dropped: vec!["old".into()] });
    assert_eq!(revoke(0, &others, "", now, now), Revoked { all: now, dropped: vec!["old".into(), "young".into()] });
}

proptest! {
    #[test]
    fn what_was_revoked_stays_revoked_and_a_new_token_lives(steps in proptest::collection::vec((0..400_u16, 0..2_000_i64), 1..600)) {
        let now = 1_000 * DAY;
        let (mut all, mut rows): (i64, BTreeMap<String, i64>) = (0, BTreeMap::new());
        let mut told: BTreeMap<String, i64> = BTreeMap::new();
        let mut latest = 0;
        for (device, at) in steps {
            let (device, at) = (if device == 0 { String::new() } else { format!("d{device}") }, now - 2_000 + at);
            latest = at.max(latest);
            let said = told.entry(device.clone()).or_default();
            *said = at.max(*said);
            if at <= all.max(rows.get(&device).copied().unwrap_or(0)) {
                continue;
            }
            let others: Vec<_> = rows.iter().filter(|(d, _)| **d != device).map(|(d, at)| (d.clone(), *at)).collect();
            let after = revoke(all, &others, &device, at, now);
            all = after.all;
            for gone in after.dropped {
                rows.remove(&gone);
            }
            if !device.is_empty() {
                rows.insert(device, at);
            }
            prop_assert!(rows.len() <= REVOCATIONS);
        }
        let everyone = told.get("").copied().unwrap_or(0);
        for (device, at) in &told {
            let held = all.max(rows.get(device).copied().unwrap_or(0));
            prop_assert!(held >= (*at).max(everyone), "{}", device);
            prop_assert!(held <= latest);
        }
    }
}
