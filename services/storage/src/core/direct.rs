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
    members::{JoinPlace, joined_json},
    model::{self, MemberData, key},
    peers,
};
use crate::{
    engine::{Append, Appended, EngineError, Field, Op, Refusal},
    event,
};

/// Two users and the conversation that they have or will have.
struct Pair<'a> {
    id: String,
    users: [&'a str; 2],
}

impl<'a> Pair<'a> {
    fn new(a: &'a str, b: &'a str) -> Result<Self, Error> {
        Ok(Self { id: ids::direct_conversation_id(a, b)?, users: [a, b] })
    }

    /// By which it is decided what is missing; see [`Pair::plan`].
    fn fields(&self) -> Vec<Field> {
        let (c, members) = (key::conversation(&self.id), key::members(&self.id));
        vec![
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
            self.list(&pair, now).await?;
            self.make(&pair, stands, now).await?
        };
        Ok(OpenDirectResponse { conversation_id: pair.id, created })
    }

    /// Stores a message of a direct conversation that may have to be opened.
    pub(super) async fn append_or_open(
        &self,
        conversation_id: &str,
        sender_id: &str,
        peers: &[String],
        message: &(impl Fn() -> Append + Sync),
    ) -> Result<Appended, Error> {
        let partition = self.partition(conversation_id);
        let stands =
            [Field::new(key::conversation(conversation_id), "k"), Field::new(key::members(conversation_id), sender_id)];
        // A read costs less than a refusal, which waits for the disk with its group.
        let stands = self.fields(partition, &stands, Self::end()).await?.iter().all(Option::is_some);
        if !stands && let Some(stored) = self.first_message(conversation_id, sender_id, peers, message).await? {
            return Ok(stored);
        }
        Ok(self.engine().append(partition, message(), Self::end()).await?)
    }

    /// Opens a conversation with the first of `peers` that exists and stores its first message; none if nobody does. The two are written
    /// together, after both users' lists hold the conversation: a list that is read after the answer shows it.
    async fn first_message(
        &self,
        conversation_id: &str,
        sender_id: &str,
        peers: &[String],
        message: &(impl Fn() -> Append + Sync),
    ) -> Result<Option<Appended>, Error> {
        for peer in peers {
            let pair = Pair::new(sender_id, peer)?;
            if pair.id != conversation_id {
                return Err(Error::invalid("peers: each must be the other user of the direct conversation"));
            }
            let now = Self::now();
            match self.list(&pair, now).await {
                Err(error) if error.code == Code::NotFound => continue,
                listed => listed?,
            }
            // That nothing stands is the rule; what a block left makes the comparison fail, and is read then.
            let made = self.make(&pair, vec![None; pair.fields().len()], now);
            let partition = self.partition(&pair.id);
            // Queued in this order, so the two share a group.
            let (made, stored) = futures::join!(made, self.engine().append(partition, message(), Self::end()));
            return match stored {
                Err(early) if may_have_to_be_opened(&early) => {
                    made?;
                    Ok(Some(self.engine().append(partition, message(), Self::end()).await?))
                }
                stored => Ok(Some(stored?)),
            };
        }
        Ok(None)
    }

    /// Enters a conversation into the lists of both; NOT_FOUND if one of them does not exist.
    async fn list(&self, pair: &Pair<'_>, now: i64) -> Result<(), Error> {
        let steps = pair.users.map(|user| peers::enter(user, &pair.id, now)).into();
        for entered in self.apply(steps).await? {
            entered?;
        }
        Ok(())
    }

    /// Makes what is missing, as `stands` tells it; true: the conversation was.
    async fn make(&self, pair: &Pair<'_>, stands: Vec<Option<Bytes>>, now: i64) -> Result<bool, Error> {
        let plan = |values: &[Option<Bytes>]| Ok(pair.plan(values, now));
        let created = self.update_seen(self.partition(&pair.id), pair.fields(), stands, plan).await?;
        // Not before: whoever knows the conversation from then on need not ask whether it stands.
        self.0.hints.fresh(&pair.id, now);
        Ok(created)
    }
}
