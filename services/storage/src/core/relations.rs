//! Between users: friendship, which is mutual; aliases and versions are each side's own. See [`super::requests`] and [`super::blocks`].
//!
//! A user's friends and requests are one hash: `f<peer>` a friend, `v<peer>` the version of the last record of a line's source about them,
//! which stays when the friendship ends, `i<peer>` and `o<peer>` requests from and to a peer.

use bytes::Bytes;
use kith_contract::{
    events::{FriendAdded, FriendRemoved},
    json::{I64, U64},
};
use kith_proto::storage::v1::{
    DeleteFriendRequest, Friend, ListFriendsRequest, ListFriendsResponse, PutFriendRequest, Relate, Step, relate, step,
    step_result,
};
use kith_rpc::error::Error;

use super::{
    Core, Plan, check,
    entering::is_final,
    full,
    model::{FriendRow, SourceRow, key},
    no_user,
};
use crate::{
    engine::{Field, FieldPage, Op, Range},
    event::{self, Plain},
};

/// Friends of one user.
const MOST: u64 = 5_000;
/// Friendships of one user, ended ones included, of which a line's version is known.
const MOST_SOURCES: u64 = 10_000;
/// How long an ended friendship keeps its version: twice what the event log and a line's topic keep.
const SOURCE_LIFE_MS: i64 = 14 * 86_400_000;
/// Fields of a hash that are read at once.
const PAGE: u32 = 1_000;
const TOO_MANY: &str = "user_id: at most 5,000 friends";
/// Users who are looked for among the friends in one call.
const AMONG: usize = 100;

/// One side of a new or changed friendship.
pub(super) struct Added<'a> {
    pub(super) alias: Option<&'a str>,
    /// Of a line's record; 0: none.
    pub(super) version: u64,
    pub(super) at: i64,
    /// Whether it ends the requests of this side.
    pub(super) settles: bool,
}

impl Added<'_> {
    /// The other side's, which knows neither alias nor version, and settles when both are friends.
    fn there(at: i64) -> Self {
        Self { alias: None, version: 0, at, settles: false }
    }
}

pub(super) fn pair(user: &'static str, user_id: &str, other: &'static str, other_id: &str) -> Result<(), Error> {
    check::user(user, user_id)?;
    check::user(other, other_id)?;
    if user_id == other_id { Err(Error::invalid(format!("{other}: must be another user"))) } else { Ok(()) }
}

pub(super) fn relate_step(user_id: &str, kind: relate::Kind, peer_id: &str, text: &str, at: i64) -> Step {
    let relate = Relate { kind: kind as i32, peer_id: peer_id.to_owned(), text: text.to_owned(), at };
    Step { id: user_id.to_owned(), step: Some(step::Step::Relate(relate)) }
}

pub(super) fn friend_field(user_id: &str, peer_id: &str) -> Field {
    Field::new(key::friends(user_id), format!("f{peer_id}"))
}

fn source_field(user_id: &str, peer_id: &str) -> Field {
    Field::new(key::friends(user_id), format!("v{peer_id}"))
}

/// Requests from the peer, and to the peer.
pub(super) fn request_fields(user_id: &str, peer_id: &str) -> [Field; 2] {
    ["i", "o"].map(|side| Field::new(key::friends(user_id), format!("{side}{peer_id}")))
}

/// The version of the last record of a line's source; 0: none had one.
fn source_of(field: &Field, value: Option<&Bytes>) -> Result<u64, Error> {
    value.map_or(Ok(0), |bytes| SourceRow::unpack(&field.key, bytes).map(|row| row.version))
}

impl Core {
    pub(super) async fn steps(&self, steps: Vec<Step>) -> Result<(), Error> {
        for outcome in self.apply(steps).await? {
            outcome?;
        }
        Ok(())
    }

    /// Changes the other side, then the own one. Should the own one be refused after all, `back` takes away what the other side did not
    /// have before; whatever a crash leaves between the two, a retry completes.
    pub(super) async fn other_side_first<T>(
        &self,
        step: Step,
        back: Option<Step>,
        own: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let other = self.apply(vec![step]).await?.pop().unwrap_or_else(|| Err(Error::internal("no outcome")))?;
        let changed = matches!(other, step_result::Result::Done(done) if done.changed);
        let outcome = own.await;
        if let (Err(error), Some(back)) = (&outcome, back.filter(|_| changed))
            && is_final(error)
            && let Err(error) = self.steps(vec![back]).await
        {
            tracing::warn!(%error, "one side of two users has a change that the other refused");
        }
        outcome
    }

