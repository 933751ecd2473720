//! Members of conversations: their rows are the truth, users' lists follow them.

use std::collections::BTreeSet;

use bytes::Bytes;
use kith_contract::{
    events::{MemberAdded, MemberBlocked, MemberRemoved, MemberUpdated},
    ids::ConversationId,
};
use kith_proto::storage::v1::{
    AddMembersRequest, AddMembersResponse, LeaveList, ListMembersRequest, ListMembersResponse, Member,
    RemoveMembersRequest, RemoveMembersResponse, Role, Step, UpdateMemberRequest, step,
};
use kith_rpc::error::Error;
use tonic::Code;

use super::{
    Core, Plan, check,
    conversations::condition,
    entering::is_final,
    model::{self, Head, MemberData, cursor, key, whole_of},
    no_conversation,
};
use crate::{
    engine::{EngineError, Field, Got, Op, Refusal, Swap, Want},
    event::{self, Plain},
};

/// Members of one call and of one event.
pub(super) const CHUNK: usize = 500;
/// Users who are looked for among the members in one call.
const AMONG: usize = 100;

pub(super) fn leave(user_id: &str, conversation_id: &str) -> Step {
    let entry = LeaveList { conversation_id: conversation_id.to_owned() };
    Step { id: user_id.to_owned(), step: Some(step::Step::LeaveList(entry)) }
}

impl Core {
    pub(crate) async fn add_members(&self, request: AddMembersRequest) -> Result<AddMembersResponse, Error> {
        let AddMembersRequest { conversation_id, user_ids, role, actor_id } = request;
        check::conversation(&conversation_id)?;
        check::count("user_ids", user_ids.len(), CHUNK)?;
        let role = match Role::try_from(role) {
            Ok(Role::Unspecified) => Role::Member,
            Ok(role) => role,
            Err(_) => return Err(Error::invalid(format!("role: {role} is no role"))),
        };
        self.add_chunk(&conversation_id, &user_ids, role, &actor_id).await
    }

    /// Adds those who are not in yet. First their lists hold the conversation, then their rows stand. A refused call leaves neither.
    pub(super) async fn add_chunk(
        &self,
        id: &str,
        user_ids: &[String],
        role: Role,
        actor_id: &str,
    ) -> Result<AddMembersResponse, Error> {
        for user in user_ids {
            check::user("user_ids", user)?;
            check::place(id, user)?;
        }
        let users: Vec<&str> = user_ids.iter().map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect();
        // What it will be refused for, before anything is written.
        let (_, absent) = self.absent(id, &users).await?;
        let absent: Vec<&str> = absent.iter().map(String::as_str).collect();
        self.all_made("user_ids", &absent).await?;
        let now = Self::now();
        let mut entered = Vec::new();
        let to_enter: Vec<_> = absent.iter().map(|user| (*user, false)).collect();
        let added = async {
            self.enter_lists(id, &to_enter, now, &mut entered).await?;
            for _ in 0..super::ATTEMPTS {
                match self.try_add(id, &users, role, actor_id, now).await {
                    Err(error) if error.code == Code::Aborted => {}
                    outcome => return outcome,
                }
            }
            Err(EngineError::Conflict.into())
        };
        let outcome = added.await;
        if outcome.as_ref().is_err_and(is_final) {
            self.take_back(id, entered, now).await;
        }
        outcome
    }

    /// NOT_FOUND names a user who has not been made.
    pub(super) async fn all_made(&self, field: &str, users: &[&str]) -> Result<(), Error> {
        match self.missing(users).await? {
            Some(user) => Err(Error::not_found(format!("{field}: there is no user {user}"))),
            None => Ok(()),
        }
    }

    /// The conversation, and those of the users who are not in it; a refusal where they cannot be added.
    async fn absent(&self, id: &str, users: &[&str]) -> Result<(Head, Vec<String>), Error> {
        let head = self.seen("", id).await?.head;
        if head.dissolved {
            return Err(EngineError::Refused(Refusal::Dissolved).into());
        }
        let fields: Vec<Field> = users.iter().map(|user| Field::new(key::members(id), *user)).collect();
        let rows = self.fields(self.partition(id), &fields, Self::end()).await?;
        let absent = users.iter().zip(rows).filter(|(_, row)| row.is_none()).map(|(user, _)| (*user).to_owned());
        let absent: Vec<String> = absent.collect();
        if !absent.is_empty() {
            self.members_fit(u64::from(head.members) + absent.len() as u64)?;
        }
        Ok((head, absent))
    }

