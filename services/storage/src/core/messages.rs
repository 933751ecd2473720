//! Messages: append, recall, edit, reactions. See [`super::history`] for pages of them.

use bytes::Bytes;
use kith_contract::{
    events::{MessageEdited, MessageReaction, MessageRecalled},
    message::Given,
    text,
};
use kith_proto::{
    chat::v1::{Draft, Message, MessageType, Receipt},
    storage::v1::{
        AppendRequest, EditRequest, EditResponse, ReactRequest, ReactResponse, RecallRequest, RecallResponse,
    },
};
use kith_rpc::error::{Error, reason};
use rand::RngExt;
use tonic::Code;
use ulid::Ulid;

use super::{
    Core, Plan, check,
    model::{self, Overlay, Seen, key},
    same,
};
use crate::{
    codec,
    engine::{Append, Appended, Field, Op, Page, Window},
    event::{self, Plain, Told},
};

/// Users that one reaction may hold, and kinds of reactions on one message.
pub(crate) const REACTORS: usize = 1_000;
pub(crate) const REACTIONS: usize = 50;

impl Core {
    /// Stores a message, once for each (sender, client_msg_id); a direct conversation whose peer is given is opened by its first one.
    pub(crate) async fn append(&self, request: AppendRequest) -> Result<Receipt, Error> {
        let AppendRequest { conversation_id, draft, privileged, peers } = request;
        let draft = draft.ok_or_else(|| Error::invalid("draft: must be set"))?;
        check::draft(&draft)?;
        check::place(&conversation_id, if privileged { "" } else { &draft.sender_id })?;
        check::count("peers", peers.len(), 1)?;
        let now_ms = Self::now();
        let id = Ulid::from_parts(now_ms.unsigned_abs(), rand::rng().random());
        let message = || Append {
            row: codec::pack(id, &draft),
            identity_len: codec::identity_len(&draft),
            conversation_id: conversation_id.clone(),
            sender_id: draft.sender_id.clone(),
            client_msg_id: draft.client_msg_id.clone(),
            now_ms,
            privileged,
            hot_limit: self.0.limits.messages_per_conversation,
            opening: Vec::new(),
        };
        let may_open = peers.first().filter(|_| !self.0.hints.knows(&conversation_id));
        let Appended { seq, earlier } = match may_open {
            Some(peer) => Box::pin(self.append_or_open(&conversation_id, &draft, peer, &message)).await?,
            None => self.engine().append(self.partition(&conversation_id), message(), Self::end()).await?,
        };
        let duplicate = earlier.is_some();
        let (id, sent_at) = match earlier {
            None => {
                self.0.hints.stored(&conversation_id, &draft.sender_id, now_ms);
                (id, now_ms)
            }
            Some(row) => {
                let row = same_message(&conversation_id, seq, row, &draft)?;
                (row.id, row.sent_at())
            }
        };
        Ok(Receipt { conversation_id, seq, message_id: id.to_string(), sent_at, duplicate })
    }

    /// One visible message and who looks at it.
    async fn one(&self, id: &str, seq: u64, user_id: &str) -> Result<(Message, Seen), Error> {
        check::conversation(id)?;
        if !user_id.is_empty() {
            check::user("user_id", user_id)?;
        }
        let (page, seen) =
            tokio::join!(self.page(id, Page::whole(Window::Before(seq.saturating_add(1)), 1)), self.seen(user_id, id));
        let (seen, page) = (seen?, page?);
        let found = page.messages.into_iter().find(|m| m.seq == seq && seq > seen.hidden());
        let found = found.ok_or_else(|| Error::not_found("no such message"))?;
        Ok((model::message(id, found.seq, found.row, found.overlay.as_ref(), user_id)?, seen))
    }

    fn overlay_field(id: &str, seq: u64) -> Field {
        Field::new(key::overlays(id), seq.to_string())
    }

    /// Changes a message's overlay and emits an event; `change` says false when nothing is to be changed. What a `writer` adds needs the right to
    /// write in that moment; without one the change takes something away.
    async fn change_overlay(
        &self,
        id: &str,
        seq: u64,
        writer: Option<&str>,
        event: impl Fn() -> Bytes + Send + Sync,
        change: impl Fn(&mut Overlay) -> Result<bool, Error> + Send + Sync,
    ) -> Result<bool, Error> {
        let field = Self::overlay_field(id, seq);
        self.update(self.partition(id), vec![field.clone()], |values| {
            let stored = values.first().and_then(Option::as_ref);
            let mut overlay =
                Overlay::read(stored).ok_or_else(|| model::corrupt(&field.key, "an overlay that cannot be read"))?;
            if !change(&mut overlay)? {
                return Ok(Plan::nothing(false));
            }
            let packed = serde_json::to_vec(&overlay).map_err(|e| Error::internal(e.to_string()))?;
            let ops = vec![Op::Set(field.clone(), packed.into()), Op::Emit(event())];
            Ok(match writer {
                Some(user_id) => Plan::new(ops, true).by_writer(id, user_id, Self::now()),
                None => Plan::freeing(ops, true),
            })
        })
        .await
    }

