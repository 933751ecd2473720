//! Between users: friends, friend requests, blocks. Friendship is mutual; aliases and versions are each side's own.

use kith_kit::{error::Error, ids};
use kith_proto::storage::v1::{
    AnswerFriendRequestRequest, DeleteFriendRequest, DirectBlock, Friend, FriendRequest, ListBlocksRequest,
    ListBlocksResponse, ListFriendRequestsRequest, ListFriendRequestsResponse, ListFriendsRequest, ListFriendsResponse,
    PutFriendRequest, Relate, RequestFriendRequest, SetBlockRequest, Step, relate, step,
};
use serde_json::json;

use super::{
    Core, Plan, check,
    model::{FriendRow, key, number, text},
    no_user,
};
use crate::{
    engine::{Field, Op},
    event,
};

/// Friends, requests and blocks of one user.
const MOST: usize = 5_000;

fn pair(user: &'static str, user_id: &str, other: &'static str, other_id: &str) -> Result<(), Error> {
    check::user(user, user_id)?;
    check::user(other, other_id)?;
    if user_id == other_id { Err(Error::invalid(format!("{other}: must be another user"))) } else { Ok(()) }
}

fn relate_step(user_id: &str, kind: relate::Kind, peer_id: &str, text: &str, at: i64) -> Step {
    let relate = Relate { kind: kind as i32, peer_id: peer_id.to_owned(), text: text.to_owned(), at };
    Step { id: user_id.to_owned(), step: Some(step::Step::Relate(relate)) }
}

/// A page of sorted ids behind the cursor, which is the last id of the page before.
fn page<T>(mut items: Vec<(String, T)>, limit: u32, cursor: &str) -> (Vec<(String, T)>, String) {
    items.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let mut rest: Vec<_> = items.into_iter().filter(|(id, _)| id.as_str() > cursor).collect();
    let more = rest.len() > limit as usize;
    rest.truncate(limit as usize);
    let next = if more { rest.last().map(|(id, _)| id.clone()).unwrap_or_default() } else { String::new() };
    (rest, next)
}

impl Core {
    async fn steps(&self, steps: Vec<Step>) -> Result<(), Error> {
        for outcome in self.apply(steps).await? {
            outcome?;
        }
        Ok(())
    }

    fn friend_field(user_id: &str, peer_id: &str) -> Field {
        Field::new(key::friends(user_id), format!("f{peer_id}"))
    }

    fn request_fields(user_id: &str, peer_id: &str) -> [Field; 2] {
        [
            Field::new(key::friends(user_id), format!("i{peer_id}")),
            Field::new(key::friends(user_id), format!("o{peer_id}")),
        ]
    }

    /// One side of a change between two users.
    pub(super) async fn relate(&self, user_id: &str, relate: Relate) -> Result<bool, Error> {
        let peer = relate.peer_id.as_str();
        pair("id", user_id, "peer_id", peer)?;
        match relate::Kind::try_from(relate.kind).unwrap_or_default() {
            relate::Kind::AddFriend => self.add_friend(user_id, peer, None, 0, relate.at).await,
            relate::Kind::RemoveFriend => self.remove_friend(user_id, peer, 0, relate.at).await,
            relate::Kind::Requested => self.requested(user_id, peer, &relate.text, relate.at).await,
            relate::Kind::Settled => self.settled(user_id, peer).await,
            relate::Kind::Unspecified => Err(Error::invalid("relate.kind: must be set")),
        }
    }