    /// Whether a conversation may have so many members.
    pub(super) fn members_fit(&self, count: u64) -> Result<(), Error> {
        let most = self.0.limits.members_per_conversation;
        if count <= u64::from(most) {
            return Ok(());
        }
        Err(Error::new(Code::FailedPrecondition, format!("user_ids: at most {most} members a conversation")))
    }

    async fn try_add(
        &self,
        id: &str,
        users: &[&str],
        role: Role,
        actor_id: &str,
        now: i64,
    ) -> Result<AddMembersResponse, Error> {
        let (head, added) = self.absent(id, users).await?;
        if added.is_empty() {
            return Ok(AddMembersResponse { added, member_version: head.member_version });
        }
        let (ops, member_version) = join_ops(id, &head, &added, role, actor_id, now);
        let version = Field::new(key::conversation(id), "mv");
        let conditions = vec![condition(version, Some(head.member_version.to_string().into()))];
        self.engine().swap(self.partition(id), Swap { conditions, ops }, Self::end()).await?;
        Ok(AddMembersResponse { added, member_version })
    }

    pub(crate) async fn remove_members(&self, request: RemoveMembersRequest) -> Result<RemoveMembersResponse, Error> {
        let RemoveMembersRequest { conversation_id: id, user_ids, actor_id } = request;
        if matches!(check::conversation(&id)?, ConversationId::Direct(..)) {
            return Err(Error::invalid("conversation_id: the members of a direct conversation stay its two users"));
        }
        check::count("user_ids", user_ids.len(), CHUNK)?;
        for user in &user_ids {
            check::user("user_ids", user)?;
        }
        self.remove_chunk(&id, user_ids, &actor_id).await
    }

    async fn remove_chunk(
        &self,
        id: &str,
        mut users: Vec<String>,
        actor_id: &str,
    ) -> Result<RemoveMembersResponse, Error> {
        users.sort_unstable();
        users.dedup();
        let mut attempt = 0;
        let response = loop {
            attempt += 1;
            match self.try_remove(id, &users, actor_id).await {
                Err(error) if error.code == Code::Aborted && attempt < super::ATTEMPTS => {}
                outcome => break outcome?,
            }
        };
        // Rows first: who has none sees nothing, whatever the list still holds.
        for outcome in self.apply(users.iter().map(|u| leave(u, id)).collect()).await? {
            outcome?;
        }
        Ok(response)
    }

    async fn try_remove(&self, id: &str, users: &[String], actor_id: &str) -> Result<RemoveMembersResponse, Error> {
        let head = self.seen("", id).await?.head;
        let wants = users.iter().map(|u| Want::Field(Field::new(key::members(id), u.clone()))).collect();
        let rows = self.engine().get(self.partition(id), wants, Self::end()).await?;
        let removed: Vec<String> =
            users.iter().zip(rows).filter(|(_, row)| *row != Got::Field(None)).map(|(u, _)| u.clone()).collect();
        if removed.is_empty() {
            return Ok(RemoveMembersResponse { removed, member_version: head.member_version });
        }
        let devices: Vec<Field> = removed.iter().map(|u| Field::new(key::cursors(id), cursor::devices(u))).collect();
        let devices = self.fields(self.partition(id), &devices, Self::end()).await?;
        let c = key::conversation(id);
        let (now, version) = (Self::now(), head.member_version + 1);
        let mut ops = Vec::with_capacity(removed.len() * 5 + 3);
        for (user, devices) in removed.iter().zip(&devices) {
            ops.push(Op::Delete(Field::new(key::members(id), user.clone())));
            ops.push(Op::Unscore { key: key::joins(id), member: user.clone() });
            // Cursors of a member who comes back begin anew.
            let cursors = cursor::of_member(user, devices.as_ref());
            ops.extend(cursors.into_iter().map(|name| Op::Delete(Field::new(key::cursors(id), name))));
        }
        let count = u64::from(head.members).saturating_sub(removed.len() as u64);
        ops.push(Op::Set(Field::new(c.clone(), "n"), count.to_string().into()));
        ops.push(Op::Set(Field::new(c.clone(), "mv"), version.to_string().into()));
        let gone = Plain::MemberRemoved(MemberRemoved {
            actor_id: actor_id.into(),
            conversation_id: id.into(),
            member_count: count,
            member_version: version,
            user_ids: (&removed).into(),
        });
        ops.push(Op::Emit(event::body(&gone, now)));
        let conditions = vec![condition(Field::new(c, "mv"), Some(head.member_version.to_string().into()))];
        self.engine().free(self.partition(id), Swap { conditions, ops }, Self::end()).await?;
        Ok(RemoveMembersResponse { removed, member_version: version })
    }

