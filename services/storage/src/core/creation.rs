//! Making groups and channels: the conversation, its owner and its first members come to stand in one write, and their lists hold it before.

use std::collections::BTreeSet;

use bytes::Bytes;
use kith_contract::{events::ConversationCreated, found::Found, ids::ConversationId, json::U64};
use kith_proto::{
    chat::v1::ConversationKind,
    storage::v1::{CreateConversationRequest, CreateConversationResponse, Group, Role},
};
use kith_rpc::error::Error;
use tonic::Code;

use super::{
    Core, Plan, check,
    conversations::{check_group, conversation_ops, group_ops},
    entering::is_final,
    members::{CHUNK, join_ops},
    model::{Head, MemberData, key},
    roster::noted,
};
use crate::{
    engine::{Field, Op},
    event::{self, Plain},
};

impl Core {
    pub(crate) async fn create_conversation(
        &self,
        request: CreateConversationRequest,
    ) -> Result<CreateConversationResponse, Error> {
        let CreateConversationRequest { conversation_id: id, kind, owner_id, member_ids, group, idempotency_key } =
            request;
        let shape = check::conversation(&id)?;
        let group = group.unwrap_or_default();
        check_group(&group)?;
        check::text("idempotency_key", &idempotency_key)?;
        let fits = match ConversationKind::try_from(kind).unwrap_or_default() {
            ConversationKind::Group => matches!(shape, ConversationId::Group(_)),
            ConversationKind::System => matches!(shape, ConversationId::System { .. }),
            _ => false,
        };
        if !fits {
            return Err(Error::invalid("kind: group with an id g:<ULID>, or system with an id s:<line>:<channel>"));
        }
        if !owner_id.is_empty() {
            check::user("owner_id", &owner_id)?;
        }
        let mut members = BTreeSet::new();
        for user in &member_ids {
            check::user("member_ids", user)?;
            if *user != owner_id {
                members.insert(user.clone());
            }
        }
        let members: Vec<String> = members.into_iter().collect();
        let new = New { id, kind, owner_id, group, idempotency_key };
        // With the conversation come as many as one call brings in; a refusal leaves neither it nor any of them.
        let first = &members[..members.len().min(CHUNK)];
        let created = self.create(&new, &members, first).await?;
        // All of them where it stood: after a crash the retry adds those who are missing.
        let rest = if created { &members[first.len()..] } else { &members[..] };
        let New { id, owner_id, .. } = &new;
        for chunk in rest.chunks(CHUNK) {
            self.add_chunk(id, chunk, Role::Member, owner_id).await?;
        }
        let conversation = self.seen("", id).await?.into_conversation(id, "")?;
        Ok(CreateConversationResponse { conversation: Some(conversation), created })
    }

    /// Makes a conversation with its owner and its first members, whose lists hold it before; false: it stood.
    async fn create(&self, new: &New, members: &[String], first: &[String]) -> Result<bool, Error> {
        let New { id, owner_id, .. } = new;
        let c = key::conversation(id);
        let fields = vec![Field::new(c.clone(), "k"), Field::new(c, "ik")];
        // What it will be refused for, before anything is written.
        let seen = self.fields(self.partition(id), &fields, Self::end()).await?;
        if new.stands(&seen)? {
            return Ok(false);
        }
        self.members_fit(members.len() as u64 + u64::from(!owner_id.is_empty()))?;
        let owner = Some(owner_id.as_str()).filter(|owner| !owner.is_empty());
        self.all_made("owner_id", owner.as_slice()).await?;
        self.all_made("member_ids", &members.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        let now = Self::now();
        let mut entered = Vec::new();
        let created = async {
            if let Some(owner) = owner {
                // By itself: if the owner's list is full, nothing is left in those of others.
                self.enter_lists(id, &[(owner, true)], now, &mut entered).await?;
            }
            let others: Vec<_> = first.iter().map(|user| (user.as_str(), false)).collect();
            self.enter_lists(id, &others, now, &mut entered).await?;
            let plan = |values: &[Option<Bytes>]| {
                Ok(if new.stands(values)? { Plan::nothing(false) } else { Plan::new(new.ops(first, now)?, true) })
            };
            self.update_seen(self.partition(id), fields, seen, plan).await
        };
        let outcome = created.await;
        // Another call may have made it just now, with other members.
        if outcome.as_ref().map_or_else(is_final, |created| !created) {
            self.take_back(id, entered, now).await;
        }
        outcome
    }
}

/// A conversation to make, of a group or a channel.
struct New {
    id: String,
    kind: i32,
    owner_id: String,
    group: Group,
    idempotency_key: String,
}

impl New {
    /// Whether an earlier call with this key has made it, as its hash tells; ALREADY_EXISTS if another has.
    fn stands(&self, values: &[Option<Bytes>]) -> Result<bool, Error> {
        let [kind, key] = values else { return Err(Error::internal("a conversation of other fields")) };
        if kind.is_none() {
            return Ok(false);
        }
        let same = key.as_ref().is_some_and(|key| *key == self.idempotency_key.as_bytes());
        if same && !self.idempotency_key.is_empty() {
            return Ok(true);
        }
        Err(Error::new(Code::AlreadyExists, "conversation_id: there is such a conversation already"))
    }

    /// Makes it, with these members besides its owner.
    fn ops(&self, members: &[String], now: i64) -> Result<Vec<Op>, Error> {
        let mut ops = create_ops(self, now);
        if !members.is_empty() {
            let owners = u32::from(!self.owner_id.is_empty());
            let head = Head { members: owners, joins: owners.into(), member_version: 1, ..Head::default() };
            let seq = Found::Is(U64(1));
            ops.extend(join_ops(&self.id, &head, members, seq, Role::Member, &self.owner_id, now)?.0);
        }
        Ok(ops)
    }
}

fn create_ops(new: &New, now: i64) -> Vec<Op> {
    let New { id, kind, owner_id, group, idempotency_key } = new;
    let c = key::conversation(id);
    let set = |name: &str, value: String| Op::Set(Field::new(c.clone(), name), value.into());
    let mut ops = conversation_ops(&c, *kind, usize::from(!owner_id.is_empty()), now);
    ops.push(set("ow", owner_id.clone()));
    if !idempotency_key.is_empty() {
        ops.push(set("ik", idempotency_key.clone()));
    }
    ops.extend(group_ops(&c, group));
    if !owner_id.is_empty() {
        ops.push(Op::Set(Field::new(key::members(id), owner_id.clone()), MemberData::new(Role::Owner, 1, now).pack()));
        ops.push(Op::Score { key: key::joins(id), score: 1, member: owner_id.clone() });
    }
    let members = if owner_id.is_empty() { &[] } else { std::slice::from_ref(owner_id) };
    ops.extend(noted(id, members.iter().map(String::as_str), 0, 1));
    let created = Plain::ConversationCreated(ConversationCreated {
        announcement: Some((&group.announcement).into()),
        avatar_url: Some((&group.avatar_url).into()),
        conversation_id: id.into(),
        created_at: now,
        idempotency_key: Some(idempotency_key.into()),
        join: Some((&group.join).into()),
        kind: ConversationKind::try_from(*kind).unwrap_or_default().into(),
        member_ids: members.into(),
        muted: Some(group.muted),
        name: Some((&group.name).into()),
        owner_id: Some(owner_id.into()),
    });
    ops.push(Op::Emit(event::body(&created, now)));
    ops
}
