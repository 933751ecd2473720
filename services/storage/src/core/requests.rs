//! Friend requests: from the one who asks to the other, each side with a row of its own until one of them answers or takes it back.
//!
//! A request waits for 30 days. Who asks has at most 200 that wait; at a user who has 1,000 the oldest give way, so that nobody can fill
//! another's inbox for good.

use bytes::Bytes;
use kith_contract::events::{FriendRequestSent, FriendRequestSettled, FriendRequested};
use kith_proto::storage::v1::{
    AnswerFriendRequestRequest, FriendRequest, ListFriendRequestsRequest, ListFriendRequestsResponse,
    RequestFriendRequest, relate,
};
use kith_rpc::error::Error;
use tonic::Code;

use super::{
    Core, Plan, check, full,
    model::{key, text},
    no_user,
    relations::{Added, friend_field, pair, relate_step, request_fields},
};
use crate::{
    engine::{Field, Op, Swap},
    event::{self, Plain},
};

/// Requests of one user that wait for others, and of others that wait for one user.
const MOST_SENT: u64 = 200;
const MOST_RECEIVED: u64 = 1_000;
/// Requests that give way at once, so that not every one more costs a look at all of them.
const GIVE_WAY: usize = 100;
/// How long a request waits.
pub(super) const LIFE_MS: i64 = 30 * 86_400_000;
const TOO_MANY_SENT: &str =
    "user_id: 200 of your friend requests wait for an answer: take one back, or wait for answers";
const TOO_MANY_RECEIVED: &str = "user_id: this user has too many friend requests: try again";
/// Words of a request, bytes.
const TEXT_BYTES: usize = 1_024;

/// A request's row: `at|words`.
struct Row {
    at: i64,
    words: String,
}

impl Row {
    fn pack(at: i64, words: &str) -> Bytes {
        format!("{at}|{words}").into()
    }

    fn unpack(value: &Bytes) -> Self {
        let value = text(value);
        let (at, words) = value.split_once('|').unwrap_or(("0", ""));
        Self { at: at.parse().unwrap_or(0), words: words.to_owned() }
    }

    fn is_over(&self, now: i64) -> bool {
        self.at.saturating_add(LIFE_MS) < now
    }
}

/// Whether a row is there and its time is not over.
fn waits(value: Option<&Bytes>, now: i64) -> bool {
    value.is_some_and(|bytes| !Row::unpack(bytes).is_over(now))
}

/// The event that takes requests of one side away: `i` those from the peer, `o` those to the peer, empty both.
fn settled_event(user_id: &str, peer_id: &str, side: &str, now: i64) -> Op {
    let settled = FriendRequestSettled { peer_id: peer_id.into(), side: side.into(), user_id: user_id.into() };
    Op::Emit(event::body(&Plain::FriendRequestSettled(settled), now))
}

impl Core {
    /// The side of the one who is asked.
    pub(super) async fn requested(&self, user_id: &str, peer_id: &str, words: &str, at: i64) -> Result<bool, Error> {
        let [incoming, _] = request_fields(user_id, peer_id);
        let fields =
            vec![Field::new(key::profile(user_id), "v"), incoming.clone(), Field::new(key::blocks(user_id), peer_id)];
        let ask = || {
            self.update(self.partition(user_id), fields.clone(), |values| {
                if values[0].is_none() {
                    return Err(no_user());
                }
                // A blocked user's request goes nowhere, without a word. One that waits already is a retry.
                let waiting = values[1].as_ref().map(Row::unpack).filter(|row| !row.is_over(at));
                if values[2].is_some() || waiting.is_some_and(|row| row.words == words) {
                    return Ok(Plan::nothing(false));
                }
                let requested = Plain::FriendRequested(FriendRequested {
                    requested_at: at,
                    requester_id: peer_id.into(),
                    text: words.into(),
                    user_id: user_id.into(),
                });
                let event = Op::Emit(event::body(&requested, at));
                let plan = Plan::new(vec![Op::Set(incoming.clone(), Row::pack(at, words)), event], true);
                let room = Field::new(key::friends(user_id), "i");
                Ok(if values[1].is_some() { plan } else { plan.within(room, MOST_RECEIVED, TOO_MANY_RECEIVED) })
            })
        };
        match ask().await {
            Err(error) if error.code == Code::ResourceExhausted && error.detail == TOO_MANY_RECEIVED => {
                self.forget_requests(user_id, "i", "j", GIVE_WAY, at).await?;
                ask().await
            }
            outcome => outcome,
        }
    }

