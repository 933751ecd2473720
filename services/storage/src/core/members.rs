//! Members of conversations: their rows are the truth, users' lists follow them.

use std::collections::BTreeSet;

use bytes::Bytes;
use kith_contract::{
    events::{MemberAdded, MemberBlocked, MemberRemoved, MemberUpdated},
    found::{Found, MARK},
    ids::ConversationId,
    json::U64,
};
use kith_proto::{
    chat::v1::ConversationKind,
    storage::v1::{
        AddMembersRequest, AddMembersResponse, LeaveList, Member, RemoveMembersRequest, RemoveMembersResponse, Role,
        Step, UpdateMemberRequest, step,
    },
};
use kith_rpc::error::Error;
use tonic::Code;

use super::{
    Core, Plan, check,
    conversations::condition,
    entering::is_final,
    model::{self, Head, MemberData, cursor, key, whole_of},
    no_conversation,
    roster::{forgotten, later, noted},
};
use crate::{
    engine::{Condition, EngineError, Expect, Field, Op, Refusal, Swap},
    event::{self, Plain},
};

/// Members of one call and of one event.
pub(super) const CHUNK: usize = 500;
/// Writes of one step that removes members: each of them may have cursors of a hundred devices.
const MOST_OPS: usize = 8_000;

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
            Ok(Role::Owner) => return Err(Error::invalid("role: member or admin; an owner comes by a transfer alone")),
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
            for attempt in 1..=super::ATTEMPTS {
                match self.try_add(id, &users, role, actor_id, now).await {
                    Err(error) if error.code == Code::Aborted => super::apart(attempt).await,
                    outcome => return outcome,
                }
            }
            Err(EngineError::Conflict.into())
        };
        let outcome = added.await;
        match &outcome {
            // Who was removed at the same time may have been taken out of their list only now; and so a retry completes what is missing.
            Ok(_) => self.follow_rows(id, users, now).await?,
            Err(error) if is_final(error) => self.take_back(id, entered, now).await,
            Err(_) => {}
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
        // The messages that they do not see end where they come in, whatever is sent until then.
        let (ops, member_version) = join_ops(id, &head, &added, Found::Later, role, actor_id, now)?;
        let field = |name: &str| Field::new(key::conversation(id), name);
        let conditions = vec![
            condition(field("mv"), Some(head.member_version.to_string().into())),
            condition(field("di"), None),
            Condition { field: field("s"), expect: Expect::Next },
        ];
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
        let (mut attempt, mut removed) = (0, Vec::new());
        let member_version = loop {
            match self.try_remove(id, &users, actor_id).await {
                Err(error) if error.code == Code::Aborted && attempt < super::ATTEMPTS => {
                    attempt += 1;
                    super::apart(attempt).await;
                }
                outcome => {
                    let part = outcome?;
                    removed.extend(part.removed);
                    if !part.more {
                        break part.member_version;
                    }
                }
            }
        };
        // Rows first: who has none sees nothing, whatever the list still holds.
        self.follow_rows(id, users.iter().map(String::as_str).collect(), Self::now()).await?;
        Ok(RemoveMembersResponse { removed, member_version })
    }

    /// Removes those of the users who are members, as many as one step may.
    async fn try_remove(&self, id: &str, users: &[String], actor_id: &str) -> Result<Removed, Error> {
        let head = self.seen("", id).await?.head;
        let fields: Vec<Field> = users.iter().map(|u| Field::new(key::members(id), u.clone())).collect();
        let rows = self.fields(self.partition(id), &fields, Self::end()).await?;
        let mut removed: Vec<String> =
            users.iter().zip(rows).filter(|(_, row)| row.is_some()).map(|(u, _)| u.clone()).collect();
        if removed.is_empty() {
            return Ok(Removed { removed, member_version: head.member_version, more: false });
        }
        let is_group = head.kind == ConversationKind::Group as i32;
        if is_group && !head.dissolved && removed.contains(&head.owner) {
            return Err(Error::new(Code::FailedPrecondition, "user_ids: the owner stays until the group has another"));
        }
        let (c, now) = (key::conversation(id), Self::now());
        let version = later(&c, head.member_version, 1)?;
        let mut conditions = vec![
            condition(Field::new(c.clone(), "mv"), Some(head.member_version.to_string().into())),
            condition(Field::new(c.clone(), "di"), head.dissolved.then(|| "1".into())),
        ];
        if !head.owner.is_empty() {
            conditions.push(condition(Field::new(c.clone(), "ow"), Some(head.owner.clone().into())));
        }
        let devices: Vec<Field> = removed.iter().map(|u| Field::new(key::cursors(id), cursor::devices(u))).collect();
        let named = self.fields(self.partition(id), &devices, Self::end()).await?;
        let mut ops = Vec::with_capacity(removed.len() * 8 + 5);
        let mut taken = 0;
        for ((user, field), devices) in removed.iter().zip(devices).zip(named) {
            if ops.len() >= MOST_OPS {
                break;
            }
            taken += 1;
            ops.push(Op::Delete(Field::new(key::members(id), user.clone())));
            ops.push(Op::Unscore { key: key::joins(id), member: user.clone() });
            // Cursors of a member who comes back begin anew.
            let cursors = cursor::of_member(user, devices.as_ref());
            ops.extend(cursors.into_iter().map(|name| Op::Delete(Field::new(key::cursors(id), name))));
            // A device that has its first cursor in this moment is to lose it, too.
            conditions.push(condition(field, devices));
        }
        let more = taken < removed.len();
        removed.truncate(taken);
        let gone = removed.iter().map(String::as_str);
        ops.extend(if head.dissolved { forgotten(id, gone) } else { noted(id, gone, head.member_version, version) });
        let count = u64::from(head.members).saturating_sub(removed.len() as u64);
        ops.push(Op::Set(Field::new(c.clone(), "n"), count.to_string().into()));
        ops.push(Op::Set(Field::new(c, "mv"), version.to_string().into()));
        let gone = Plain::MemberRemoved(MemberRemoved {
            actor_id: actor_id.into(),
            conversation_id: id.into(),
            member_count: count,
            member_version: version,
            user_ids: (&removed).into(),
        });
        ops.push(Op::Emit(event::body(&gone, now)));
        self.engine().free(self.partition(id), Swap { conditions, ops }, Self::end()).await?;
        Ok(Removed { removed, member_version: version, more })
    }

    /// Removes everybody, chunk by chunk.
    pub(super) async fn remove_all(&self, id: &str, actor_id: &str) -> Result<(), Error> {
        loop {
            let page = self.engine().members(self.partition(id), id, -1, CHUNK as u32, Self::end()).await?;
            let users: Vec<String> = page.ok_or_else(no_conversation)?.members.into_iter().map(|m| m.user_id).collect();
            if users.is_empty() {
                return Ok(());
            }
            if self.remove_chunk(id, users, actor_id).await?.removed.is_empty() {
                return Err(model::corrupt(&key::joins(id), "names of members who have no rows"));
            }
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
        let of = |name: &str| Field::new(key::conversation(&id), name);
        let version = of("mv");
        let now = Self::now();
        self.update(self.partition(&id), vec![field.clone(), version.clone(), of("di"), of("ow")], |values| {
            // A block may have written a row without a conversation.
            let (Some(row), Some(stands)) = (&values[0], &values[1]) else {
                return Err(Error::not_found("user_id: not a member"));
            };
            if values[2].is_some() {
                return Err(EngineError::Refused(Refusal::Dissolved).into());
            }
            let owns = values[3].as_deref() == Some(user_id.as_bytes());
            match role {
                Some(Role::Owner) if !owns => return Err(Error::invalid("role: an owner comes by a transfer alone")),
                Some(Role::Member | Role::Admin) if owns => {
                    let why = "role: the owner's changes when the group has another owner";
                    return Err(Error::new(Code::FailedPrecondition, why));
                }
                _ => {}
            }
            let mut member = MemberData::unpack(row).ok_or_else(|| model::corrupt(&field.key, "not a member row"))?;
            let before = member;
            member.role = role.map_or(member.role, |r| r as u8);
            member.muted_until = muted_until.unwrap_or(member.muted_until);
            let answer = member.into_member(user_id.clone());
            if member == before {
                return Ok(Plan::nothing(answer));
            }
            let stands: u64 = whole_of(&version, stands)?;
            let next = later(&version.key, stands, 1)?;
            let mut ops = vec![Op::Set(version.clone(), next.to_string().into())];
            ops.extend(noted(&id, [user_id.as_str()], stands, next));
            ops.extend(member_ops(&id, &user_id, &member, next, &actor_id, now));
            Ok(Plan::freeing(ops, answer))
        })
        .await
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

/// What one step has removed.
struct Removed {
    removed: Vec<String>,
    member_version: u64,
    /// There was no room for all of them.
    more: bool,
}

/// Writes a member's row as it is from this member version on, and tells it.
pub(super) fn member_ops(
    id: &str,
    user_id: &str,
    member: &MemberData,
    version: u64,
    actor_id: &str,
    now: i64,
) -> [Op; 2] {
    let updated = Plain::MemberUpdated(MemberUpdated {
        actor_id: actor_id.into(),
        conversation_id: id.into(),
        member_version: version,
        muted_until: member.muted_until,
        role: Role::try_from(i32::from(member.role)).unwrap_or_default().into(),
        user_id: user_id.into(),
    });
    [Op::Set(Field::new(key::members(id), user_id), member.pack()), Op::Emit(event::body(&updated, now))]
}

/// Brings users into a conversation that stands as `head` tells, and who see it from `seq` on; its member version with them.
pub(super) fn join_ops(
    id: &str,
    head: &Head,
    users: &[String],
    seq: Found<U64>,
    role: Role,
    actor_id: &str,
    now: i64,
) -> Result<(Vec<Op>, u64), Error> {
    let c = key::conversation(id);
    let joins = later(&c, head.joins.unsigned_abs(), users.len() as u64)?;
    let place = JoinPlace {
        seq,
        order: head.joins + 1,
        count: u64::from(head.members) + users.len() as u64,
        version: later(&c, head.member_version, 1)?,
    };
    let row = match seq {
        Found::Is(U64(seq)) => MemberData::new(role, seq, now).pack(),
        Found::Later => MemberData::new(role, 0, now).packed(MARK),
    };
    let mut ops = Vec::with_capacity(users.len() * 3 + 5);
    for (order, user) in (place.order..).zip(users) {
        ops.push(Op::Set(Field::new(key::members(id), user.clone()), row.clone()));
        ops.push(Op::Score { key: key::joins(id), score: order, member: user.clone() });
    }
    let set = |name: &str, value: String| Op::Set(Field::new(c.clone(), name), value.into());
    ops.extend([set("n", place.count.to_string()), set("mv", place.version.to_string()), set("jn", joins.to_string())]);
    ops.extend(noted(id, users.iter().map(String::as_str), head.member_version, place.version));
    ops.push(Op::Emit(joined(id, users, role, now, actor_id, &place)));
    Ok((ops, place.version))
}

/// What new members have in common: the first seq that they see, the first of their places in join order, and the conversation's count
/// and version with them.
pub(super) struct JoinPlace {
    pub(super) seq: Found<U64>,
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
    event::open_body(&added, now)
}
