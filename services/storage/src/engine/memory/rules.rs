//! What the library's functions decide before a message is stored: who may write, and whether an earlier call has stored it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Data;
use crate::{
    codec,
    core::model::{MemberData, key},
    engine::{Append, Appended, EngineError, Refusal},
    event,
};

/// How old a message may be that a retry finds.
const RETRY_MS: i64 = 48 * 3_600_000;

impl Data {
    /// The rule of the library's `may_write`.
    pub(super) fn may_write(&self, id: &str, user: &str, now_ms: i64) -> Result<(), EngineError> {
        let Some(row) = self.field(&key::members(id), user) else {
            return Err(EngineError::Refused(Refusal::NotMember));
        };
        let member = MemberData::unpack(row).ok_or_else(|| EngineError::DataLoss(user.to_owned()))?;
        let head = key::conversation(id);
        let muted = member.muted_until > now_ms || (self.flag(&head, "mu") && member.role == 1);
        match () {
            () if self.flag(&head, "di") => Err(EngineError::Refused(Refusal::Dissolved)),
            () if member.blocked => Err(EngineError::Refused(Refusal::Blocked)),
            () if muted => Err(EngineError::Refused(Refusal::Muted)),
            () => Ok(()),
        }
    }

    fn flag(&self, key: &str, name: &str) -> bool {
        self.field(key, name).is_some_and(|value| value.as_ref() == b"1")
    }

    /// The message that an earlier call has stored under this identity within the last 48 hours.
    fn sent_before(&self, identity: &(String, String, String), now_ms: i64) -> Option<(u64, Bytes)> {
        let seq = *self.seen.get(identity)?;
        let row = self.messages.get(&identity.0)?.get(&seq)?.clone();
        (now_ms - codec::sent_at(&row)? <= RETRY_MS).then_some((seq, row))
    }

    pub(super) fn append(&mut self, a: Append) -> Result<Appended, EngineError> {
        let refused = |why| Err(EngineError::Refused(why));
        let head = key::conversation(&a.conversation_id);
        let last = self.count(&head, "s")?;
        let floor = self.count(&head, "f")?.unwrap_or(0);
        let makes = last.is_none() && !a.opening.is_empty();
        if last.is_none() && !makes {
            return refused(Refusal::NoConversation);
        }
        let identity = (a.conversation_id.clone(), a.sender_id.clone(), a.client_msg_id.clone());
        if let Some((seq, stored)) = self.sent_before(&identity, a.now_ms) {
            return Ok(Appended { seq, earlier: Some(stored) });
        }
        let is_member = self.field(&key::members(&a.conversation_id), &a.sender_id).is_some();
        if a.privileged {
            if self.flag(&head, "di") {
                return refused(Refusal::Dissolved);
            }
        } else if !makes || is_member {
            self.may_write(&a.conversation_id, &a.sender_id, a.now_ms)?;
        }
        let seq = last.unwrap_or(0) + 1;
        if seq.saturating_sub(floor) > a.hot_limit {
            return refused(Refusal::HotLimit);
        }
        let newest = self.messages.get(&a.conversation_id).and_then(BTreeMap::last_key_value);
        if newest.is_some_and(|(newest, _)| *newest >= seq) {
            return Err(EngineError::DataLoss(format!("m:{} {seq}", a.conversation_id)));
        }
        if makes {
            a.opening.into_iter().for_each(|op| self.write_op(op));
        }
        self.messages.entry(a.conversation_id.clone()).or_default().insert(seq, a.row);
        self.set(head.clone(), "s", seq.to_string());
        self.set(head, "a", a.now_ms.to_string());
        // A conversation that was made has its sender among its members.
        if !a.privileged || is_member || makes {
            for prefix in ["s", "r"] {
                self.set(key::cursors(&a.conversation_id), format!("{prefix}{}", a.sender_id), seq.to_string());
            }
        }
        self.emit(event::message_body(&a.conversation_id, seq, a.privileged));
        self.seen.insert(identity, seq);
        Ok(Appended { seq, earlier: None })
    }
}