    pub(crate) async fn recall(&self, request: RecallRequest) -> Result<RecallResponse, Error> {
        let RecallRequest { conversation_id: id, seq, user_id, limit_ms, privileged } = request;
        let viewer = if privileged { "" } else { user_id.as_str() };
        if !privileged {
            check::user("user_id", &user_id)?;
        }
        let (message, seen) = self.one(&id, seq, viewer).await?;
        let now = Self::now();
        let by_admin = seen.member.is_some_and(|m| m.is_admin());
        if !privileged && !by_admin {
            if message.sender_id != user_id {
                return Err(Error::denied(
                    reason::NOT_ALLOWED,
                    "only the sender or a group's admin may recall a message",
                ));
            }
            if limit_ms > 0 && now.saturating_sub(message.sent_at) > limit_ms {
                return Err(Error::denied(reason::NOT_ALLOWED, "too late: the time for recalling is over"));
            }
        }
        let recalled = Plain::MessageRecalled(MessageRecalled {
            conversation_id: (&id).into(),
            message_id: (&message.message_id).into(),
            recalled_at: now,
            seq,
            user_id: (&user_id).into(),
        });
        let changed = self
            .change_overlay(
                &id,
                seq,
                None,
                || event::body(&recalled, now),
                |overlay| {
                    let fresh = overlay.recalled_at == 0;
                    if fresh {
                        *overlay = Overlay { recalled_at: now, ..Overlay::default() };
                    }
                    Ok(fresh)
                },
            )
            .await?;
        Ok(RecallResponse { changed })
    }

    pub(crate) async fn edit(&self, request: EditRequest) -> Result<EditResponse, Error> {
        let EditRequest { conversation_id: id, seq, user_id, content, limit_ms } = request;
        check::user("user_id", &user_id)?;
        let (message, _) = self.one(&id, seq, &user_id).await?;
        check::content(message.r#type, &content)?;
        if serde_json::from_slice::<serde_json::Value>(&content).is_err() {
            return Err(Error::invalid("content: must be a JSON object"));
        }
        if message.sender_id != user_id || message.r#type() == MessageType::System {
            return Err(Error::denied(
                reason::NOT_ALLOWED,
                "only the sender may edit a message, and nobody a system one",
            ));
        }
        let now = Self::now();
        if limit_ms > 0 && now.saturating_sub(message.sent_at) > limit_ms {
            return Err(Error::denied(reason::NOT_ALLOWED, "too late: the time for editing is over"));
        }
        let text = String::from_utf8_lossy(&content).into_owned();
        let given = Given::new(&content).map_err(|e| Error::internal(e.to_string()))?;
        let edited = Told::MessageEdited(MessageEdited {
            conversation_id: (&id).into(),
            seq,
            message_id: (&message.message_id).into(),
            user_id: (&user_id).into(),
            content: given.content,
            content_bytes: given.content_bytes,
            edited_at: now,
        });
        let body = event::body(&edited, now);
        self.change_overlay(
            &id,
            seq,
            Some(&user_id),
            || body.clone(),
            |overlay| {
                if overlay.recalled_at != 0 {
                    return Err(Error::not_found("this message has been recalled"));
                }
                overlay.edited_at = now;
                overlay.content = Some(text.clone());
                Ok(true)
            },
        )
        .await?;
        Ok(EditResponse { edited_at: now })
    }

    pub(crate) async fn react(&self, request: ReactRequest) -> Result<ReactResponse, Error> {
        let ReactRequest { conversation_id: id, seq, user_id, emoji, add } = request;
        check::user("user_id", &user_id)?;
        let emoji = text::reaction(&emoji)?;
        let (message, _) = self.one(&id, seq, &user_id).await?;
        let now = Self::now();
        let reaction = Plain::MessageReaction(MessageReaction {
            added: add,
            conversation_id: (&id).into(),
            emoji: emoji.as_ref().into(),
            message_id: (&message.message_id).into(),
            seq,
            user_id: (&user_id).into(),
        });
        let changed = self
            .change_overlay(
                &id,
                seq,
                // Taking one's own away is left to those who may not write any more.
                add.then_some(user_id.as_str()),
                || event::body(&reaction, now),
                |overlay| {
                    if overlay.recalled_at != 0 {
                        return Err(Error::not_found("this message has been recalled"));
                    }
                    set_reaction(overlay, &emoji, &user_id, add)
                },
            )
            .await?;
        Ok(ReactResponse { changed })
    }
}

/// The stored row that a retry of `draft` has found; ALREADY_EXISTS if it says something else.
pub(super) fn same_message(id: &str, seq: u64, row: Bytes, draft: &Draft) -> Result<codec::Row, Error> {
    let row = codec::unpack(row).map_err(|e| model::corrupt(&format!("m:{id} {seq}"), &e.to_string()))?;
    if same::message(&row, draft) {
        Ok(row)
    } else {
        Err(Error::new(Code::AlreadyExists, "client_msg_id: used for another message within the last 24 hours"))
    }
}

/// Adds or takes away one user's reaction; says whether that changed anything.
pub(crate) fn set_reaction(overlay: &mut Overlay, emoji: &str, user_id: &str, add: bool) -> Result<bool, Error> {
    if add {
        if !overlay.reactions.contains_key(emoji) && overlay.reactions.len() >= REACTIONS {
            return Err(Error::invalid(format!("emoji: at most {REACTIONS} kinds of reactions on a message")));
        }
        let users = overlay.reactions.entry(emoji.to_owned()).or_default();
        if users.iter().any(|u| u == user_id) {
            return Ok(false);
        }
        if users.len() >= REACTORS {
            return Err(Error::invalid(format!("emoji: at most {REACTORS} users a reaction")));
        }
        users.push(user_id.to_owned());
        return Ok(true);
    }
    let Some(users) = overlay.reactions.get_mut(emoji) else { return Ok(false) };
    let before = users.len();
    users.retain(|u| u != user_id);
    let changed = users.len() < before;
    if users.is_empty() {
        overlay.reactions.remove(emoji);
    }
    Ok(changed)
}