    async fn add_friend(
        &self,
        user_id: &str,
        peer_id: &str,
        alias: Option<&str>,
        version: u64,
        at: i64,
    ) -> Result<bool, Error> {
        let friend = Self::friend_field(user_id, peer_id);
        let fields = vec![Field::new(key::profile(user_id), "v"), friend.clone()];
        self.update(self.partition(user_id), fields, |values| {
            if values[0].is_none() {
                return Err(no_user());
            }
            let stored = values[1].as_ref().map(|b| FriendRow::unpack(&friend.key, b)).transpose()?;
            let fresh = stored.is_none();
            let mut row = stored.unwrap_or(FriendRow { since: at, version: 0, alias: String::new() });
            let older = version != 0 && version <= row.version && !fresh;
            let same = alias.is_none_or(|a| a == row.alias) && (version == 0 || version == row.version);
            if older || (same && !fresh) {
                return Ok(Plan::nothing(false));
            }
            if let Some(alias) = alias {
                alias.clone_into(&mut row.alias);
            }
            row.version = if version == 0 { row.version + 1 } else { version };
            let data = json!({
                "user_id": user_id, "friend_id": peer_id, "alias": row.alias, "since": row.since.to_string(), "version": row.version.to_string(),
            });
            let mut ops = vec![Op::Set(friend.clone(), row.pack())];
            ops.extend(Self::request_fields(user_id, peer_id).map(Op::Delete));
            ops.push(Op::Emit(event::body("friend.added", user_id, at, &data)));
            Ok(Plan::new(ops, true))
        })
        .await
    }

    async fn remove_friend(&self, user_id: &str, peer_id: &str, version: u64, at: i64) -> Result<bool, Error> {
        let friend = Self::friend_field(user_id, peer_id);
        self.update(self.partition(user_id), vec![friend.clone()], |values| {
            let Some(bytes) = &values[0] else { return Ok(Plan::nothing(false)) };
            if version != 0 && FriendRow::unpack(&friend.key, bytes)?.version > version {
                return Ok(Plan::nothing(false));
            }
            let data = json!({"user_id": user_id, "friend_id": peer_id});
            Ok(Plan::new(
                vec![Op::Delete(friend.clone()), Op::Emit(event::body("friend.removed", user_id, at, &data))],
                true,
            ))
        })
        .await
    }

    async fn requested(&self, user_id: &str, peer_id: &str, words: &str, at: i64) -> Result<bool, Error> {
        let [incoming, _] = Self::request_fields(user_id, peer_id);
        let fields =
            vec![Field::new(key::profile(user_id), "v"), incoming.clone(), Field::new(key::blocks(user_id), peer_id)];
        self.update(self.partition(user_id), fields, |values| {
            if values[0].is_none() {
                return Err(no_user());
            }
            // A blocked user's request goes nowhere, without a word.
            if values[2].is_some() {
                return Ok(Plan::nothing(false));
            }
            let data =
                json!({"user_id": user_id, "requester_id": peer_id, "text": words, "requested_at": at.to_string()});
            let event = Op::Emit(event::body("friend.requested", user_id, at, &data));
            Ok(Plan::new(vec![Op::Set(incoming.clone(), format!("{at}|{words}").into()), event], true))
        })
        .await
    }

    async fn settled(&self, user_id: &str, peer_id: &str) -> Result<bool, Error> {
        let fields = Self::request_fields(user_id, peer_id);
        self.update(self.partition(user_id), fields.to_vec(), |values| {
            let mut ops: Vec<Op> =
                fields.iter().zip(values).filter(|(_, v)| v.is_some()).map(|(f, _)| Op::Delete(f.clone())).collect();
            let changed = !ops.is_empty();
            if changed {
                let data = json!({"user_id": user_id, "peer_id": peer_id});
                ops.push(Op::Emit(event::body("friend.request_settled", user_id, Self::now(), &data)));
            }
            Ok(Plan::new(ops, changed))
        })
        .await
    }

    pub(crate) async fn put_friend(&self, request: PutFriendRequest) -> Result<bool, Error> {
        let PutFriendRequest { user_id, friend_id, alias, version, must_exist } = request;
        pair("user_id", &user_id, "friend_id", &friend_id)?;
        check::text("alias", alias.as_deref().unwrap_or_default())?;
        let stands = self.field(&user_id, Self::friend_field(&user_id, &friend_id)).await?.is_some();
        if must_exist && !stands {
            return Err(Error::not_found("friend_id: not a friend"));
        }
        let now = Self::now();
        if !stands {
            self.check_room(&user_id, 'f').await?;
            self.steps(vec![relate_step(&friend_id, relate::Kind::AddFriend, &user_id, "", now)]).await?;
        }
        self.add_friend(&user_id, &friend_id, alias.as_deref(), version, now).await
    }

