//! Conversations: making, changing, ending; heads; read and delivered cursors; receipts.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use kith_contract::{
    events::{GroupDissolved, GroupUpdated, ReceiptDelivered, ReceiptRead},
    found::Found,
    ids::ConversationId,
    kinds::Join,
};
use kith_proto::{
    chat::v1::Position,
    storage::v1::{
        AckError, AckRequest, AckResponse, Conversation, DissolveRequest, GetConversationsRequest, GetReceiptsRequest,
        GetReceiptsResponse, Group, MarkReadRequest, MarkReadResponse, Role, UpdateConversationRequest,
    },
};
use kith_rpc::error::{Error, reason};
use tonic::Code;

use super::{
    Core, Plan, check,
    members::member_ops,
    model::{self, Head, MemberData, Seen, key},
    no_conversation,
    roster::{later, noted},
};
use crate::{
    engine::{Cursor, CursorKind, EngineError, Field, Op, Refusal},
    event::{self, Plain},
    weight,
};

const CONVERSATIONS: usize = 100;
/// When one is asked for again that was too large to come with others: at once, if alone.
const TOO_LARGE: Duration = Duration::from_millis(1);
const ACKS: usize = 100;
/// Receipts are told for conversations of at most so many members.
const RECEIPT_MEMBERS: u32 = 200;

pub(super) fn check_group(group: &Group) -> Result<(), Error> {
    check::text("group.name", &group.name)?;
    check::text("group.avatar_url", &group.avatar_url)?;
    check::text("group.announcement", &group.announcement)?;
    if group.join.is_empty() || group.join.parse::<Join>().is_ok() {
        Ok(())
    } else {
        Err(Error::invalid("group.join: open, approval or invite"))
    }
}

