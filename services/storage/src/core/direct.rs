//! Direct conversations: opened by name, or by the first message in them.

use bytes::Bytes;
use kith_contract::{events::ConversationCreated, found::Found, ids, json::U64, kinds};
use kith_proto::{
    chat::v1::{ConversationKind, Draft},
    storage::v1::{OpenDirectRequest, OpenDirectResponse, Role},
};
use kith_rpc::error::Error;
use tonic::Code;

use super::{
    Core, Plan,
    conversations::conversation_ops,
    entering::is_final,
    lists::MOST_ENTRIES,
    members::{JoinPlace, joined},
    messages::same_message,
    model::{self, MemberData, key, whole_of},
    no_conversation, no_user,
};
use crate::{
    engine::{Append, Appended, EngineError, Field, Op, Refusal},
    event::{self, Plain},
};

/// Messages of a conversation up to which it may not be listed yet: those of both sides that can be under way while it is opened.
const YOUNG: u64 = 64;

/// Two users and the conversation that they have or will have.
struct Pair<'a> {
    id: String,
    users: [&'a str; 2],
}

impl<'a> Pair<'a> {
    fn new(a: &'a str, b: &'a str) -> Result<Self, Error> {
        Ok(Self { id: ids::direct_conversation_id(a, b)?, users: [a, b] })
    }

    /// The sender and the peer whose conversation this is.
    fn of(conversation_id: &str, sender: &'a str, peer: &'a str) -> Result<Self, Error> {
        if ids::direct_peer(conversation_id, sender) == Some(peer) {
            Self::new(sender, peer)
        } else {
            Err(Error::invalid("peers: the other user of the direct conversation"))
        }
    }

    /// By which it is decided what is missing; see [`Pair::plan`].
    fn fields(&self) -> [Field; 5] {
        let (c, members) = (key::conversation(&self.id), key::members(&self.id));
        [
            Field::new(c.clone(), "k"),
            Field::new(members.clone(), self.users[0]),
            Field::new(members, self.users[1]),
            Field::new(c.clone(), "n"),
            Field::new(c, "mv"),
        ]
    }

    /// Adds what is not there; the result says whether the conversation was not.
    fn plan(&self, values: &[Option<Bytes>], now: i64) -> Result<Plan<bool>, Error> {
        let (id, c) = (&self.id, key::conversation(&self.id));
        let mut ops = Vec::new();
        let mut joining = Vec::new();
        let created = values[0].is_none();
        for (order, user) in (1..).zip(self.users) {
            // A row may stand before its conversation: a block was written into it.
            if values[order].is_none() {
                let row = MemberData::new(Role::Member, 1, now).pack();
                ops.push(Op::Set(Field::new(key::members(id), user), row));
                joining.push((order, user));
            }
            if created || values[order].is_none() {
                ops.push(Op::Score { key: key::joins(id), score: order as i64, member: user.to_owned() });
            }
        }
        if created {
            ops.extend(conversation_ops(&c, ConversationKind::Direct as i32, 2, now));
            let told = Plain::ConversationCreated(ConversationCreated {
                announcement: None,
                avatar_url: None,
                conversation_id: id.into(),
                created_at: now,
                idempotency_key: None,
                join: None,
                kind: kinds::ConversationKind::Direct,
                member_ids: self.users.map(str::to_owned).to_vec().into(),
                muted: None,
                name: None,
                owner_id: None,
            });
            ops.push(Op::Emit(event::body(&told, now)));
        } else if !joining.is_empty() {
            let stored = |at: usize| {
                let field = &self.fields()[at];
                values[at].as_ref().map_or(Ok(0), |value| whole_of::<u64>(field, value))
            };
            let (count, version) = (stored(3)? + joining.len() as u64, stored(4)? + 1);
            let set = |name: &str, value: u64| Op::Set(Field::new(c.clone(), name), value.to_string().into());
            ops.extend([set("n", count), set("mv", version)]);
            for (order, user) in joining {
                let place = JoinPlace { seq: Found::Is(U64(1)), order: order as i64, count, version };
                ops.push(Op::Emit(joined(id, &[user.to_owned()], Role::Member, now, "", &place)));
            }
        }
        Ok(Plan::new(ops, created))
    }
}

impl Pair<'_> {
    /// Makes the conversation where nothing of it stands but rows that a block has written.
    fn opening(&self, now: i64) -> Result<Vec<Op>, Error> {
        let plan = self.plan(&[const { None }; 5], now)?;
        let keep = |op| match op {
            Op::Set(field, row) if field.key == key::members(&self.id) => Op::SetNew(field, row),
            op => op,
        };
        Ok(plan.ops.into_iter().map(keep).collect())
    }
}

