//! Members as they are listed: in the order in which they joined, some of them, or what has changed since a version.
//!
//! Beside the members stands the set of their newest changes (`w:`), written with each of them in one step. Who has a version asks for what
//! came after it, and reads no more than that.

use bytes::Bytes;
use kith_proto::storage::v1::{ListMembersRequest, ListMembersResponse, Member};
use kith_rpc::error::Error;

use super::{
    Core, check,
    model::{self, MOST, MemberData, key, whole_of},
    no_conversation,
};
use crate::engine::{Field, Op, Since};

/// Users who are looked for among the members in one call.
const AMONG: usize = 100;

/// A number that counts, so much later.
pub(super) fn later(key: &str, number: u64, steps: u64) -> Result<u64, Error> {
    let later = number.checked_add(steps).filter(|later| *later <= MOST);
    later.ok_or_else(|| model::corrupt(key, "a number that cannot rise"))
}

/// Puts changes of members into the set of the newest ones: they bring the conversation from one member version to the next. Direct
/// conversations have none, since their members stay.
pub(crate) fn noted<'a>(id: &str, users: impl IntoIterator<Item = &'a str>, from: u64, to: u64) -> Vec<Op> {
    if is_direct(id) {
        return Vec::new();
    }
    // A version is far below the end of its type.
    let score = to.cast_signed();
    let note = |user: &str| Op::Score { key: key::changes(id), score, member: user.to_owned() };
    let all = Op::Noted { conversation_id: id.to_owned(), from, to };
    users.into_iter().map(note).chain([all]).collect()
}

/// Takes members of a dissolved group out of the set: nobody will ask for them.
pub(crate) fn forgotten<'a>(id: &str, users: impl IntoIterator<Item = &'a str>) -> Vec<Op> {
    if is_direct(id) {
        return Vec::new();
    }
    users.into_iter().map(|user| Op::Unscore { key: key::changes(id), member: user.to_owned() }).collect()
}

fn is_direct(id: &str) -> bool {
    id.starts_with("d:")
}

fn member(id: &str, user_id: String, row: &Bytes) -> Result<Member, Error> {
    let data = MemberData::unpack(row).ok_or_else(|| model::corrupt(&key::members(id), "not a member row"))?;
    Ok(data.into_member(user_id))
}

fn count_of(id: &str, count: u64) -> Result<u32, Error> {
    u32::try_from(count).map_err(|_| model::corrupt(&key::conversation(id), "a count of members that none has"))
}

impl Core {
    pub(crate) async fn list_members(&self, request: ListMembersRequest) -> Result<ListMembersResponse, Error> {
        let ListMembersRequest { conversation_id: id, limit, cursor, user_id, user_ids, since_version } = request;
        check::conversation(&id)?;
        let limit = check::limit(limit, 200, 1_000)?;
        if !user_id.is_empty() {
            check::user("user_id", &user_id)?;
            self.seen(&user_id, &id).await?;
        }
        if let Some(since) = since_version {
            if !user_ids.is_empty() {
                return Err(Error::invalid("since_version: not with user_ids"));
            }
            return self.changed_since(&id, &user_id, since, (limit, &cursor)).await;
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
        for found in page.members {
            if let Some(row) = &found.row {
                members.push(member(&id, found.user_id, row)?);
            }
        }
        let member_count = count_of(&id, page.count)?;
        Ok(ListMembersResponse {
            members,
            next_cursor,
            member_version: page.version,
            member_count,
            ..ListMembersResponse::default()
        })
    }

    /// What has changed since a member version.
    async fn changed_since(
        &self,
        id: &str,
        user_id: &str,
        since: u64,
        (limit, cursor): (u32, &str),
    ) -> Result<ListMembersResponse, Error> {
        let from = since.to_string();
        let owner = [id, user_id, &from];
        let behind: Option<(u64, String)> = self.0.cursors.read("changes", &owner, cursor)?;
        let since = Since { version: since, behind, limit };
        let page =
            self.engine().changes(self.partition(id), id, since, Self::end()).await?.ok_or_else(no_conversation)?;
        let mut response = ListMembersResponse {
            member_version: page.version,
            member_count: count_of(id, page.count)?,
            reset: page.changes.is_none(),
            ..ListMembersResponse::default()
        };
        let changes = page.changes.unwrap_or_default();
        if let Some(last) = changes.last().filter(|_| changes.len() == limit as usize) {
            response.next_cursor = self.0.cursors.write("changes", &owner, &(last.version, &last.user_id))?;
        }
        for change in changes {
            match &change.row {
                Some(row) => response.members.push(member(id, change.user_id, row)?),
                None => response.removed.push(change.user_id),
            }
        }
        Ok(response)
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
            if let Some(row) = row {
                members.push(member(id, user.clone(), row)?);
            }
        }
        Ok(ListMembersResponse { members, member_version, member_count, ..ListMembersResponse::default() })
    }
}