    /// A page of the fields of a user's hash, and the cursor of the next one; `from` is where a list without a cursor begins.
    pub(super) async fn listed(
        &self,
        list: &'static str,
        user_id: &str,
        key: String,
        (from, end): (&str, &'static str),
        (limit, cursor): (u32, &str),
    ) -> Result<(Vec<(String, Bytes)>, String), Error> {
        let owner = [user_id];
        let after = self.0.cursors.read(list, &owner, cursor)?.unwrap_or_else(|| from.to_owned());
        let range = Range { key, after, end, limit };
        let FieldPage { fields, more } = self.engine().field_page(self.partition(user_id), range, Self::end()).await?;
        let next = match fields.last() {
            Some((name, _)) if more => self.0.cursors.write(list, &owner, name)?,
            _ => String::new(),
        };
        Ok((fields, next))
    }

    /// All fields of a user's hash that begin with a letter, page by page; only where room is made.
    pub(super) async fn all_of(
        &self,
        user_id: &str,
        from: &str,
        end: &'static str,
    ) -> Result<Vec<(String, Bytes)>, Error> {
        let mut found = Vec::new();
        let mut after = from.to_owned();
        loop {
            let range = Range { key: key::friends(user_id), after, end, limit: PAGE };
            let page = self.engine().field_page(self.partition(user_id), range, Self::end()).await?;
            found.extend(page.fields);
            match found.last() {
                Some((name, _)) if page.more => after = name.clone(),
                _ => return Ok(found),
            }
        }
    }

    /// One side of a change between two users.
    pub(super) async fn relate(&self, user_id: &str, relate: Relate) -> Result<bool, Error> {
        let peer = relate.peer_id.as_str();
        let kind = relate::Kind::try_from(relate.kind).unwrap_or_default();
        if kind == relate::Kind::Known && peer.is_empty() {
            check::user("id", user_id)?;
        } else {
            pair("id", user_id, "peer_id", peer)?;
        }
        match kind {
            // Requests stay until both sides are friends: see `befriend`.
            relate::Kind::AddFriend => self.add_friend(user_id, peer, &Added::there(relate.at)).await,
            relate::Kind::RemoveFriend => self.remove_friend(user_id, peer, 0, relate.at).await,
            relate::Kind::Requested => self.requested(user_id, peer, &relate.text, relate.at).await,
            relate::Kind::Settled => self.settled(user_id, peer).await,
            relate::Kind::Known => self.user_exists(user_id).await.map(|()| false),
            relate::Kind::Unspecified => Err(Error::invalid("relate.kind: must be set")),
        }
    }

    pub(super) async fn add_friend(&self, user_id: &str, peer_id: &str, added: &Added<'_>) -> Result<bool, Error> {
        let Added { alias, version, at, settles } = *added;
        let (friend, source) = (friend_field(user_id, peer_id), source_field(user_id, peer_id));
        let [incoming, outgoing] = request_fields(user_id, peer_id);
        let profile = Field::new(key::profile(user_id), "v");
        let fields = vec![profile, friend.clone(), source.clone(), incoming.clone(), outgoing.clone()];
        self.update(self.partition(user_id), fields, |values| {
            if values[0].is_none() {
                return Err(no_user());
            }
            let stored = values[1].as_ref().map(|b| FriendRow::unpack(&friend.key, b)).transpose()?;
            let fresh = stored.is_none();
            if version != 0 && version <= source_of(&source, values[2].as_ref())? {
                return Ok(Plan::nothing(false));
            }
            let mut row = stored.unwrap_or(FriendRow { since: at, version: 0, alias: String::new() });
            let same = alias.is_none_or(|a| a == row.alias) && version == 0;
            if same && !fresh {
                return Ok(Plan::nothing(false));
            }
            if let Some(alias) = alias {
                alias.clone_into(&mut row.alias);
            }
            row.version = row.version.saturating_add(1);
            let mut ops = vec![Op::Set(friend.clone(), row.pack())];
            if version != 0 {
                ops.push(Op::Set(source.clone(), SourceRow { version, at }.pack()));
            }
            for (field, value) in [(&incoming, &values[3]), (&outgoing, &values[4])] {
                if settles && value.is_some() {
                    ops.push(Op::Delete(field.clone()));
                }
            }
            let added = Plain::FriendAdded(FriendAdded {
                alias: row.alias.into(),
                at: Some(I64(at)),
                friend_id: peer_id.into(),
                since: row.since,
                source_version: Some(U64(version)),
                user_id: user_id.into(),
                version: row.version,
            });
            ops.push(Op::Emit(event::body(&added, at)));
            let plan = Plan::new(ops, true);
            Ok(if fresh { plan.within(Field::new(key::friends(user_id), "f"), MOST, TOO_MANY) } else { plan })
        })
        .await
    }

    async fn remove_friend(&self, user_id: &str, peer_id: &str, version: u64, at: i64) -> Result<bool, Error> {
        let (friend, source) = (friend_field(user_id, peer_id), source_field(user_id, peer_id));
        self.update(self.partition(user_id), vec![friend.clone(), source.clone()], |values| {
            let known = source_of(&source, values[1].as_ref())?;
            if values[0].is_none() || (version != 0 && version <= known) {
                return Ok(Plan::nothing(false));
            }
            let kept = version.max(known);
            let mut ops = vec![Op::Delete(friend.clone())];
            if kept != 0 {
                ops.push(Op::Set(source.clone(), SourceRow { version: kept, at }.pack()));
            }
            let removed = Plain::FriendRemoved(FriendRemoved {
                at: Some(I64(at)),
                friend_id: peer_id.into(),
                source_version: Some(U64(kept)),
                user_id: user_id.into(),
            });
            ops.push(Op::Emit(event::body(&removed, at)));
            Ok(Plan::freeing(ops, true))
        })
        .await
    }

    pub(crate) async fn put_friend(&self, request: PutFriendRequest) -> Result<bool, Error> {
        let PutFriendRequest { user_id, friend_id, alias, version, must_exist } = request;
        pair("user_id", &user_id, "friend_id", &friend_id)?;
        check::text("alias", alias.as_deref().unwrap_or_default())?;
        let source = source_field(&user_id, &friend_id);
        let fields = [Field::new(key::profile(&user_id), "v"), friend_field(&user_id, &friend_id), source.clone()];
        let values = self.fields(self.partition(&user_id), &fields, Self::end()).await?;
        let stands = values[1].is_some();
        if values[0].is_none() {
            return Err(no_user());
        }
        if must_exist && !stands {
            return Err(Error::not_found("friend_id: not a friend"));
        }
        // Before the other side hears of it: a record that comes again must not bring back what has ended.
        if version != 0 && version <= source_of(&source, values[2].as_ref())? {
            return Ok(false);
        }
        let now = Self::now();
        if version != 0 && values[2].is_none() {
            self.room_for_source(&user_id, now).await?;
        }
        let added = Added { alias: alias.as_deref(), version, at: now, settles: true };
        let own = self.add_friend(&user_id, &friend_id, &added);
        if stands {
            return own.await;
        }
        self.befriend(&user_id, &friend_id, now, own).await
    }

    /// Makes the user a friend of the other, where there is room at the user, and then the other one of the user by `own`. What waited
    /// between them ends at the other when both are.
    pub(super) async fn befriend<T>(
        &self,
        user_id: &str,
        friend_id: &str,
        now: i64,
        own: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.room_for_friend(user_id).await?;
        let side = |kind| relate_step(friend_id, kind, user_id, "", now);
        let (there, back) = (side(relate::Kind::AddFriend), side(relate::Kind::RemoveFriend));
        let outcome = self.other_side_first(there, Some(back), own).await?;
        self.steps(vec![side(relate::Kind::Settled)]).await?;
        Ok(outcome)
    }

    /// Asked before the other side is changed; the change of this side asks again.
    async fn room_for_friend(&self, user_id: &str) -> Result<(), Error> {
        let friends = self.count(user_id, key::friends(user_id), "f").await?;
        if friends < MOST { Ok(()) } else { Err(full(TOO_MANY)) }
    }

    /// Forgets versions of friendships that ended long ago, and of those that ended first where that is not enough.
    async fn room_for_source(&self, user_id: &str, now: i64) -> Result<(), Error> {
        if self.count(user_id, key::friends(user_id), "v").await? < MOST_SOURCES {
            return Ok(());
        }
        let friends: std::collections::HashSet<String> =
            self.all_of(user_id, "f", "g").await?.into_iter().map(|(name, _)| name[1..].to_owned()).collect();
        let mut ended = Vec::new();
        for (name, value) in self.all_of(user_id, "v", "w").await? {
            if !friends.contains(&name[1..]) {
                ended.push((SourceRow::unpack(&key::friends(user_id), &value)?.at, name));
            }
        }
        ended.sort_unstable();
        let old = ended.iter().take_while(|(at, _)| at.saturating_add(SOURCE_LIFE_MS) < now).count();
        let ops = ended.into_iter().take(old.max(PAGE as usize));
        let ops = ops.map(|(_, name)| Op::Delete(Field::new(key::friends(user_id), name))).collect();
        let swap = crate::engine::Swap { conditions: Vec::new(), ops };
        Ok(self.engine().swap(self.partition(user_id), swap, Self::end()).await?)
    }

    /// Ends a friendship for both; a request that waits for an answer is taken back, or rejected.
    pub(crate) async fn delete_friend(&self, request: DeleteFriendRequest) -> Result<bool, Error> {
        let DeleteFriendRequest { user_id, friend_id, version } = request;
        pair("user_id", &user_id, "friend_id", &friend_id)?;
        let now = Self::now();
        let changed = self.remove_friend(&user_id, &friend_id, version, now).await?;
        let [incoming, outgoing] = request_fields(&user_id, &friend_id);
        let fields = [friend_field(&user_id, &friend_id), incoming, outgoing];
        let values = self.fields(self.partition(&user_id), &fields, Self::end()).await?;
        if values[0].is_none() {
            // Also when nothing changed here: an earlier call may have ended between the two sides.
            self.steps(vec![relate_step(&friend_id, relate::Kind::RemoveFriend, &user_id, "", now)]).await?;
        }
        if version == 0 && values[1..].iter().any(Option::is_some) {
            self.settle(&user_id, &friend_id, now).await?;
            return Ok(true);
        }
        Ok(changed)
    }

    pub(crate) async fn list_friends(&self, request: ListFriendsRequest) -> Result<ListFriendsResponse, Error> {
        let ListFriendsRequest { user_id, limit, cursor, user_ids } = request;
        check::user("user_id", &user_id)?;
        if !user_ids.is_empty() {
            return self.friends_among(&user_id, &user_ids).await;
        }
        let limit = check::limit(limit, 200, 1_000)?;
        let key = key::friends(&user_id);
        let (page, next_cursor) = self.listed("friends", &user_id, key.clone(), ("f", "g"), (limit, &cursor)).await?;
        let friends = page.into_iter().map(|(name, value)| {
            let row = FriendRow::unpack(&key, &value)?;
            Ok(Friend { user_id: name[1..].to_owned(), alias: row.alias, since: row.since, version: row.version })
        });
        Ok(ListFriendsResponse { friends: friends.collect::<Result<_, Error>>()?, next_cursor })
    }

    /// Those of the users who are friends.
    async fn friends_among(&self, user_id: &str, user_ids: &[String]) -> Result<ListFriendsResponse, Error> {
        check::count("user_ids", user_ids.len(), AMONG)?;
        for friend in user_ids {
            check::user("user_ids", friend)?;
        }
        let fields: Vec<Field> = user_ids.iter().map(|friend| friend_field(user_id, friend)).collect();
        let rows = self.fields(self.partition(user_id), &fields, Self::end()).await?;
        let mut friends = Vec::new();
        for (friend, row) in user_ids.iter().zip(rows) {
            let Some(row) = row else { continue };
            let FriendRow { since, version, alias } = FriendRow::unpack(&key::friends(user_id), &row)?;
            friends.push(Friend { user_id: friend.clone(), alias, since, version });
        }
        Ok(ListFriendsResponse { friends, next_cursor: String::new() })
    }
}
