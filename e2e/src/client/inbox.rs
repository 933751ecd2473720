//! What a device has been shown: messages by conversation and seq, what came twice, what contradicts what came before.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::{
    connection::Closed,
    frame::{ErrorFrame, Hello},
    model::Message,
};

/// Everything that one device received.
#[derive(Debug, Default)]
pub struct Inbox {
    conversations: HashMap<String, Received>,
    /// Pushes of a message that was there already; allowed, shown once.
    pub redelivered: u64,
    /// The same seq with another message_id: never allowed.
    pub contradictions: Vec<String>,
    /// Refusals of frames that were no sends.
    pub errors: Vec<ErrorFrame>,
    /// Events in the order of arrival.
    pub events: Vec<(String, Value)>,
    /// Greetings, one a connection.
    pub hellos: Vec<Hello>,
    /// Ends of connections.
    pub closes: Vec<Closed>,
    /// Hints before a drain, milliseconds.
    pub reconnect_hints: Vec<u64>,
    /// Pongs received.
    pub pongs: u64,
}

#[derive(Debug, Default)]
struct Received {
    messages: BTreeMap<u64, Message>,
    /// Nothing that the user may see is missing up to here.
    upto: u64,
}

impl Received {
    fn advance(&mut self) {
        while self.messages.contains_key(&(self.upto + 1)) {
            self.upto += 1;
        }
    }

    fn newest(&self) -> u64 {
        self.messages.last_key_value().map_or(0, |(seq, _)| *seq)
    }
}

impl Inbox {
    /// Takes a message; answers whether it is new.
    pub fn take(&mut self, message: Message) -> bool {
        let conversation = self.conversations.entry(message.conversation_id.to_string()).or_default();
        if let Some(known) = conversation.messages.get(&message.seq) {
            self.redelivered += 1;
            if known.message_id != message.message_id {
                let place = format!("{} seq {}", message.conversation_id, message.seq);
                self.contradictions.push(format!("{place}: {} and {}", known.message_id, message.message_id));
            }
            return false;
        }
        conversation.messages.insert(message.seq, message);
        conversation.advance();
        true
    }

    /// Takes several.
    pub fn take_all(&mut self, messages: Vec<Message>) {
        for message in messages {
            self.take(message);
        }
    }

    /// The messages of a conversation in order.
    pub fn conversation(&self, id: &str) -> Vec<Message> {
        self.conversations.get(id).map(|c| c.messages.values().cloned().collect()).unwrap_or_default()
    }

    /// A message by its place.
    pub fn get(&self, conversation: &str, seq: u64) -> Option<&Message> {
        self.conversations.get(conversation)?.messages.get(&seq)
    }

    /// All messages.
    pub fn all(&self) -> impl Iterator<Item = &Message> {
        self.conversations.values().flat_map(|c| c.messages.values())
    }

    /// The newest seq up to which nothing that the user may see is missing.
    pub fn contiguous(&self, conversation: &str) -> u64 {
        self.conversations.get(conversation).map_or(0, |c| c.upto)
    }

    /// The contiguous seq of a conversation, and whether a message is missing after it.
    pub fn place(&self, conversation: &str) -> (u64, bool) {
        self.conversations.get(conversation).map_or((0, false), |c| (c.upto, c.newest() > c.upto))
    }

    /// The cursors to present: the newest seq of each conversation without a hole before it.
    pub fn cursors(&self) -> BTreeMap<String, u64> {
        self.conversations.iter().map(|(id, c)| (id.clone(), c.upto)).collect()
    }
}

#[cfg(test)]
mod tests {
    use kith_contract::kinds::MessageType;

    use super::*;

    fn message(seq: u64, id: &str) -> Message {
        serde_json::from_value(serde_json::json!({
            "conversation_id": "d:a:b", "seq": seq.to_string(), "message_id": id, "sender_id": "a", "sent_at": "1", "type": MessageType::Text,
            "content": {"text": "x"},
        }))
        .unwrap()
    }

    #[test]
    fn a_hole_is_seen_and_a_message_is_shown_once() {
        let mut inbox = Inbox::default();
        assert!(inbox.take(message(1, "m1")));
        assert!(inbox.take(message(3, "m3")));
        assert!(!inbox.take(message(3, "m3")));
        assert_eq!((inbox.redelivered, inbox.contradictions.len()), (1, 0));
        assert_eq!(inbox.place("d:a:b"), (1, true));
        assert!(inbox.take(message(2, "m2")));
        assert_eq!((inbox.place("d:a:b"), inbox.cursors()["d:a:b"]), ((3, false), 3));
        inbox.take(message(2, "other"));
        assert_eq!(inbox.contradictions.len(), 1);
    }
}
