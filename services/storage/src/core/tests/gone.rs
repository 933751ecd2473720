//! Delivered cursors go with their device, and what was delivered stays known.

use kith_proto::{
    chat::v1::{Draft, MessageType, Position},
    storage::v1::{
        AckRequest, AppendRequest, DeleteDeviceRequest, Device, GetReceiptsRequest, ListBehindRequest, PutDeviceRequest,
    },
};

use super::*;
use crate::core::{devices::DEVICES, model::cursor};

impl World {
    async fn device(&self, device_id: &str, last_seen: i64) {
        let device = Device { device_id: device_id.into(), platform: 1, last_seen, ..Device::default() };
        let request = PutDeviceRequest { user_id: "me".into(), device: Some(device), ..PutDeviceRequest::default() };
        self.core.put_device(request).await.unwrap();
    }

    async fn ack(&self, device_id: &str, ids: &[String], seq: u64) {
        for chunk in ids.chunks(100) {
            let acks = chunk.iter().map(|id| Position { conversation_id: id.clone(), seq }).collect();
            let request = AckRequest { user_id: "me".into(), device_id: device_id.into(), acks };
            assert!(self.core.ack(request).await.unwrap().errors.is_empty());
        }
    }

    async fn delete(&self, device_id: &str) {
        let request = DeleteDeviceRequest { user_id: "me".into(), device_id: device_id.into() };
        assert!(self.core.delete_device(request).await.unwrap());
    }

    /// The delivered cursors of a conversation, and the devices that are noted.
    fn cursors(&self, id: &str) -> (Vec<String>, Option<String>) {
        self.by_hand(id, |data| {
            let fields = data.hashes.get(&key::cursors(id)).cloned().unwrap_or_default();
            let noted = fields.get(&cursor::devices("me")).map(|b| String::from_utf8_lossy(b).into_owned());
            (fields.into_keys().filter(|name| name.starts_with('d')).collect(), noted)
        })
    }

    fn marks(&self) -> Vec<String> {
        self.by_hand("me", |data| {
            let fields = data.hashes.get(&key::devices("me")).into_iter().flatten();
            fields.map(|(name, _)| name.clone()).filter(|name| name.starts_with('g')).collect()
        })
    }

    /// Until no device waits for its cursors to be taken away.
    async fn walked(&self) {
        while !self.marks().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    async fn send(&self, id: &str, client_msg_id: &str) {
        let draft = Draft {
            client_msg_id: client_msg_id.into(),
            sender_id: "x0".into(),
            r#type: MessageType::Text as i32,
            content: r#"{"text":"hi"}"#.into(),
            ..Draft::default()
        };
        let request = AppendRequest { conversation_id: id.into(), draft: Some(draft), ..AppendRequest::default() };
        self.core.append(request).await.unwrap();
    }

    /// Conversations with so many others, each with one message.
    async fn talks(&self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for n in 0..count {
            ids.push(self.talk("me", &format!("x{n}"), 1_000 + n as i64, 1_000 + n as i64).await);
        }
        ids
    }
}

fn names(devices: &[&str]) -> Vec<String> {
    devices.iter().map(|device| cursor::delivered("me", device)).collect()
}

async fn world(others: usize) -> World {
    let users: Vec<String> = std::iter::once("me".to_owned()).chain((0..others).map(|n| format!("x{n}"))).collect();
    World::with(&users.iter().map(String::as_str).collect::<Vec<_>>()).await
}

#[tokio::test]
async fn the_delivered_cursors_of_a_deleted_device_go_with_it_and_what_was_delivered_stays_known() {
    // More than a page of the walk.
    let world = world(230).await;
    let ids = world.talks(230).await;
    for device in ["phone", "tablet"] {
        world.device(device, 1).await;
        world.ack(device, &ids[..229], 1).await;
    }
    world.delete("phone").await;
    world.walked().await;
    for id in &ids[..229] {
        let (cursors, noted) = world.cursors(id);
        assert_eq!((cursors, noted.as_deref()), (names(&["", "tablet"]), Some("tablet")), "{id}");
    }
    assert_eq!(world.cursors(&ids[229]), (Vec::new(), None));
    world.delete("tablet").await;
    world.walked().await;
    for id in &ids[..229] {
        assert_eq!(world.cursors(id), (names(&[""]), None), "{id}");
    }
    let receipts = GetReceiptsRequest { user_id: "x0".into(), conversation_id: ids[0].clone(), seq: 1 };
    assert_eq!(world.core.get_receipts(receipts).await.unwrap().delivered_to, ["me"]);
    // A device that comes anew begins anew.
    world.device("phone", 2).await;
    let lacks = ListBehindRequest { user_id: "me".into(), device_id: "phone".into(), limit: 200, ..Default::default() };
    assert_eq!(world.core.list_behind(lacks).await.unwrap().behind.len(), 200);
}

#[tokio::test]
async fn the_cursors_of_a_device_that_gives_way_to_a_new_one_go_too_and_those_that_a_crash_left_later() {
    let world = world(3).await;
    let ids = world.talks(3).await;
    for n in 0..DEVICES {
        world.device(&format!("d{n}"), 1_000 + n as i64).await;
    }
    for device in ["d0", "d1"] {
        world.ack(device, &ids, 1).await;
    }
    world.device("new", 9_000).await;
    world.walked().await;
    for id in &ids {
        assert_eq!(world.cursors(id), (names(&["", "d1"]), Some("d1".to_owned())));
    }
    // As an instance leaves it that ends between the two.
    let mark = |at: i64| {
        world.by_hand("me", |data| {
            let fields = data.hashes.get_mut(&key::devices("me")).unwrap();
            fields.remove("dd1");
            fields.insert("gd1".to_owned(), at.to_string().into());
        });
    };
    mark(Core::now() - 120_000);
    world.device("new", 9_001).await;
    world.walked().await;
    for id in &ids {
        assert_eq!(world.cursors(id), (names(&[""]), None));
    }
}

#[tokio::test]
async fn a_device_that_has_come_back_keeps_its_cursors() {
    let world = world(1).await;
    let ids = world.talks(1).await;
    world.device("phone", 1).await;
    world.send(&ids[0], "c-1").await;
    world.ack("phone", &ids, 2).await;
    world.by_hand("me", |data| {
        data.hashes.get_mut(&key::devices("me")).unwrap().insert("gphone".to_owned(), "1".into());
    });
    world.device("phone", 2).await;
    world.walked().await;
    assert_eq!(world.cursors(&ids[0]), (names(&["phone"]), Some("phone".to_owned())));
}