    /// Takes away the requests of one side whose time is over, and the oldest besides until so many are.
    async fn forget_requests(
        &self,
        user_id: &str,
        side: &str,
        end: &'static str,
        at_least: usize,
        now: i64,
    ) -> Result<(), Error> {
        let rows = self.all_of(user_id, side, end).await?;
        let mut rows: Vec<(i64, bool, String)> = rows
            .into_iter()
            .map(|(name, value)| (Row::unpack(&value), name))
            .map(|(row, name)| (row.at, row.is_over(now), name))
            .collect();
        rows.sort_unstable();
        let over = rows.iter().take_while(|(_, over, _)| *over).count();
        let mut ops = Vec::new();
        for (_, _, name) in rows.into_iter().take(over.max(at_least)) {
            ops.push(settled_event(user_id, &name[1..], side, now));
            ops.push(Op::Delete(Field::new(key::friends(user_id), name)));
        }
        let swap = Swap { conditions: Vec::new(), ops };
        Ok(self.engine().swap(self.partition(user_id), swap, Self::end()).await?)
    }

    pub(super) async fn settled(&self, user_id: &str, peer_id: &str) -> Result<bool, Error> {
        let fields = request_fields(user_id, peer_id);
        self.update(self.partition(user_id), fields.to_vec(), |values| {
            let mut ops: Vec<Op> =
                fields.iter().zip(values).filter(|(_, v)| v.is_some()).map(|(f, _)| Op::Delete(f.clone())).collect();
            let changed = !ops.is_empty();
            if changed {
                ops.push(settled_event(user_id, peer_id, "", Self::now()));
            }
            Ok(Plan::freeing(ops, changed))
        })
        .await
    }

    /// Ends what waits between two users. The other side first: the own one stays until both are done, so that a retry finds it.
    pub(super) async fn settle(&self, user_id: &str, peer_id: &str, now: i64) -> Result<(), Error> {
        self.steps(vec![relate_step(peer_id, relate::Kind::Settled, user_id, "", now)]).await?;
        self.settled(user_id, peer_id).await.map(drop)
    }

    pub(crate) async fn request_friend(&self, request: RequestFriendRequest) -> Result<(), Error> {
        let RequestFriendRequest { user_id, target_id, text } = request;
        pair("user_id", &user_id, "target_id", &target_id)?;
        if text.len() > TEXT_BYTES {
            return Err(Error::invalid(format!("text: {} bytes, at most {TEXT_BYTES}", text.len())));
        }
        let now = Self::now();
        let [incoming, outgoing] = request_fields(&user_id, &target_id);
        let profile = Field::new(key::profile(&user_id), "v");
        let fields = [profile, friend_field(&user_id, &target_id), outgoing.clone(), incoming];
        let values = self.fields(self.partition(&user_id), &fields, Self::end()).await?;
        if values[0].is_none() {
            return Err(no_user());
        }
        if values[1].is_some() {
            return Ok(());
        }
        if values[2].is_none() {
            self.room_for_request(&user_id, now).await?;
        }
        // The one who is asked first: whoever does not exist leaves no row, and a retry finds what is missing here.
        let there = |kind, text| relate_step(&target_id, kind, &user_id, text, now);
        // Where one waits already, in whatever direction, that stays.
        let fresh = values[2..].iter().all(Option::is_none);
        let back = fresh.then(|| there(relate::Kind::Settled, ""));
        let own = self.update(self.partition(&user_id), vec![outgoing.clone()], |values| {
            let waiting = values[0].as_ref().map(Row::unpack).filter(|row| !row.is_over(now));
            if waiting.is_some_and(|row| row.words == text) {
                return Ok(Plan::nothing(()));
            }
            let sent = Plain::FriendRequestSent(FriendRequestSent {
                requested_at: now,
                target_id: (&target_id).into(),
                text: (&text).into(),
                user_id: (&user_id).into(),
            });
            let event = Op::Emit(event::body(&sent, now));
            let plan = Plan::new(vec![Op::Set(outgoing.clone(), Row::pack(now, &text)), event], ());
            let room = Field::new(key::friends(&user_id), "o");
            Ok(if values[0].is_some() { plan } else { plan.within(room, MOST_SENT, TOO_MANY_SENT) })
        });
        self.other_side_first(there(relate::Kind::Requested, &text), back, own).await
    }