    async fn check_room(&self, user_id: &str, prefix: char) -> Result<(), Error> {
        let fields = self.hash(self.partition(user_id), key::friends(user_id)).await?;
        if fields.iter().filter(|(name, _)| name.starts_with(prefix)).count() >= MOST {
            return Err(Error::invalid(format!("user_id: at most {MOST} friends or requests")));
        }
        Ok(())
    }

    pub(crate) async fn delete_friend(&self, request: DeleteFriendRequest) -> Result<bool, Error> {
        let DeleteFriendRequest { user_id, friend_id, version } = request;
        pair("user_id", &user_id, "friend_id", &friend_id)?;
        let now = Self::now();
        let changed = self.remove_friend(&user_id, &friend_id, version, now).await?;
        let stands = self.field(&user_id, Self::friend_field(&user_id, &friend_id)).await?.is_some();
        if !stands {
            // Also when nothing changed here: an earlier call may have ended between the two sides.
            self.steps(vec![relate_step(&friend_id, relate::Kind::RemoveFriend, &user_id, "", now)]).await?;
        }
        Ok(changed)
    }

    pub(crate) async fn list_friends(&self, request: ListFriendsRequest) -> Result<ListFriendsResponse, Error> {
        check::user("user_id", &request.user_id)?;
        let limit = check::limit(request.limit, 200, 1_000)?;
        let key = key::friends(&request.user_id);
        let fields = self.hash(self.partition(&request.user_id), key.clone()).await?;
        let friends =
            fields.into_iter().filter_map(|(name, value)| name.strip_prefix('f').map(|id| (id.to_owned(), value)));
        let (page, next_cursor) = page(friends.collect(), limit, &request.cursor);
        let friends = page.into_iter().map(|(user_id, value)| {
            let row = FriendRow::unpack(&key, &value)?;
            Ok(Friend { user_id, alias: row.alias, since: row.since, version: row.version })
        });
        Ok(ListFriendsResponse { friends: friends.collect::<Result<_, Error>>()?, next_cursor })
    }

    pub(crate) async fn request_friend(&self, request: RequestFriendRequest) -> Result<(), Error> {
        let RequestFriendRequest { user_id, target_id, text } = request;
        pair("user_id", &user_id, "target_id", &target_id)?;
        check::text("text", &text)?;
        self.user_exists(&user_id).await?;
        self.check_room(&user_id, 'o').await?;
        let now = Self::now();
        let [_, outgoing] = Self::request_fields(&user_id, &target_id);
        if self.field(&user_id, Self::friend_field(&user_id, &target_id)).await?.is_some() {
            return Ok(());
        }
        self.steps(vec![relate_step(&target_id, relate::Kind::Requested, &user_id, &text, now)]).await?;
        self.update(self.partition(&user_id), vec![outgoing.clone()], |_| {
            let data =
                json!({"user_id": user_id, "target_id": target_id, "text": text, "requested_at": now.to_string()});
            let event = Op::Emit(event::body("friend.request_sent", &user_id, now, &data));
            Ok(Plan::new(vec![Op::Set(outgoing.clone(), format!("{now}|{text}").into()), event], ()))
        })
        .await
    }