    /// Removes everybody, chunk by chunk.
    pub(super) async fn remove_all(&self, id: &str, actor_id: &str) -> Result<(), Error> {
        loop {
            let page = self.engine().members(self.partition(id), id, -1, CHUNK as u32, Self::end()).await?;
            let users: Vec<String> = page.ok_or_else(no_conversation)?.members.into_iter().map(|m| m.user_id).collect();
            if users.is_empty() {
                return Ok(());
            }
            self.remove_chunk(id, users, actor_id).await?;
        }
    }

    pub(crate) async fn update_member(&self, request: UpdateMemberRequest) -> Result<Member, Error> {
        let UpdateMemberRequest { conversation_id: id, user_id, role, muted_until, actor_id } = request;
        check::user("user_id", &user_id)?;
        check::place(&id, &user_id)?;
        let role = match role.map(Role::try_from) {
            None => None,
            Some(Ok(role)) if role != Role::Unspecified => Some(role),
            Some(_) => return Err(Error::invalid("role: member, admin or owner")),
        };
        // What the append function reads has no sign.
        if muted_until.is_some_and(i64::is_negative) {
            return Err(Error::invalid("muted_until: from 0"));
        }
        let field = Field::new(key::members(&id), user_id.clone());
        let version = Field::new(key::conversation(&id), "mv");
        let now = Self::now();
        self.update(self.partition(&id), vec![field.clone(), version.clone()], |values| {
            // A block may have written a row without a conversation.
            let (Some(row), Some(stands)) = (&values[0], &values[1]) else {
                return Err(Error::not_found("user_id: not a member"));
            };
            let mut member = MemberData::unpack(row).ok_or_else(|| model::corrupt(&field.key, "not a member row"))?;
            let before = member;
            member.role = role.map_or(member.role, |r| r as u8);
            member.muted_until = muted_until.unwrap_or(member.muted_until);
            let answer = member.into_member(user_id.clone());
            if member == before {
                return Ok(Plan::nothing(answer));
            }
            let next = whole_of::<u64>(&version, stands)? + 1;
            let updated = Plain::MemberUpdated(MemberUpdated {
                actor_id: (&actor_id).into(),
                conversation_id: (&id).into(),
                member_version: next,
                muted_until: member.muted_until,
                role: Role::try_from(i32::from(member.role)).unwrap_or_default().into(),
                user_id: (&user_id).into(),
            });
            let ops = vec![
                Op::Set(field.clone(), member.pack()),
                Op::Set(version.clone(), next.to_string().into()),
                Op::Emit(event::body(&updated, now)),
            ];
            Ok(Plan::freeing(ops, answer))
        })
        .await
    }

    pub(crate) async fn list_members(&self, request: ListMembersRequest) -> Result<ListMembersResponse, Error> {
        let ListMembersRequest { conversation_id: id, limit, cursor, user_id, user_ids } = request;
        check::conversation(&id)?;
        let limit = check::limit(limit, 200, 1_000)?;
        if !user_id.is_empty() {
            check::user("user_id", &user_id)?;
            self.seen(&user_id, &id).await?;
        }
        if !user_ids.is_empty() {
            return self.members_among(&id, &user_ids).await;
        }
        let owner = [id.as_str(), user_id.as_str()];
        let after = self.0.cursors.read("members", &owner, &cursor)?.unwrap_or(-1);
        let page = self
            .engine()
            .members(self.partition(&id), &id, after, limit, Self::end())
            .await?
            .ok_or_else(no_conversation)?;
        let next_cursor = match page.members.last() {
            Some(last) if page.members.len() == limit as usize => {
                self.0.cursors.write("members", &owner, &last.order)?
            }
            _ => String::new(),
        };
        let mut members = Vec::with_capacity(page.members.len());
        for member in page.members {
            let Some(row) = member.row else { continue };
            let data =
                MemberData::unpack(&row).ok_or_else(|| model::corrupt(&key::members(&id), "not a member row"))?;
            members.push(data.into_member(member.user_id));
        }
        let member_count = u32::try_from(page.count)
            .map_err(|_| model::corrupt(&key::conversation(&id), "a count of members that none has"))?;
        Ok(ListMembersResponse { members, next_cursor, member_version: page.version, member_count })
    }

