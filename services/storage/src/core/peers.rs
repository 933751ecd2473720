//! The steps of calls that span partitions: done here where this instance holds the partition, else by the one that does.

use std::time::Duration;

use futures::future::join_all;
use kith_proto::storage::v1::{
    ApplyRequest, EnterList, HeadResult, Hint, Step, StepDone, StepResult, peer_client::PeerClient, step, step_result,
};
use kith_rpc::{
    batch::{Settled, timed},
    client::MAX_MESSAGE_BYTES,
    error::Error,
};
use tokio::time::Instant;

use super::{Core, check, model::Seen, no_user};
use crate::weight;

/// Steps of one call.
pub(crate) const MOST_STEPS: usize = 1_000;
/// How long the steps of a call may take, hops and retries included.
const DEADLINE: Duration = Duration::from_millis(3_500);

/// What a step gave.
pub(crate) type Outcome = Result<step_result::Result, Error>;

/// A step that changes something or not.
pub(super) fn done(changed: bool) -> step_result::Result {
    step_result::Result::Done(StepDone { changed })
}

/// `own`: the user asked for it, and is refused where the list is full.
pub(super) fn enter(user_id: &str, conversation_id: &str, activity: i64, own: bool) -> Step {
    let entry = EnterList { conversation_id: conversation_id.to_owned(), activity, own };
    Step { id: user_id.to_owned(), step: Some(step::Step::EnterList(entry)) }
}

pub(super) fn hint(user_id: &str, conversation_id: &str, activity: i64) -> Step {
    let hint = Hint { conversation_id: conversation_id.to_owned(), activity };
    Step { id: user_id.to_owned(), step: Some(step::Step::Hint(hint)) }
}

impl Core {
    /// Carries steps out wherever their partitions are; results in their order. An error is one of the whole.
    pub(super) async fn apply(&self, steps: Vec<Step>) -> Result<Vec<Outcome>, Error> {
        self.apply_within(steps, DEADLINE).await
    }

    /// [`Core::apply`] within a time; what was not done by then fails for itself.
    pub(super) async fn apply_within(&self, steps: Vec<Step>, within: Duration) -> Result<Vec<Outcome>, Error> {
        let end = Instant::now() + within;
        let mut outcomes: Vec<Option<Outcome>> = std::iter::repeat_with(|| None).take(steps.len()).collect();
        let here = join_all(steps.iter().map(|step| async {
            let partition = self.partition(&step.id);
            if self.0.router.is_some() && !self.engine().holds(partition) {
                None
            } else {
                let late = |_| Err(Error::unavailable("a part of the storage layer did not answer in time"));
                Some(tokio::time::timeout_at(end, self.step(step.clone())).await.unwrap_or_else(late))
            }
        }))
        .await;
        let mut elsewhere = Vec::new();
        for (at, (step, outcome)) in steps.into_iter().zip(here).enumerate() {
            match outcome {
                Some(Err(error)) if error.is_retryable() && self.0.router.is_some() => elsewhere.push((at, step)),
                Some(outcome) => outcomes[at] = Some(outcome),
                None => elsewhere.push((at, step)),
            }
        }
        if let Some(router) = &self.0.router
            && !elsewhere.is_empty()
        {
            let key = |(_, step): &(usize, Step)| u64::from(self.partition(&step.id));
            let ask = |transport, items: Vec<(usize, Step)>| async move {
                let steps = items.iter().map(|(_, s)| s.clone()).collect();
                let mut client = PeerClient::new(transport).max_decoding_message_size(MAX_MESSAGE_BYTES);
                let results = client.apply(timed(ApplyRequest { steps })).await?.into_inner().results;
                if results.len() != items.len() {
                    return Err(
                        Error::internal("a storage instance answered another number of steps than asked").into()
                    );
                }
                let settle = |(item, result): ((usize, Step), StepResult)| match result.result {
                    Some(step_result::Result::Error(error)) => Settled::Failed(item, error.into()),
                    Some(result) => Settled::Done((item.0, result)),
                    None => Settled::Failed(item, Error::internal("a step without a result")),
                };
                Ok(items.into_iter().zip(results).map(settle).collect())
            };
            for settled in router.batch(end.saturating_duration_since(Instant::now()), elsewhere, key, ask).await? {
                match settled {
                    Settled::Done((at, result)) => outcomes[at] = Some(Ok(result)),
                    Settled::Failed((at, _), error) => outcomes[at] = Some(Err(error)),
                }
            }
        }
        Ok(outcomes
            .into_iter()
            .map(|o| o.unwrap_or_else(|| Err(Error::unavailable("a part of the call was not done: try again"))))
            .collect())
    }

    /// One step of a partition that this instance holds.
    pub(crate) async fn step(&self, step: Step) -> Outcome {
        let id = step.id;
        match step.step.ok_or_else(|| Error::invalid("step: must be set"))? {
            step::Step::EnterList(entry) => {
                self.enter_list(&id, &entry.conversation_id, entry.activity, entry.own).await.map(done)
            }
            step::Step::LeaveList(entry) => self.leave_list(&id, &entry.conversation_id).await.map(done),
            step::Step::Hint(hint) => {
                // Boxed: a hint may enter, which asks another partition with steps of its own.
                Box::pin(self.hint(&id, &hint.conversation_id, hint.activity)).await?;
                Ok(done(true))
            }
            step::Step::Head(head) => {
                if !head.user_id.is_empty() && !check::conversation(&id)?.admits(&head.user_id) {
                    return Ok(step_result::Result::Head(HeadResult::default()));
                }
                // Callers of the version before name no bytes.
                let most = if head.last_message_bytes == 0 { weight::PAGE } else { head.last_message_bytes as usize };
                let last = if head.with_last_message { most.min(weight::PAGE) } else { 0 };
                let row = self.head_row(&head.user_id, &head.device_id, &id, last).await?;
                let seen = Seen::read(&id, row)?.filter(|s| head.user_id.is_empty() || s.member.is_some());
                let Some(seen) = seen else { return Ok(step_result::Result::Head(HeadResult::default())) };
                let (delivered_seq, cleared_seq) = (seen.delivered, seen.cleared);
                let (visible_seq, last_message_over) = (seen.hidden().saturating_add(1), seen.is_last_over());
                let conversation = Some(seen.into_conversation(&id, &head.user_id)?);
                let found = HeadResult { conversation, delivered_seq, visible_seq, cleared_seq, last_message_over };
                Ok(step_result::Result::Head(found))
            }
            step::Step::ClearAt(clear) => self.clear_at(&id, &clear.user_id).await.map(step_result::Result::Seq),
            step::Step::DirectBlock(block) => self.direct_block(&id, &block.user_id, block.blocked).await.map(done),
            step::Step::Relate(relate) => self.relate(&id, relate).await.map(done),
            step::Step::ForgetDevice(gone) => {
                self.forget_delivered(&id, &gone.user_id, &gone.device_id).await.map(done)
            }
            step::Step::Settings(settings) => {
                check::count("conversation_ids", settings.conversation_ids.len(), MOST_STEPS)?;
                self.entry_settings(&id, settings.conversation_ids).await.map(step_result::Result::Settings)
            }
        }
    }

    /// Whether a user has been made.
    pub(super) async fn user_exists(&self, user_id: &str) -> Result<(), Error> {
        if self.profile(user_id).await?.is_some() { Ok(()) } else { Err(no_user()) }
    }
}
