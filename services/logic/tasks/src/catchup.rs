//! Cuts a login catch-up into bounded batches, in order. No I/O.

use kith_proto::{chat::v1::Message, sessions::v1::delivery::Messages};
use prost::Message as _;

/// Messages and bytes of one batch.
pub const BATCH_MESSAGES: usize = 200;
/// Bytes of one batch, everything counted; a single message always fits.
pub const BATCH_BYTES: usize = 1 << 20;
/// What a message takes beside itself.
const BESIDE: usize = 8;
/// Conversations that one batch says to have more.
pub const BATCH_MORE: usize = 1_000;

/// Fills batches.
#[derive(Debug)]
pub struct Batches {
    catch_up: bool,
    messages: Vec<Message>,
    bytes: usize,
    has_more: Vec<String>,
}

impl Batches {
    /// For a catch-up that live messages wait for, or for one that runs beside them.
    pub fn new(catch_up: bool) -> Self {
        Self { catch_up, messages: Vec::new(), bytes: 0, has_more: Vec::new() }
    }

    /// Adds messages of one conversation, in order; `more` when the device will still be behind after them. Full batches come out.
    pub fn add(&mut self, conversation: &str, messages: Vec<Message>, more: bool) -> Vec<Messages> {
        let mut full = Vec::new();
        // What an earlier page said is past; this one knows better.
        self.has_more.retain(|c| c != conversation);
        for message in messages {
            let weight = message.encoded_len() + BESIDE;
            if self.messages.len() == BATCH_MESSAGES || (self.bytes + weight > BATCH_BYTES && !self.messages.is_empty())
            {
                let cut_here = self.messages.last().is_some_and(|m| m.conversation_id == conversation);
                if cut_here {
                    self.has_more.push(conversation.to_owned());
                }
                full.push(self.cut());
            }
            self.bytes += weight;
            self.messages.push(message);
        }
        if more {
            if self.has_more.len() >= BATCH_MORE {
                full.push(self.cut());
            }
            self.has_more.push(conversation.to_owned());
        }
        full
    }

    /// The last batch, which says whether everything was `complete`; none when there is nothing to say.
    pub fn finish(mut self, complete: bool) -> Option<Messages> {
        let mut last = self.cut();
        last.catch_up_done = self.catch_up && complete;
        last.catch_up_failed = self.catch_up && !complete;
        (self.catch_up || !last.messages.is_empty() || !last.has_more.is_empty()).then_some(last)
    }

    fn cut(&mut self) -> Messages {
        self.bytes = 0;
        Messages {
            messages: std::mem::take(&mut self.messages),
            has_more: std::mem::take(&mut self.has_more),
            catch_up: self.catch_up,
            ..Messages::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(conversation: &str, seq: u64, bytes: usize) -> Message {
        Message {
            conversation_id: conversation.to_owned(),
            seq,
            content: vec![b'x'; bytes].into(),
            ..Message::default()
        }
    }

    #[test]
    fn a_login_with_nothing_behind_is_told_so() {
        let last = Batches::new(true).finish(true).unwrap();
        assert!(last.catch_up_done && last.catch_up && last.messages.is_empty());
        assert!(Batches::new(false).finish(true).is_none(), "beside live messages nobody waits for it");
    }

    #[test]
    fn a_catch_up_that_is_not_complete_is_not_called_done() {
        let mut batches = Batches::new(true);
        batches.add("c", vec![message("c", 1, 10)], false);
        assert!(batches.add("damaged", Vec::new(), true).is_empty());
        let last = batches.finish(false).unwrap();
        assert!(!last.catch_up_done && last.catch_up_failed && last.messages.len() == 1);
        assert_eq!(last.has_more, ["damaged"]);
        let mut beside = Batches::new(false);
        beside.add("damaged", Vec::new(), true);
        let last = beside.finish(false).unwrap();
        assert!(!last.catch_up_failed && last.has_more == ["damaged"], "nothing waits for it, but it is told");
    }

    #[test]
    fn many_conversations_that_have_more_are_told_in_bounded_batches() {
        let mut batches = Batches::new(true);
        let full: Vec<_> = (0..=BATCH_MORE * 2).flat_map(|n| batches.add(&format!("c{n}"), Vec::new(), true)).collect();
        assert_eq!(full.iter().map(|b| b.has_more.len()).collect::<Vec<_>>(), [BATCH_MORE, BATCH_MORE]);
        assert_eq!(batches.finish(true).unwrap().has_more.len(), 1);
    }

    #[test]
    fn a_cut_inside_a_conversation_says_that_more_comes() {
        let mut batches = Batches::new(true);
        let full = batches.add("c", (1..=250).map(|seq| message("c", seq, 10)).collect(), false);
        assert_eq!(full.len(), 1);
        assert_eq!(
            (full[0].messages.len(), &full[0].has_more[..], full[0].catch_up_done),
            (200, &["c".to_owned()][..], false)
        );
        let last = batches.finish(true).unwrap();
        assert_eq!((last.messages.len(), last.has_more.len(), last.catch_up_done), (50, 0, true));
    }

    proptest! {
        #[test]
        fn batches_are_bounded_and_hold_everything_in_order(pages in proptest::collection::vec((0..4_u8, 0..120_usize, 0..40_000_usize, any::<bool>()), 0..20)) {
            let mut batches = Batches::new(true);
            let (mut seqs, mut out, mut all) = ([0_u64; 4], Vec::new(), Vec::new());
            let mut behind = [false; 4];
            for (conversation, count, bytes, more) in pages {
                let name = format!("c{conversation}");
                let page: Vec<_> = (0..count).map(|_| {
                    seqs[usize::from(conversation)] += 1;
                    message(&name, seqs[usize::from(conversation)], bytes)
                }).collect();
                all.extend(page.iter().map(|m| (m.conversation_id.clone(), m.seq)));
                behind[usize::from(conversation)] = more;
                out.extend(batches.add(&name, page, more));
            }
            out.extend(batches.finish(true));
            for batch in &out {
                prop_assert!(batch.messages.len() <= BATCH_MESSAGES);
                let bytes: usize = batch.messages.iter().map(Message::encoded_len).sum();
                prop_assert!(bytes <= BATCH_BYTES);
            }
            let got: Vec<_> = out.iter().flat_map(|b| b.messages.iter().map(|m| (m.conversation_id.clone(), m.seq))).collect();
            prop_assert_eq!(got, all);
            prop_assert_eq!(out.iter().filter(|b| b.catch_up_done).count(), 1);
            prop_assert!(out.last().is_some_and(|b| b.catch_up_done));
        }
    }
}