    pub(crate) async fn list_friend_requests(
        &self,
        request: ListFriendRequestsRequest,
    ) -> Result<ListFriendRequestsResponse, Error> {
        check::user("user_id", &request.user_id)?;
        let limit = check::limit(request.limit, 200, 1_000)?;
        let fields = self.hash(self.partition(&request.user_id), key::friends(&request.user_id)).await?;
        let requests = fields.into_iter().filter(|(name, _)| name.starts_with(['i', 'o']));
        let (page, next_cursor) = page(requests.collect(), limit, &request.cursor);
        let requests = page.into_iter().map(|(name, value)| {
            let value = text(&value);
            let (at, words) = value.split_once('|').unwrap_or(("0", ""));
            FriendRequest {
                user_id: name[1..].to_owned(),
                text: words.to_owned(),
                requested_at: at.parse().unwrap_or(0),
                outgoing: name.starts_with('o'),
            }
        });
        Ok(ListFriendRequestsResponse { requests: requests.collect(), next_cursor })
    }

    pub(crate) async fn answer_friend_request(&self, request: AnswerFriendRequestRequest) -> Result<(), Error> {
        let AnswerFriendRequestRequest { user_id, requester_id, accept } = request;
        pair("user_id", &user_id, "requester_id", &requester_id)?;
        let [incoming, _] = Self::request_fields(&user_id, &requester_id);
        if self.field(&user_id, incoming).await?.is_none() {
            let friends = self.field(&user_id, Self::friend_field(&user_id, &requester_id)).await?.is_some();
            return if accept && friends { Ok(()) } else { Err(Error::not_found("requester_id: no such request")) };
        }
        let now = Self::now();
        // The other side first: the request stays until both are done, so that a retry finds it.
        let kind = if accept { relate::Kind::AddFriend } else { relate::Kind::Settled };
        self.steps(vec![relate_step(&requester_id, kind, &user_id, "", now)]).await?;
        if accept {
            self.add_friend(&user_id, &requester_id, None, 0, now).await?;
        }
        self.settled(&user_id, &requester_id).await.map(drop)
    }

    pub(crate) async fn set_block(&self, request: SetBlockRequest) -> Result<bool, Error> {
        let SetBlockRequest { user_id, target_id, blocked } = request;
        pair("user_id", &user_id, "target_id", &target_id)?;
        self.user_exists(&user_id).await?;
        let id = ids::direct_conversation_id(&user_id, &target_id)?;
        if blocked {
            let blocks = self.hash(self.partition(&user_id), key::blocks(&user_id)).await?;
            if blocks.len() >= MOST && !blocks.iter().any(|(name, _)| *name == target_id) {
                return Err(Error::invalid(format!("target_id: at most {MOST} blocked users")));
            }
        }
        // First where it takes effect, then where it is listed: a retry repairs what is between.
        let block = DirectBlock { user_id: target_id.clone(), blocked };
        self.steps(vec![Step { id, step: Some(step::Step::DirectBlock(block)) }]).await?;
        let field = Field::new(key::blocks(&user_id), target_id.clone());
        let now = Self::now();
        self.update(self.partition(&user_id), vec![field.clone()], |values| {
            if values[0].is_some() == blocked {
                return Ok(Plan::nothing(false));
            }
            let kind = if blocked { "block.added" } else { "block.removed" };
            let op = if blocked { Op::Set(field.clone(), now.to_string().into()) } else { Op::Delete(field.clone()) };
            let data = json!({"user_id": user_id, "target_id": target_id, "at": now.to_string()});
            Ok(Plan::new(vec![op, Op::Emit(event::body(kind, &user_id, now, &data))], true))
        })
        .await
    }

    pub(crate) async fn list_blocks(&self, request: ListBlocksRequest) -> Result<ListBlocksResponse, Error> {
        check::user("user_id", &request.user_id)?;
        let limit = check::limit(request.limit, 200, 1_000)?;
        let fields = self.hash(self.partition(&request.user_id), key::blocks(&request.user_id)).await?;
        let since = fields.into_iter().map(|(id, at)| (id, number::<i64>(&at).unwrap_or(0)));
        let (page, next_cursor) = page(since.collect(), limit, &request.cursor);
        Ok(ListBlocksResponse { user_ids: page.into_iter().map(|(id, _)| id).collect(), next_cursor })
    }
}
