//! What `sessions` sends down: decoded and written as JSON once, then shared by all connections that it is for.

use std::sync::Arc;

use kith_proto::{
    chat::v1::Message,
    sessions::v1::{attach_response, delivery},
};
use kith_send::json::message_json;

use crate::{
    frame,
    machine::{io::Delivery, order::Item},
    registry::{Kick, Registry},
};

/// Hands a frame to the connections that it names.
pub(crate) fn handle(registry: &Registry, frame: attach_response::Frame) {
    match frame {
        attach_response::Frame::Welcome(_) => {}
        attach_response::Frame::Kick(kick) => {
            if let Some(handle) = registry.get(&kick.session_id) {
                let code = u16::try_from(kick.code).unwrap_or(frame::close::KICKED);
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
        delivery::Payload::Event(event) => match frame::event(&event.event, &event.data) {
            Some(text) => Some(Delivery::Event(text.into())),
            None => {
                tracing::warn!(event = %event.event, "an event is unknown or not JSON; dropped");
                None
            }
        },
    }
}

/// Messages as items. A damaged one is left out: the gap that it leaves is met with storage's own answer.
pub(crate) fn items(messages: &[Message]) -> Vec<Item> {
    let mut id: Option<Arc<str>> = None;
    messages
        .iter()
        .filter_map(|message| {
            let json = message_json(message).ok()?;
            // Batches are mostly of one conversation: share its id.
            let conversation_id = match &id {
                Some(id) if **id == *message.conversation_id => id.clone(),
                _ => id.insert(Arc::from(message.conversation_id.as_str())).clone(),
            };
            Some(Item { conversation_id, seq: message.seq, json: Box::<str>::from(json).into() })
        })
        .collect()
}