/// Whether the first message of a conversation would be refused, as far as its sender's row tells: a block may have written that before.
fn would_be_refused(first: &Append, row: Option<&Bytes>, members: &str) -> Result<(), Error> {
    let refused = |why| Err(EngineError::Refused(why).into());
    if let Some(row) = row.filter(|_| !first.privileged) {
        let member = MemberData::unpack(row).ok_or_else(|| model::corrupt(members, "not a member row"))?;
        if member.blocked {
            return refused(Refusal::Blocked);
        }
        if member.muted_until > first.now_ms {
            return refused(Refusal::Muted);
        }
    }
    if first.hot_limit == 0 { refused(Refusal::HotLimit) } else { Ok(()) }
}

impl Core {
    /// Makes a direct conversation and what belongs to it; adds only what is not there.
    pub(crate) async fn open_direct(&self, request: OpenDirectRequest) -> Result<OpenDirectResponse, Error> {
        let OpenDirectRequest { user_a, user_b } = request;
        let pair = Pair::new(&user_a, &user_b)?;
        let stands = self.fields(self.partition(&pair.id), &pair.fields(), Self::end()).await?;
        let created = if stands.iter().all(Option::is_some) {
            false
        } else {
            if !self.exist(&pair).await? {
                return Err(no_user());
            }
            let now = Self::now();
            let entered = self.list(&pair, now, false).await?;
            let made = self.make(&pair, Some(stands), now).await;
            if made.as_ref().is_err_and(is_final) {
                self.take_back(&pair.id, entered, now).await;
            }
            let created = made?;
            self.0.hints.fresh(&pair.id, now);
            created
        };
        Ok(OpenDirectResponse { conversation_id: pair.id, created })
    }

    /// Stores a message of a direct conversation that may have to be opened.
    pub(super) async fn append_or_open(
        &self,
        conversation_id: &str,
        draft: &Draft,
        peer: &str,
        message: &(impl Fn() -> Append + Sync),
    ) -> Result<Appended, Error> {
        let partition = self.partition(conversation_id);
        let (c, members) = (key::conversation(conversation_id), key::members(conversation_id));
        let sender_id = draft.sender_id.as_str();
        let fields = [Field::new(c.clone(), "k"), Field::new(members.clone(), sender_id), Field::new(c, "s")];
        // A read costs less than a refusal, which waits for the disk with its group.
        let values = self.fields(partition, &fields, Self::end()).await?;
        match (&values[0], &values[1]) {
            (None, row) => {
                would_be_refused(&message(), row.as_ref(), &members)?;
                let opened = self.first_message(conversation_id, sender_id, peer, message).await?;
                return opened.ok_or_else(no_conversation);
            }
            // A member who was taken out comes in again.
            (Some(_), None) => self.open_again(conversation_id, sender_id, peer).await?,
            (Some(_), Some(_)) => {}
        }
        let stored = self.engine().append(partition, message(), Self::end()).await?;
        if let Some(row) = &stored.earlier {
            same_message(conversation_id, stored.seq, row.clone(), draft)?;
        }
        if values[2].as_ref().and_then(model::number::<u64>).is_some_and(|seq| seq <= YOUNG) {
            self.list_again(conversation_id, sender_id, peer).await?;
        }
        Ok(stored)
    }

    async fn open_again(&self, conversation_id: &str, sender_id: &str, peer: &str) -> Result<(), Error> {
        if self.exist(&Pair::of(conversation_id, sender_id, peer)?).await? {
            let open = OpenDirectRequest { user_a: sender_id.to_owned(), user_b: peer.to_owned() };
            self.open_direct(open).await?;
        }
        Ok(())
    }

    /// Whether both users do.
    async fn exist(&self, pair: &Pair<'_>) -> Result<bool, Error> {
        Ok(self.missing(&pair.users).await?.is_none())
    }

    /// Opens a conversation and stores its first message; none if the peer does not exist. A list that is read after the answer shows the
    /// conversation; where the message is refused, no list, no conversation and no event is left.
    async fn first_message(
        &self,
        conversation_id: &str,
        sender_id: &str,
        peer: &str,
        message: &(impl Fn() -> Append + Sync),
    ) -> Result<Option<Appended>, Error> {
        let pair = Pair::of(conversation_id, sender_id, peer)?;
        let now = Self::now();
        let partition = self.partition(&pair.id);
        let places = [self.partition(sender_id), self.partition(peer), partition];
        let at_once = pair.users.iter().all(|user| self.0.known_users.holds(user))
            && self.engine().in_order(&places)
            && self.count_of_list(sender_id).await < MOST_ENTRIES;
        let mut entered = Vec::new();
        if !at_once {
            if !self.exist(&pair).await? {
                return Ok(None);
            }
            entered = self.list(&pair, now, true).await?;
        }
        let listed = async { if at_once { self.list(&pair, now, false).await } else { Ok(Vec::new()) } };
        let first = Append { opening: pair.opening(now)?, ..message() };
        // Queued in this order, so that all share a group.
        let (listed, stored) = futures::join!(listed, self.engine().append(partition, first, Self::end()));
        let stored = match stored {
            Ok(stored) => stored,
            Err(error) => {
                let error = Error::from(error);
                entered.extend(listed.unwrap_or_default());
                if is_final(&error) {
                    self.take_back(&pair.id, entered, now).await;
                }
                return Err(error);
            }
        };
        if listed.is_err() {
            self.list_stored(&pair, now).await?;
        }
        // Not before: whoever knows the conversation asks no more whether it stands and is listed.
        self.0.hints.fresh(&pair.id, now);
        Ok(Some(stored))
    }

