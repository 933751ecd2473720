//! What `sessions` sends down: decoded and written as JSON once, then shared by all connections that it is for.

use std::sync::Arc;

use kith_contract::frames::{close, server};
use kith_proto::{
    chat::v1::Message,
    sessions::v1::{attach_response, delivery},
};
use kith_send::json::message_json;

use crate::{
    machine::{io::Delivery, order::Item},
    registry::{Kick, Registry},
};

/// Hands a frame to the connections that it names.
pub(crate) fn handle(registry: &Registry, frame: attach_response::Frame) {
    match frame {
        attach_response::Frame::Welcome(_) => {}
        attach_response::Frame::Kick(kick) => {
            if let Some(handle) = registry.get(&kick.session_id) {
                let code = u16::try_from(kick.code).unwrap_or(close::KICKED);
                handle.kick(Kick { code, reason: kick.reason });
            }
        }
        attach_response::Frame::Delivery(delivery) => {
            let handles = registry.find(&delivery.session_ids);
            if handles.is_empty() {
                return;
            }
            if let Some(shown) = delivery.payload.and_then(show) {
                metrics::counter!("kith_gateway_deliveries_total").increment(handles.len() as u64);
                for handle in handles {
                    handle.deliver(shown.clone());
                }
            }
        }
    }
}

fn show(payload: delivery::Payload) -> Option<Delivery> {
    match payload {
        delivery::Payload::Messages(messages) => Some(Delivery::Messages {
            items: items(&messages.messages).into(),
            more: messages.has_more.into_iter().map(Arc::from).collect(),
            catch_up: messages.catch_up,
            done: messages.catch_up_done,
            failed: messages.catch_up_failed,
        }),
        delivery::Payload::Event(event) => match server::event(&event.event, &event.data) {
            Some(text) => Some(Delivery::Event(text.into())),
            None => {
                tracing::warn!(event = %event.event, "an event is unknown or not JSON; dropped");
                None
            }
        },
    }
}

/// Messages as items. A damaged one is left out: the gap that it leaves is met with storage's own answer.
fn items(messages: &[Message]) -> Vec<Item> {
    let mut room = usize::MAX;
    items_within(messages, &mut room).0
}

/// The first messages as items, as far as there is room for them: with escapes they may take more bytes than they weigh in storage. Says
/// whether there was none for all.
pub(crate) fn items_within(messages: &[Message], room: &mut usize) -> (Vec<Item>, bool) {
    let mut id: Option<Arc<str>> = None;
    let mut items = Vec::with_capacity(messages.len());
    for message in messages {
        let Ok(json) = message_json(message) else { continue };
        let Some(rest) = room.checked_sub(json.get().len()) else { return (items, true) };
        *room = rest;
        // Batches are mostly of one conversation: share its id.
        let conversation_id = match &id {
            Some(id) if **id == *message.conversation_id => id.clone(),
            _ => id.insert(Arc::from(message.conversation_id.as_str())).clone(),
        };
        items.push(Item { conversation_id, seq: message.seq, json: Box::<str>::from(json).into() });
    }
    (items, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_end_where_there_is_no_room_for_the_next_one() {
        let message = |seq| Message {
            conversation_id: "c".to_owned(),
            seq,
            ext: [("k".to_owned(), "\u{1}".repeat(1_000))].into(),
            ..Message::default()
        };
        let messages: Vec<_> = (1..=5).map(message).collect();
        let mut room = 20 << 10;
        let (items, cut) = items_within(&messages, &mut room);
        assert_eq!(
            (items.iter().map(|i| i.seq).collect::<Vec<_>>(), cut),
            (vec![1, 2, 3], true),
            "escapes are counted"
        );
        assert_eq!(room, (20 << 10) - items.iter().map(|i| i.json.len()).sum::<usize>());
        assert!(!items_within(&messages, &mut (64 << 10)).1);
    }
}
