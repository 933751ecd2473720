//! The storage layer's calls, above the engine: checks, compare-and-swap, and the steps that span partitions.

mod behind;
mod blocks;
pub(crate) mod check;
pub(crate) mod conversations;
mod creation;
mod devices;
mod direct;
mod entering;
#[cfg(test)]
mod entrances;
mod gone;
mod hints;
mod history;
mod known;
mod listing;
mod lists;
mod members;
pub(crate) mod messages;
pub(crate) mod model;
mod peers;
mod relations;
mod requests;
pub(crate) mod roster;
mod same;
#[cfg(test)]
mod tests;
pub(crate) mod users;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kith_contract::ids;
use kith_kit::{
    clock,
    config::{Cluster, Limits},
};
use kith_proto::storage::v1::{GetVersionRequest, GetVersionResponse};
use kith_rpc::{cursor::Cursors, error::Error, route::Router};
use rand::RngExt;
use tokio::time::Instant;

use crate::engine::{Condition, Engine, EngineError, Expect, Field, Got, HeadRow, Op, Refusal, Swap, Want};

/// How long the engine may take for one call.
const DEADLINE: Duration = Duration::from_secs(4);
/// Attempts at one compare-and-swap.
const ATTEMPTS: u32 = 8;

/// The layer's calls over one engine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Core(Arc<Inner>);

pub(crate) struct Inner {
    engine: Arc<dyn Engine>,
    partitions: u32,
    limits: Limits,
    cursors: Cursors,
    /// To the holders of other partitions; none in tests with one engine.
    router: Option<Router>,
    hints: hints::Hints,
    gone: gone::Gone,
    known_users: known::Known,
}

/// What a compare-and-swap decides from the fields that it read.
pub(crate) struct Plan<T> {
    ops: Vec<Op>,
    result: T,
    room: Option<Room>,
    /// What else must hold when it is carried out.
    asks: Option<Condition>,
    /// Whether it takes away, or writes over little: it is done at full memory, too.
    frees: bool,
}

/// Room for one more in a set: fewer than `most` fields of the hash begin with the field's name.
struct Room {
    of: Field,
    most: u64,
    /// The refusal where there is none.
    words: &'static str,
}

impl<T> Plan<T> {
    pub(crate) fn new(ops: Vec<Op>, result: T) -> Self {
        Self { ops, result, room: None, asks: None, frees: false }
    }

    /// Nothing changes.
    pub(crate) fn nothing(result: T) -> Self {
        Self::new(Vec::new(), result)
    }

    /// The plan is carried out only while there is room for one more; else the call is RESOURCE_EXHAUSTED.
    fn within(mut self, of: Field, most: u64, words: &'static str) -> Self {
        self.room = Some(Room { of, most, words });
        self
    }

    /// Takes away, or writes over little.
    pub(crate) fn freeing(ops: Vec<Op>, result: T) -> Self {
        Self { frees: true, ..Self::new(ops, result) }
    }

    /// Carried out only if `user_id` may write to the conversation in that moment.
    pub(crate) fn by_writer(self, conversation_id: &str, user_id: &str, now_ms: i64) -> Self {
        let field = Field::new(model::key::members(conversation_id), user_id);
        Self { asks: Some(Condition { field, expect: Expect::MayWrite(now_ms) }), ..self }
    }
}

impl Core {
    /// Of a cluster without a name, for tests.
    #[cfg(test)]
    pub(crate) fn new(engine: Arc<dyn Engine>, partitions: u32, limits: Limits, router: Option<Router>) -> Self {
        let cluster = Cluster { name: String::new(), uid: String::new(), partitions, event_partitions: 1 };
        Self::start(engine, &cluster, limits, router)
    }

    pub(crate) fn start(engine: Arc<dyn Engine>, cluster: &Cluster, limits: Limits, router: Option<Router>) -> Self {
        let (hints, jobs) = hints::Hints::new();
        let (gone, devices) = gone::Gone::new();
        let core = Self(Arc::new(Inner {
            engine,
            partitions: cluster.partitions,
            limits,
            cursors: Cursors::new(&cluster.uid),
            router,
            hints,
            gone,
            known_users: known::Known::default(),
        }));
        hints::start(&core, jobs);
        gone::start(&core, devices);
        core
    }

    fn engine(&self) -> &dyn Engine {
        &*self.0.engine
    }

    fn partition(&self, id: &str) -> u32 {
        ids::partition_of(id, self.0.partitions)
    }

    fn end() -> Instant {
        Instant::now() + DEADLINE
    }

    fn now() -> i64 {
        clock::now_ms()
    }

    /// How far the event log of a partition goes.
    pub(crate) async fn get_version(&self, request: GetVersionRequest) -> Result<GetVersionResponse, Error> {
        if request.partition >= self.0.partitions {
            return Err(Error::invalid(format!("partition: {} are there", self.0.partitions)));
        }
        Ok(GetVersionResponse { ver: self.engine().version(request.partition, Self::end()).await? })
    }