/// Writes the fields that every conversation begins with into its hash.
pub(crate) fn conversation_ops(key: &str, kind: i32, members: usize, now: i64) -> Vec<Op> {
    [
        ("k", kind.to_string()),
        ("s", "0".to_owned()),
        ("a", now.to_string()),
        ("n", members.to_string()),
        ("mv", "1".to_owned()),
        ("jn", members.to_string()),
        ("v", "1".to_owned()),
        ("ca", now.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| Op::Set(Field::new(key, name), value.into()))
    .collect()
}

/// Writes a group's own fields into its conversation's hash.
pub(crate) fn group_ops(key: &str, group: &Group) -> Vec<Op> {
    [
        ("na", group.name.clone()),
        ("av", group.avatar_url.clone()),
        ("an", group.announcement.clone()),
        ("jo", group.join.clone()),
        ("mu", u8::from(group.muted).to_string()),
    ]
    .into_iter()
    .map(|(name, value)| Op::Set(Field::new(key, name), value.into()))
    .collect()
}

impl Core {
    pub(crate) async fn update_conversation(&self, request: UpdateConversationRequest) -> Result<Conversation, Error> {
        let id = request.conversation_id.clone();
        if matches!(check::conversation(&id)?, ConversationId::Direct(..)) {
            return Err(Error::invalid("conversation_id: a direct conversation has nothing that could be changed"));
        }
        if let Some(owner) = &request.owner_id {
            check::user("owner_id", owner)?;
        }
        let now = Self::now();
        for attempt in 1..=super::ATTEMPTS {
            let seen = self.seen("", &id).await?;
            let head = seen.head;
            if head.dissolved {
                return Err(EngineError::Refused(Refusal::Dissolved).into());
            }
            if request.if_version != 0 && request.if_version != head.version {
                return Err(Error::new(
                    Code::Aborted,
                    format!("if_version: the conversation is at version {}", head.version),
                ));
            }
            let group = changed_group(&head.group, &request);
            check_group(&group)?;
            match self.write_update(&id, &head, &group, &request, now).await {
                Err(error) if error.code == Code::Aborted => super::apart(attempt).await,
                outcome => {
                    outcome?;
                    return self.seen("", &id).await?.into_conversation(&id, "");
                }
            }
        }
        Err(EngineError::Conflict.into())
    }

    async fn write_update(
        &self,
        id: &str,
        head: &Head,
        group: &Group,
        request: &UpdateConversationRequest,
        now: i64,
    ) -> Result<(), Error> {
        let c = key::conversation(id);
        let mut conditions = vec![
            condition(Field::new(c.clone(), "v"), Some(head.version.to_string().into())),
            condition(Field::new(c.clone(), "di"), None),
        ];
        let version = later(&c, head.version, 1)?;
        let mut ops = vec![Op::Set(Field::new(c.clone(), "v"), version.to_string().into())];
        ops.extend(group_ops(&c, group));
        let mut updated = GroupUpdated {
            actor_id: (&request.actor_id).into(),
            announcement: (&group.announcement).into(),
            avatar_url: (&group.avatar_url).into(),
            conversation_id: id.into(),
            group_id: id.into(),
            join: (&group.join).into(),
            muted: group.muted,
            name: (&group.name).into(),
            owner_id: None,
            previous_owner_id: None,
            version,
        };
        let mut told = Vec::new();
        if let Some(owner) = request.owner_id.as_ref().filter(|o| **o != head.owner) {
            let (members, before) = (key::members(id), head.member_version);
            let (next, mut changed) = (later(&c, before, 1)?, Vec::new());
            for (user, role) in [(&head.owner, Role::Admin), (owner, Role::Owner)] {
                if user.is_empty() {
                    continue;
                }
                let field = Field::new(members.clone(), user.clone());
                let row = self.field(id, field.clone()).await?;
                let Some(row) = row else {
                    if role == Role::Owner {
                        // Those who were members when the group was looked at may have gone with it.
                        let now = self.seen("", id).await?.head;
                        let stays = now.member_version == before && !now.dissolved;
                        let not = Error::invalid("owner_id: must be a member");
                        return Err(if stays { not } else { EngineError::Conflict.into() });
                    }
                    continue;
                };
                let mut member =
                    MemberData::unpack(&row).ok_or_else(|| model::corrupt(&members, "not a member row"))?;
                member.role = role as u8;
                conditions.push(condition(field, Some(row)));
                told.extend(member_ops(id, user, &member, next, &request.actor_id, now));
                changed.push(user.as_str());
            }
            // Both are other members than before, by one change.
            conditions.push(condition(Field::new(c.clone(), "mv"), Some(before.to_string().into())));
            ops.push(Op::Set(Field::new(c.clone(), "mv"), next.to_string().into()));
            ops.extend(noted(id, changed, before, next));
            ops.push(Op::Set(Field::new(c, "ow"), owner.clone().into()));
            updated.owner_id = Some(owner.into());
            updated.previous_owner_id = Some((&head.owner).into());
        }
        ops.push(Op::Emit(event::body(&Plain::GroupUpdated(updated), now)));
        ops.extend(told);
        Ok(self.engine().swap(self.partition(id), crate::engine::Swap { conditions, ops }, Self::end()).await?)
    }

    pub(super) async fn field(&self, id: &str, field: Field) -> Result<Option<Bytes>, Error> {
        Ok(self.fields(self.partition(id), &[field], Self::end()).await?.into_iter().next().flatten())
    }

    /// Ends a group at once; its members are removed in the background, in chunks, and again with a repeated call.
    pub(crate) async fn dissolve(&self, request: DissolveRequest) -> Result<(), Error> {
        let DissolveRequest { conversation_id: id, actor_id } = request;
        check::conversation(&id)?;
        let c = key::conversation(&id);
        let now = Self::now();
        self.update(self.partition(&id), vec![Field::new(c.clone(), "k"), Field::new(c.clone(), "di")], |values| {
            match values[0].as_deref() {
                None => return Err(no_conversation()),
                Some(b"2") => {}
                Some(_) => return Err(Error::invalid("conversation_id: only groups can be dissolved")),
            }
            if values[1].is_some() {
                return Ok(Plan::nothing(()));
            }
            let dissolved = Plain::GroupDissolved(GroupDissolved {
                actor_id: (&actor_id).into(),
                conversation_id: (&id).into(),
                group_id: (&id).into(),
            });
            let event = Op::Emit(event::body(&dissolved, now));
            // Its members' rows are taken away.
            Ok(Plan::freeing(vec![Op::Set(Field::new(c.clone(), "di"), "1".into()), event], ()))
        })
        .await?;
        let core = self.clone();
        tokio::spawn(async move {
            if let Err(error) = core.remove_all(&id, &actor_id).await {
                tracing::warn!(%error, conversation_id = %id, "members of a dissolved group are left; a repeated call removes them");
            }
        });
        Ok(())
    }

    /// Heads of conversations of this instance, with the caller's settings.
    pub(crate) async fn get_conversations(&self, request: GetConversationsRequest) -> Result<Vec<Conversation>, Error> {
        let GetConversationsRequest { user_id, conversation_ids, with_last_message } = request;
        check::count("conversation_ids", conversation_ids.len(), CONVERSATIONS)?;
        let mut by_partition: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for id in conversation_ids {
            // Left out, as what does not exist.
            if !user_id.is_empty() && !check::conversation(&id)?.admits(&user_id) {
                continue;
            }
            by_partition.entry(self.partition(&id)).or_default().push(id);
        }
        let user = user_id.as_str();
        let all: usize = by_partition.values().map(Vec::len).sum();
        let read = by_partition.into_iter().map(|(partition, ids)| async move {
            let last = if with_last_message { weight::PAGE * ids.len() / all } else { 0 };
            let rows = self.engine().heads(partition, user, "", last, ids.clone(), Self::end()).await?;
            Ok::<_, Error>((ids, rows))
        });
        let mut found = Vec::new();
        for part in join_all(read).await {
            let (ids, rows) = part?;
            for (id, row) in ids.into_iter().zip(rows) {
                let read = Seen::read(&id, row).and_then(|seen| {
                    let seen = seen.filter(|s| user_id.is_empty() || s.member.is_some());
                    if seen.as_ref().is_some_and(Seen::is_last_over) {
                        return Err(Error::exhausted("a last message is too large to come with others", TOO_LARGE));
                    }
                    seen.map(|s| s.into_conversation(&id, &user_id)).transpose()
                });
                match read {
                    Ok(conversation) => found.extend(conversation),
                    Err(error) => {
                        let error = Some(error.into());
                        found.push(Conversation { conversation_id: id, error, ..Conversation::default() });
                    }
                }
            }
        }
        if !user_id.is_empty() && !found.is_empty() {
            let ids = found.iter().map(|c| c.conversation_id.clone()).collect();
            let settings = self.settings_of(&user_id, ids).await?;
            for conversation in &mut found {
                if let Some(entry) = settings.get(&conversation.conversation_id) {
                    conversation.pinned = entry.pinned;
                    conversation.muted = entry.muted;
                }
            }
        }
        Ok(found)
    }

    pub(crate) async fn mark_read(&self, request: MarkReadRequest) -> Result<MarkReadResponse, Error> {
        let MarkReadRequest { user_id, conversation_id: id, seq } = request;
        check::user("user_id", &user_id)?;
        check::place(&id, &user_id)?;
        if seq == 0 {
            return Err(Error::invalid("seq: from 1"));
        }
        // A non-member's call must not tell that the conversation exists.
        let read = Plain::ReceiptRead(ReceiptRead {
            conversation_id: (&id).into(),
            read_seq: Found::Later,
            user_id: (&user_id).into(),
        });
        let moved = self.move_cursor(&id, &user_id, CursorKind::Read, seq, &read).await?;
        let seen = self.seen(&user_id, &id).await?;
        Ok(MarkReadResponse { read_seq: moved.max(seen.read), unread: seen.unread() })
    }

    pub(super) async fn move_cursor(
        &self,
        id: &str,
        user_id: &str,
        kind: CursorKind,
        seq: u64,
        told: &Plain<'_>,
    ) -> Result<u64, Error> {
        let event = event::open_body(told, Self::now());
        let cursor = Cursor { conversation_id: id.to_owned(), user_id: user_id.to_owned(), kind, seq, event };
        Ok(self.engine().cursor(self.partition(id), cursor, Self::end()).await?.seq)
    }

    /// Delivered cursors of a device; a position fails for itself. Seq 0 moves nothing and is answered with the cursor as it stands.
    pub(crate) async fn ack(&self, request: AckRequest) -> Result<AckResponse, Error> {
        let AckRequest { user_id, device_id, acks } = request;
        check::user("user_id", &user_id)?;
        check::user("device_id", &device_id)?;
        check::count("acks", acks.len(), ACKS)?;
        let moves = acks.iter().map(|ack| async {
            check::place(&ack.conversation_id, &user_id)?;
            if ack.seq == 0 {
                return self.delivered(&ack.conversation_id, &user_id, &device_id).await;
            }
            let delivered = Plain::ReceiptDelivered(ReceiptDelivered {
                conversation_id: (&ack.conversation_id).into(),
                device_id: (&device_id).into(),
                seq: Found::Later,
                user_id: (&user_id).into(),
            });
            let kind = CursorKind::Delivered(device_id.clone());
            self.move_cursor(&ack.conversation_id, &user_id, kind, ack.seq, &delivered).await
        });
        let mut response = AckResponse::default();
        for (ack, outcome) in acks.iter().zip(join_all(moves).await) {
            let conversation_id = ack.conversation_id.clone();
            match outcome {
                Ok(seq) => response.delivered.push(Position { conversation_id, seq }),
                Err(error) => response.errors.push(AckError { conversation_id, error: Some(error.into()) }),
            }
        }
        Ok(response)
    }

    pub(crate) async fn get_receipts(&self, request: GetReceiptsRequest) -> Result<GetReceiptsResponse, Error> {
        let GetReceiptsRequest { user_id, conversation_id: id, seq } = request;
        check::user("user_id", &user_id)?;
        let seen = self.seen(&user_id, &id).await?;
        if seen.head.members > RECEIPT_MEMBERS {
            let detail = format!("receipts are told in conversations of at most {RECEIPT_MEMBERS} members");
            return Err(Error::denied(reason::NOT_ALLOWED, detail));
        }
        if seq == 0 || seq > seen.head.seq || seq <= seen.hidden() {
            return Err(Error::not_found("no such message"));
        }
        let partition = self.partition(&id);
        let (members, cursors) =
            tokio::try_join!(self.hash(partition, key::members(&id)), self.hash(partition, key::cursors(&id)))?;
        let mut response = GetReceiptsResponse::default();
        for (user, _) in members {
            let passed = |wanted: &dyn Fn(&str) -> bool| {
                cursors.iter().any(|(name, at)| wanted(name) && model::number::<u64>(at).is_some_and(|at| at >= seq))
            };
            // Who has sent has read.
            if passed(&|name| name.strip_prefix(['r', 's']) == Some(&user)) {
                response.read_by.push(user.clone());
            }
            if passed(&|name| name.strip_prefix('d').and_then(|d| d.split_once('/')).is_some_and(|(u, _)| u == user)) {
                response.delivered_to.push(user);
            }
        }
        response.read_by.sort_unstable();
        response.delivered_to.sort_unstable();
        Ok(response)
    }
}

pub(super) fn condition(field: Field, value: Option<Bytes>) -> crate::engine::Condition {
    crate::engine::Condition {
        field,
        expect: value.map_or(crate::engine::Expect::Absent, crate::engine::Expect::Value),
    }
}

fn changed_group(group: &Group, request: &UpdateConversationRequest) -> Group {
    Group {
        name: request.name.clone().unwrap_or_else(|| group.name.clone()),
        avatar_url: request.avatar_url.clone().unwrap_or_else(|| group.avatar_url.clone()),
        announcement: request.announcement.clone().unwrap_or_else(|| group.announcement.clone()),
        join: request.join.clone().unwrap_or_else(|| group.join.clone()),
        muted: request.muted.unwrap_or(group.muted),
    }
}