    /// Enters a young conversation that this instance does not know into both lists: the one that made it may have ended before it had done
    /// so itself. Its sender was not answered then.
    async fn list_again(&self, conversation_id: &str, sender_id: &str, peer: &str) -> Result<(), Error> {
        let now = Self::now();
        match self.list_stored(&Pair::of(conversation_id, sender_id, peer)?, now).await {
            Err(error) if error.code == Code::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                self.0.hints.fresh(conversation_id, now);
                Ok(())
            }
        }
    }

    /// [`Core::list`] where the message is stored already: whatever goes wrong, its sender has to come again.
    async fn list_stored(&self, pair: &Pair<'_>, now: i64) -> Result<(), Error> {
        self.list(pair, now, false).await.map(drop).map_err(|error| match error.code {
            Code::NotFound | Code::Unavailable | Code::DeadlineExceeded => error,
            _ => Error::unavailable("not listed yet: retry with the same ids"),
        })
    }

    /// Enters a conversation into the lists of both; NOT_FOUND if one of them does not exist. `begun`: by the first of them, who is refused
    /// where the list is full; whatever else happens there, the oldest entry gives way. Says whose list did not hold it; where it fails, what
    /// it has entered is taken back.
    async fn list<'a>(&self, pair: &Pair<'a>, now: i64, begun: bool) -> Result<Vec<&'a str>, Error> {
        let mut entered = Vec::new();
        let mut users: Vec<(&str, bool)> =
            pair.users.iter().map(|user| (*user, begun && *user == pair.users[0])).collect();
        if begun && self.count_of_list(pair.users[0]).await >= MOST_ENTRIES {
            // By itself: if it is refused, nothing is left in the list of the other.
            self.enter_lists(&pair.id, &[users.remove(0)], now, &mut entered).await?;
        }
        match self.enter_lists(&pair.id, &users, now, &mut entered).await {
            Ok(()) => {
                pair.users.iter().for_each(|user| self.0.known_users.add(user));
                Ok(entered)
            }
            Err(error) => {
                if is_final(&error) {
                    self.take_back(&pair.id, entered, now).await;
                }
                Err(error)
            }
        }
    }

    /// Entries of a list, if this instance holds it; 20,000 where it does not, which costs a step more.
    async fn count_of_list(&self, user_id: &str) -> u64 {
        if !self.engine().holds(self.partition(user_id)) {
            return MOST_ENTRIES;
        }
        self.count(user_id, key::list(user_id), "").await.unwrap_or(MOST_ENTRIES)
    }

    /// Makes what is missing, as `stands` tells it (without it: nothing does); true: the conversation was.
    async fn make(&self, pair: &Pair<'_>, stands: Option<Vec<Option<Bytes>>>, now: i64) -> Result<bool, Error> {
        let fields = Vec::from(pair.fields());
        let stands = stands.unwrap_or_else(|| vec![None; fields.len()]);
        let plan = |values: &[Option<Bytes>]| pair.plan(values, now);
        self.update_seen(self.partition(&pair.id), fields, stands, plan).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kith_kit::config::Limits;
    use kith_proto::{
        chat::v1::{MessageType, Receipt},
        storage::v1::{AppendRequest, ListConversationsRequest, SetBlockRequest, UpsertUsersRequest, UserUpdate},
    };

    use super::*;
    use crate::engine::memory::MemoryEngine;

    const PARTITIONS: u32 = 8;

    async fn send(core: &Core, client_msg_id: &str) -> Receipt {
        try_send(core, client_msg_id, "hi", "bob").await.unwrap()
    }

    async fn try_send(core: &Core, client_msg_id: &str, text: &str, peer: &str) -> Result<Receipt, Error> {
        let draft = Draft {
            client_msg_id: client_msg_id.to_owned(),
            sender_id: "alice".to_owned(),
            r#type: MessageType::Text as i32,
            content: format!(r#"{{"text":"{text}"}}"#).into(),
            ..Draft::default()
        };
        let request = AppendRequest {
            conversation_id: ids::direct_conversation_id("alice", peer).unwrap(),
            draft: Some(draft),
            peers: vec![peer.to_owned()],
            ..AppendRequest::default()
        };
        core.append(request).await
    }

    async fn with_users() -> Arc<MemoryEngine> {
        let engine = Arc::new(MemoryEngine::default());
        let core = Core::new(engine.clone(), PARTITIONS, Limits::default(), None);
        let users = ["alice", "bob"].map(|id| UserUpdate { user_id: id.to_owned(), ..UserUpdate::default() });
        core.upsert_users(UpsertUsersRequest { users: users.into() }).await.unwrap();
        engine
    }

    #[tokio::test]
    async fn a_refused_first_send_leaves_no_trace_in_the_store_the_lists_and_the_event_log() {
        let none = Limits { messages_per_conversation: 0, ..Limits::default() };
        for (cause, peer, limits, code) in [
            ("blocked", "bob", Limits::default(), Code::PermissionDenied),
            ("no such user", "carol", Limits::default(), Code::NotFound),
            ("over the hot limit", "bob", none, Code::ResourceExhausted),
            ("memory full", "bob", Limits::default(), Code::ResourceExhausted),
            ("other payload", "bob", Limits::default(), Code::AlreadyExists),
        ] {
            let engine = with_users().await;
            // Another instance: what follows comes to one that knows nothing.
            let other = Core::new(engine.clone(), PARTITIONS, Limits::default(), None);
            match cause {
                "blocked" => {
                    let block = SetBlockRequest { user_id: "bob".into(), target_id: "alice".into(), blocked: true };
                    other.set_block(block).await.unwrap();
                }
                "memory full" => engine.fill(true),
                "other payload" => drop(send(&other, "c-1").await),
                _ => {}
            }
            let core = Core::new(engine.clone(), PARTITIONS, limits, None);
            let before = engine.copy();
            let refused = try_send(&core, "c-1", "something else", peer).await.unwrap_err();
            assert_eq!(refused.code, code, "{cause}: {refused}");
            assert!(engine.copy() == before, "{cause}");
            assert_eq!(try_send(&core, "c-1", "something else", peer).await.unwrap_err().code, code, "{cause}");
        }
    }

    #[tokio::test]
    async fn a_block_that_comes_in_between_refuses_the_first_message_and_its_entries_are_taken_back() {
        let engine = with_users().await;
        let core = Core::new(engine.clone(), PARTITIONS, Limits::default(), None);
        let pair = Pair::new("alice", "bob").unwrap();
        let message = || Append {
            conversation_id: pair.id.clone(),
            sender_id: "alice".to_owned(),
            client_msg_id: "c-1".to_owned(),
            row: crate::codec::pack(ulid::Ulid::from(1_u128), &Draft::default()),
            identity_len: 2,
            now_ms: Core::now(),
            privileged: false,
            hot_limit: 10,
            opening: Vec::new(),
        };
        // The verdict was read before the block: the call goes on as if there was none.
        let block = SetBlockRequest { user_id: "bob".into(), target_id: "alice".into(), blocked: true };
        core.set_block(block).await.unwrap();
        let refused = core.first_message(&pair.id, "alice", "bob", &message).await.unwrap_err();
        assert_eq!(refused.code, Code::PermissionDenied);
        let data = engine.copy();
        assert!(
            data.values().all(|d| d.messages.is_empty() && d.scores.values().all(std::collections::BTreeMap::is_empty))
        );
        assert!(data.values().all(|d| !d.hashes.contains_key(&key::conversation(&pair.id))));
    }

    async fn listed(core: &Core, user: &str) -> usize {
        let request = ListConversationsRequest { user_id: user.to_owned(), limit: 0, cursor: String::new() };
        core.list_conversations(request).await.unwrap().conversations.len()
    }

    #[tokio::test]
    async fn a_retry_after_a_crash_between_message_and_lists_is_answered_when_both_lists_hold_it() {
        let engine = Arc::new(MemoryEngine::default());
        let core = || Core::new(engine.clone(), PARTITIONS, Limits::default(), None);
        let users = ["alice", "bob"].map(|id| UserUpdate { user_id: id.to_owned(), ..UserUpdate::default() });
        core().upsert_users(UpsertUsersRequest { users: users.into() }).await.unwrap();
        let first = send(&core(), "c-1").await;
        for user in ["alice", "bob"] {
            engine.by_hand(ids::partition_of(user, PARTITIONS), |data| data.scores.remove(&key::list(user)).unwrap());
            assert_eq!(listed(&core(), user).await, 0);
        }
        // Another instance, which knows nothing of it.
        let successor = core();
        let again = send(&successor, "c-1").await;
        assert_eq!((again.seq, again.duplicate), (first.seq, true));
        assert_eq!((listed(&successor, "alice").await, listed(&successor, "bob").await), (1, 1));
    }
}