    /// Reads fields, lets `decide` make a plan of them, and carries it out if none of them has changed meanwhile; else again.
    async fn update<T>(
        &self,
        partition: u32,
        fields: Vec<Field>,
        decide: impl Fn(&[Option<Bytes>]) -> Result<Plan<T>, Error> + Send + Sync,
    ) -> Result<T, Error> {
        let seen = self.fields(partition, &fields, Self::end()).await?;
        self.update_seen(partition, fields, seen, decide).await
    }

    /// The values of fields.
    async fn fields(&self, partition: u32, fields: &[Field], end: Instant) -> Result<Vec<Option<Bytes>>, Error> {
        let wants = fields.iter().cloned().map(Want::Field).collect();
        Ok(self.engine().get(partition, wants, end).await?.into_iter().map(Got::field).collect())
    }

    /// [`Core::update`] for fields whose values were read a moment ago.
    async fn update_seen<T>(
        &self,
        partition: u32,
        fields: Vec<Field>,
        seen: Vec<Option<Bytes>>,
        decide: impl Fn(&[Option<Bytes>]) -> Result<Plan<T>, Error> + Send + Sync,
    ) -> Result<T, Error> {
        let end = Self::end();
        let (mut attempt, mut values) = (0, seen);
        loop {
            let plan = decide(&values)?;
            if plan.ops.is_empty() {
                return Ok(plan.result);
            }
            // First whether it is allowed: a refusal says more than a conflict.
            let conditions = plan.asks.into_iter().chain(fields.iter().zip(&values).map(|(field, value)| Condition {
                field: field.clone(),
                expect: value.clone().map_or(Expect::Absent, Expect::Value),
            }));
            // Counted last: that something else has changed says more.
            let room = plan.room.iter().map(|r| Condition { field: r.of.clone(), expect: Expect::Fewer(r.most) });
            let swap = Swap { conditions: conditions.chain(room).collect(), ops: plan.ops };
            let swapped = if plan.frees {
                self.engine().free(partition, swap, end).await
            } else {
                self.engine().swap(partition, swap, end).await
            };
            match swapped {
                Ok(()) => return Ok(plan.result),
                Err(EngineError::Refused(Refusal::Full)) if let Some(room) = &plan.room => {
                    return Err(full(room.words));
                }
                Err(EngineError::Conflict) if attempt < ATTEMPTS => {
                    attempt += 1;
                    apart(attempt).await;
                    values = self.fields(partition, &fields, end).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The head of one conversation of this instance, with its last message if that weighs at most `last`.
    async fn head_row(
        &self,
        user_id: &str,
        device_id: &str,
        conversation_id: &str,
        last: usize,
    ) -> Result<HeadRow, Error> {
        let partition = self.partition(conversation_id);
        let ids = vec![conversation_id.to_owned()];
        let rows = self.engine().heads(partition, user_id, device_id, last, ids, Self::end()).await?;
        Ok(rows.into_iter().next().unwrap_or_default())
    }

    /// A conversation as `user_id` sees it; NOT_FOUND also for those who are no members.
    async fn seen(&self, user_id: &str, conversation_id: &str) -> Result<model::Seen, Error> {
        check::place(conversation_id, user_id)?;
        let row = self.head_row(user_id, "", conversation_id, 0).await?;
        let seen = model::Seen::read(conversation_id, row)?.ok_or_else(no_conversation)?;
        if !user_id.is_empty() && seen.member.is_none() {
            return Err(no_conversation());
        }
        Ok(seen)
    }

    /// How many fields of a hash begin with a letter, or how many entries a list has.
    async fn count(&self, user_id: &str, key: String, prefix: &'static str) -> Result<u64, Error> {
        let wants = vec![Want::Count { key, prefix }];
        match self.engine().get(self.partition(user_id), wants, Self::end()).await?.into_iter().next() {
            Some(Got::Count(count)) => Ok(count),
            _ => Err(Error::internal("a count without a number")),
        }
    }

    /// A whole hash; only of those that are small.
    async fn hash(&self, partition: u32, key: String) -> Result<Vec<(String, Bytes)>, Error> {
        let got = self.engine().get(partition, vec![Want::All(key)], Self::end()).await?;
        Ok(got.into_iter().next().map_or_else(Vec::new, |g| if let Got::All(fields) = g { fields } else { Vec::new() }))
    }
}

/// Before another attempt at a compare-and-swap. Not the back-off of the network: those that race for the same fields are to be apart, and one
/// may go at once.
async fn apart(attempt: u32) {
    let pause = rand::rng().random_range(0..2 << attempt.min(5));
    tokio::time::sleep(Duration::from_millis(pause)).await;
}

/// Time alone makes no room: the caller must.
const FULL_RETRY: Duration = Duration::from_secs(3_600);

fn full(words: &'static str) -> Error {
    Error::exhausted(words, FULL_RETRY)
}

fn no_conversation() -> Error {
    Error::not_found("no such conversation")
}

fn no_user() -> Error {
    Error::not_found("no such user")
}
