//! The messages that a connection is sending: those to one conversation one after the other, so that they are stored in the order in
//! which they were written; different conversations at once. Pure.

use std::collections::{HashSet, VecDeque};

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
            kith_kit::ids::direct_conversation_id(&draft.sender_id, peer).unwrap_or_else(|_| peer.clone())
        }
    }
}

/// The queue of a connection.
#[derive(Debug, Default)]
pub struct Sends {
    running: HashSet<String>,
    waiting: VecDeque<(String, Send)>,
}

impl Sends {
    /// Takes a send; gives it back when too many wait.
    #[expect(clippy::result_large_err, reason = "the send itself comes back, and is refused at once")]
    pub fn push(&mut self, send: Send) -> Result<(), Send> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(send);
        }
        self.waiting.push_back((key(&send.draft), send));
        Ok(())
    }

    /// The next send that may start now.
    pub fn start(&mut self) -> Option<(String, Send)> {
        if self.running.len() >= MAX_RUNNING {
            return None;
        }
        let at = self.waiting.iter().position(|(key, _)| !self.running.contains(key))?;
        let (key, send) = self.waiting.remove(at)?;
        self.running.insert(key.clone());
        Some((key, send))
    }

    /// A send to `key` has ended.
    pub fn end(&mut self, key: &str) {
        self.running.remove(key);
    }

    /// Whether nothing is under way or waits.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    fn send(id: &str, target: Target) -> Send {
        let draft = Draft {
            sender_id: "alice".into(),
            target,
            client_msg_id: id.into(),
            kind: "text".into(),
            content: RawValue::from_string("{}".into()).unwrap(),
            mentions: vec![],
            ext: std::collections::BTreeMap::new(),
        };
        Send { id: id.into(), draft }
    }

    #[test]
    fn one_conversation_goes_in_order_and_others_beside_it() {
        let mut sends = Sends::default();
        sends.push(send("1", Target::Recipient("bob".into()))).unwrap();
        sends.push(send("2", Target::Conversation("d:alice:bob".into()))).unwrap();
        sends.push(send("3", Target::Recipient("carol".into()))).unwrap();
        let (first, started) = sends.start().unwrap();
        assert_eq!(started.id, "1");
        assert_eq!(sends.start().unwrap().1.id, "3");
        assert!(sends.start().is_none());
        sends.end(&first);
        assert_eq!(sends.start().unwrap().1.id, "2");
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut sends = Sends::default();
        for i in 0..MAX_WAITING {
            sends.push(send(&i.to_string(), Target::Recipient(format!("u{i}")))).unwrap();
        }
        assert_eq!(sends.push(send("x", Target::Recipient("bob".into()))).unwrap_err().id, "x");
        assert_eq!(std::iter::from_fn(|| sends.start()).count(), MAX_RUNNING);
    }
}