    /// Those of the users who are members.
    async fn members_among(&self, id: &str, user_ids: &[String]) -> Result<ListMembersResponse, Error> {
        check::count("user_ids", user_ids.len(), AMONG)?;
        let mut fields = vec![Field::new(key::conversation(id), "mv"), Field::new(key::conversation(id), "n")];
        for user in user_ids {
            check::user("user_ids", user)?;
            fields.push(Field::new(key::members(id), user.clone()));
        }
        let values = self.fields(self.partition(id), &fields, Self::end()).await?;
        let Some(member_version) = &values[0] else { return Err(no_conversation()) };
        let member_version = whole_of(&fields[0], member_version)?;
        let member_count = values[1].as_ref().map_or(Ok(0), |count| whole_of(&fields[1], count))?;
        let mut members = Vec::new();
        for (user, row) in user_ids.iter().zip(&values[2..]) {
            let Some(row) = row else { continue };
            let data = MemberData::unpack(row).ok_or_else(|| model::corrupt(&key::members(id), "not a member row"))?;
            members.push(data.into_member(user.clone()));
        }
        Ok(ListMembersResponse { members, next_cursor: String::new(), member_version, member_count })
    }

    /// Writes into the direct conversation's row whether the user's messages are refused.
    pub(super) async fn direct_block(&self, id: &str, user_id: &str, blocked: bool) -> Result<bool, Error> {
        check::user("user_id", user_id)?;
        check::place(id, user_id)?;
        let field = Field::new(key::members(id), user_id);
        let opened = Field::new(key::conversation(id), "k");
        let now = Self::now();
        self.update(self.partition(id), vec![field.clone(), opened], |values| {
            let stored = match &values[0] {
                None => None,
                Some(row) => {
                    Some(MemberData::unpack(row).ok_or_else(|| model::corrupt(&field.key, "not a member row"))?)
                }
            };
            if stored.is_some_and(|m| m.blocked) == blocked {
                return Ok(Plan::nothing(false));
            }
            let member = MemberData { blocked, ..stored.unwrap_or_else(|| MemberData::new(Role::Member, 1, now)) };
            let told = Plain::MemberBlocked(MemberBlocked {
                blocked,
                conversation_id: id.into(),
                joined_at: member.joined_at,
                user_id: user_id.into(),
            });
            let event = Op::Emit(event::body(&told, now));
            // Without its conversation the row says nothing but the block.
            let op = if blocked || values[1].is_some() {
                Op::Set(field.clone(), member.pack())
            } else {
                Op::Delete(field.clone())
            };
            Ok(if blocked { Plan::new(vec![op, event], true) } else { Plan::freeing(vec![op, event], true) })
        })
        .await
    }
}

/// Brings users into a conversation that stands as `head` tells; its member version with them.
pub(super) fn join_ops(
    id: &str,
    head: &Head,
    users: &[String],
    role: Role,
    actor_id: &str,
    now: i64,
) -> (Vec<Op>, u64) {
    let c = key::conversation(id);
    // A head's numbers are far from the end of their range.
    let place = JoinPlace {
        seq: head.seq + 1,
        order: head.joins + 1,
        count: u64::from(head.members) + users.len() as u64,
        version: head.member_version + 1,
    };
    let mut ops = Vec::with_capacity(users.len() * 2 + 4);
    for (order, user) in (place.order..).zip(users) {
        let row = MemberData::new(role, place.seq, now).pack();
        ops.push(Op::Set(Field::new(key::members(id), user.clone()), row));
        ops.push(Op::Score { key: key::joins(id), score: order, member: user.clone() });
    }
    let joins = head.joins + users.len() as i64;
    let set = |name: &str, value: String| Op::Set(Field::new(c.clone(), name), value.into());
    ops.extend([set("n", place.count.to_string()), set("mv", place.version.to_string()), set("jn", joins.to_string())]);
    ops.push(Op::Emit(joined(id, users, role, now, actor_id, &place)));
    (ops, place.version)
}

/// What new members have in common: the first seq that they see, the first of their places in join order, and the conversation's count
/// and version with them.
pub(super) struct JoinPlace {
    pub(super) seq: u64,
    pub(super) order: i64,
    pub(super) count: u64,
    pub(super) version: u64,
}

/// The event of new members; the users are in join order.
pub(super) fn joined(id: &str, users: &[String], role: Role, now: i64, actor_id: &str, place: &JoinPlace) -> Bytes {
    let added = Plain::MemberAdded(MemberAdded {
        actor_id: actor_id.into(),
        conversation_id: id.into(),
        join_order: place.order,
        joined_at: now,
        joined_seq: place.seq,
        member_count: place.count,
        member_version: place.version,
        role: role.into(),
        user_ids: users.into(),
    });
    event::body(&added, now)
}
