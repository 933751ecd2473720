//! Direct conversations: opened by name, or by the first message in them.

use bytes::Bytes;
use kith_kit::{error::Error, ids};
use kith_proto::{
    chat::v1::ConversationKind,
    storage::v1::{OpenDirectRequest, OpenDirectResponse, Role},
};
use serde_json::json;
use tonic::Code;

use super::{
    Core, Plan,
    conversations::conversation_ops,
    lists::MOST_ENTRIES,
    members::{JoinPlace, joined_json},
    model::{self, MemberData, key},
    peers,
};
use crate::{
    engine::{Append, Appended, EngineError, Field, Op, Refusal},
    event,
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
    fn plan(&self, values: &[Option<Bytes>], now: i64) -> Plan<bool> {
        let (id, c) = (&self.id, key::conversation(&self.id));
        let mut ops = Vec::new();
        let mut joined = Vec::new();
        let created = values[0].is_none();
        for (order, user) in (1..).zip(self.users) {
            // A row may stand before its conversation: a block was written into it.
            if values[order].is_none() {
                let row = MemberData::new(Role::Member, 1, now).pack();
                ops.push(Op::Set(Field::new(key::members(id), user), row));
                joined.push((order, user));
            }
            if created || values[order].is_none() {
                ops.push(Op::Score { key: key::joins(id), score: order as i64, member: user.to_owned() });
            }
        }
        if created {
            ops.extend(conversation_ops(&c, ConversationKind::Direct as i32, 2, now));
            let data = json!({"conversation_id": id, "kind": "direct", "member_ids": self.users, "created_at": now.to_string()});
            ops.push(Op::Emit(event::body("conversation.created", id, now, &data)));
        } else if !joined.is_empty() {
            let stored = |at: usize| values[at].as_ref().and_then(model::number::<u64>).unwrap_or(0);
            let (count, version) = (stored(3) + joined.len() as u64, stored(4) + 1);
            let set = |name: &str, value: u64| Op::Set(Field::new(c.clone(), name), value.to_string().into());
            ops.extend([set("n", count), set("mv", version)]);
            for (order, user) in joined {
                let place = JoinPlace { seq: 1, order: order as i64, count, version };
                let data = joined_json(id, &[user.to_owned()], Role::Member as i32, now, "", &place);
                ops.push(Op::Emit(event::body("member.added", id, now, &data)));
            }
        }
        Plan::new(ops, created)
    }
}

/// Whether opening the conversation can help: it is not there, or a block made its first row and the sender's is still missing.
fn may_have_to_be_opened(refused: &EngineError) -> bool {
    matches!(refused, EngineError::Refused(Refusal::NoConversation | Refusal::NotMember))
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
            let now = Self::now();
            self.list(&pair, now, false).await?;
            let created = self.make(&pair, Some(stands), now).await?;
            self.0.hints.fresh(&pair.id, now);
            created
        };
        Ok(OpenDirectResponse { conversation_id: pair.id, created })
    }

    /// Stores a message of a direct conversation that may have to be opened.
    pub(super) async fn append_or_open(
        &self,
        conversation_id: &str,
        sender_id: &str,
        peer: &str,
        message: &(impl Fn() -> Append + Sync),
    ) -> Result<Appended, Error> {
        let partition = self.partition(conversation_id);
        let c = key::conversation(conversation_id);
        let fields =
            [Field::new(c.clone(), "k"), Field::new(key::members(conversation_id), sender_id), Field::new(c, "s")];
        // A read costs less than a refusal, which waits for the disk with its group.
        let values = self.fields(partition, &fields, Self::end()).await?;
        let stands = values[..2].iter().all(Option::is_some);
        if !stands && let Some(stored) = self.first_message(conversation_id, sender_id, peer, message).await? {
            return Ok(stored);
        }
        let stored = self.engine().append(partition, message(), Self::end()).await?;
        if stands && values[2].as_ref().and_then(model::number::<u64>).is_some_and(|seq| seq <= YOUNG) {
            self.list_again(conversation_id, sender_id, peer).await?;
        }
        Ok(stored)
    }

    /// Opens a conversation and stores its first message; none if the peer does not exist. A list that is read after the answer shows the
    /// conversation.
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
        if !at_once {
            match self.list(&pair, now, true).await {
                Err(error) if error.code == Code::NotFound => return Ok(None),
                entered => entered?,
            }
        }
        let listed = async { if at_once { self.list(&pair, now, false).await } else { Ok(()) } };
        // That nothing stands is the rule; what a block left makes the comparison fail, and is read then.
        let made = self.make(&pair, None, now);
        // Queued in this order, so that all share a group.
        let (listed, made, stored) =
            futures::join!(listed, made, self.engine().append(partition, message(), Self::end()));
        match listed {
            Ok(()) => {}
            Err(_) if stored.is_ok() => self.list_stored(&pair, now).await?,
            // A user's partition has changed hands meanwhile.
            Err(error) if error.is_retryable() => self.list(&pair, now, false).await?,
            Err(error) => return Err(error),
        }
        if made.is_ok() {
            // Not before: whoever knows the conversation asks no more whether it stands and is listed.
            self.0.hints.fresh(&pair.id, now);
        }
        match stored {
            Err(early) if may_have_to_be_opened(&early) => {
                made?;
                Ok(Some(self.engine().append(partition, message(), Self::end()).await?))
            }
            stored => Ok(Some(stored?)),
        }
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
        self.list(pair, now, false).await.map_err(|error| match error.code {
            Code::NotFound | Code::Unavailable | Code::DeadlineExceeded => error,
            _ => Error::unavailable("not listed yet: retry with the same ids"),
        })
    }

    /// Enters a conversation into the lists of both; NOT_FOUND if one of them does not exist. `begun`: by the first of them, who is refused
    /// where the list is full; whatever else happens there, the oldest entry gives way.
    async fn list(&self, pair: &Pair<'_>, now: i64, begun: bool) -> Result<(), Error> {
        let [first, second] = pair.users;
        let mut steps = vec![peers::enter(first, &pair.id, now, begun), peers::enter(second, &pair.id, now, false)];
        if begun && self.count_of_list(first).await >= MOST_ENTRIES {
            // By itself: if it is refused, nothing is left in the list of the other.
            for entered in self.apply(vec![steps.remove(0)]).await? {
                entered?;
            }
        }
        for entered in self.apply(steps).await? {
            entered?;
        }
        pair.users.iter().for_each(|user| self.0.known_users.add(user));
        Ok(())
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
        let plan = |values: &[Option<Bytes>]| Ok(pair.plan(values, now));
        self.update_seen(self.partition(&pair.id), fields, stands, plan).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kith_kit::config::Limits;
    use kith_proto::{
        chat::v1::{Draft, MessageType, Receipt},
        storage::v1::{AppendRequest, ListConversationsRequest, UpsertUsersRequest, UserUpdate},
    };

    use super::*;
    use crate::engine::memory::MemoryEngine;

    const PARTITIONS: u32 = 8;

    async fn send(core: &Core, client_msg_id: &str) -> Receipt {
        let draft = Draft {
            client_msg_id: client_msg_id.to_owned(),
            sender_id: "alice".to_owned(),
            r#type: MessageType::Text as i32,
            content: r#"{"text":"hi"}"#.into(),
            ..Draft::default()
        };
        let request = AppendRequest {
            conversation_id: "d:alice:bob".to_owned(),
            draft: Some(draft),
            peers: vec!["bob".to_owned()],
            ..AppendRequest::default()
        };
        core.append(request).await.unwrap()
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
