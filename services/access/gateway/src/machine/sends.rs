//! The messages that a connection is sending: those to one conversation one after the other, so that they are stored in the order in
//! which they were written; different conversations at once. Pure.

use std::collections::VecDeque;

use kith_send::{Draft, Target};

/// Sends under way at once, and sends that wait.
const MAX_RUNNING: usize = 8;
const MAX_WAITING: usize = 64;

/// A send of the client.
#[derive(Debug)]
pub struct Send {
    /// The client's own id of the frame.
    pub id: String,
    /// What to send.
    pub draft: Draft,
}

/// Where a send goes, whichever way it was named; what must stay in order has the same key.
pub fn key(draft: &Draft) -> String {
    match &draft.target {
        Target::Conversation(id) => id.clone(),
        Target::Recipient(peer) => {
            kith_contract::ids::direct_conversation_id(&draft.sender_id, peer).unwrap_or_else(|_| peer.clone())
        }
    }
}

/// The queue of a connection. Between two calls nothing waits that could be under way.
#[derive(Debug, Default)]
pub struct Sends {
    /// Keys; few, so that looking through them is cheaper than hashing.
    running: Vec<String>,
    waiting: VecDeque<(String, Send)>,
}

impl Sends {
    /// Whether too many wait: the next one is refused before anything is made of it.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }

    /// Takes a send, unless the queue is full; gives it back with its key when it may start at once.
    pub fn push(&mut self, send: Send) -> Option<(String, Send)> {
        debug_assert!(!self.is_full());
        let key = key(&send.draft);
        if self.running.len() < MAX_RUNNING && !self.running.contains(&key) {
            self.running.push(key.clone());
            return Some((key, send));
        }
        self.waiting.push_back((key, send));
        None
    }

    /// A send to `key` has ended; the one that may start in its place.
    pub fn end(&mut self, key: &str) -> Option<(String, Send)> {
        self.running.retain(|running| running != key);
        let at = self.waiting.iter().position(|(key, _)| !self.running.contains(key))?;
        let (key, send) = self.waiting.remove(at)?;
        self.running.push(key.clone());
        Some((key, send))
    }

    /// Whether nothing is under way or waits.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use kith_contract::kinds::MessageType;
    use serde_json::value::RawValue;

    use super::*;

    fn send(id: &str, target: Target) -> Send {
        let draft = Draft {
            door: kith_send::Door::Client,
            sender_id: "alice".into(),
            target,
            client_msg_id: id.into(),
            kind: MessageType::Text.to_string(),
            content: RawValue::from_string("{}".into()).unwrap(),
            mentions: vec![],
            ext: std::collections::BTreeMap::new(),
        };
        Send { id: id.into(), draft }
    }

    #[test]
    fn one_conversation_goes_in_order_and_others_beside_it() {
        let mut sends = Sends::default();
        let (first, one) = sends.push(send("1", Target::Recipient("bob".into()))).unwrap();
        assert_eq!(one.id, "1");
        assert!(sends.push(send("2", Target::Conversation("d:alice:bob".into()))).is_none());
        assert_eq!(sends.push(send("3", Target::Recipient("carol".into()))).unwrap().1.id, "3");
        assert!(sends.push(send("4", Target::Recipient("bob".into()))).is_none());
        assert_eq!(sends.end(&first).unwrap().1.id, "2");
        assert_eq!(sends.end(&first).unwrap().1.id, "4");
        assert!(sends.end(&first).is_none());
    }

    #[test]
    fn the_queue_is_bounded_and_all_of_it_is_sent_in_the_end() {
        let mut sends = Sends::default();
        let mut running: Vec<String> = Vec::new();
        for i in 0..MAX_RUNNING + MAX_WAITING {
            assert!(!sends.is_full());
            running.extend(sends.push(send(&i.to_string(), Target::Recipient(format!("u{i}")))).map(|s| s.0));
        }
        assert_eq!(running.len(), MAX_RUNNING);
        assert!(sends.is_full());
        let mut ended = 0;
        while let Some(key) = running.pop() {
            running.extend(sends.end(&key).map(|s| s.0));
            ended += 1;
        }
        assert_eq!(ended, MAX_RUNNING + MAX_WAITING);
        assert!(sends.is_empty());
    }
}