    /// Asked before the other side is changed; the change of this side asks again.
    async fn room_for_request(&self, user_id: &str, now: i64) -> Result<(), Error> {
        let key = key::friends(user_id);
        if self.count(user_id, key.clone(), "o").await? < MOST_SENT {
            return Ok(());
        }
        self.forget_requests(user_id, "o", "p", 0, now).await?;
        if self.count(user_id, key, "o").await? < MOST_SENT { Ok(()) } else { Err(full(TOO_MANY_SENT)) }
    }

    pub(crate) async fn list_friend_requests(
        &self,
        request: ListFriendRequestsRequest,
    ) -> Result<ListFriendRequestsResponse, Error> {
        let ListFriendRequestsRequest { user_id, limit, cursor } = request;
        check::user("user_id", &user_id)?;
        let limit = check::limit(limit, 200, 1_000)?;
        let now = Self::now();
        // Nothing lies between the two kinds.
        let range = ("i", "p");
        let (page, next_cursor) =
            self.listed("requests", &user_id, key::friends(&user_id), range, (limit, &cursor)).await?;
        let rows = page.into_iter().map(|(name, value)| (name, Row::unpack(&value)));
        let requests = rows.filter(|(_, row)| !row.is_over(now)).map(|(name, row)| FriendRequest {
            user_id: name[1..].to_owned(),
            text: row.words,
            requested_at: row.at,
            outgoing: name.starts_with('o'),
        });
        Ok(ListFriendRequestsResponse { requests: requests.collect(), next_cursor })
    }

    /// Accepts a request, or ends it: who is asked rejects it, who has asked takes it back.
    pub(crate) async fn answer_friend_request(&self, request: AnswerFriendRequestRequest) -> Result<(), Error> {
        let AnswerFriendRequestRequest { user_id, requester_id, accept } = request;
        pair("user_id", &user_id, "requester_id", &requester_id)?;
        let now = Self::now();
        let [incoming, outgoing] = request_fields(&user_id, &requester_id);
        let fields = [incoming, outgoing, friend_field(&user_id, &requester_id)];
        let values = self.fields(self.partition(&user_id), &fields, Self::end()).await?;
        let none = || Error::not_found("requester_id: no such request");
        if !accept {
            return if values[..2].iter().any(Option::is_some) {
                self.settle(&user_id, &requester_id, now).await
            } else {
                Err(none())
            };
        }
        if !waits(values[0].as_ref(), now) {
            return if values[2].is_some() { Ok(()) } else { Err(none()) };
        }
        let added = Added { alias: None, version: 0, at: now, settles: false };
        let own = self.add_friend(&user_id, &requester_id, &added);
        self.befriend(&user_id, &requester_id, now, own).await?;
        self.settled(&user_id, &requester_id).await.map(drop)
    }
}
