//! Entering conversations into the lists of those who will be in them.
//!
//! Lists are entered before the rows that make a user a member, so that whoever is one finds the conversation in the list. What a call will
//! be refused for is looked for before that; and should it be refused after all, what it has entered is taken back. An entry that a crash
//! leaves without its row is shown by no list, and the retry completes it.

use std::collections::BTreeSet;

use kith_proto::storage::v1::{relate, step_result};
use kith_rpc::error::{Error, reason};
use tokio::time::Instant;
use tonic::Code;

use super::{Core, members::leave, model::key, peers, relations::relate_step};
use crate::engine::{EngineError, Field};

/// How often lists follow rows that change meanwhile.
const FOLLOWING: u32 = 8;

/// Whether nothing was done by the call that failed so, and nothing of it will be.
pub(super) fn is_final(error: &Error) -> bool {
    let moved = error.reason.as_deref() == Some(reason::WRONG_HOLDER);
    !moved && !matches!(error.code, Code::Unavailable | Code::DeadlineExceeded)
}

impl Core {
    /// One of the users who has not been made, wherever their partitions are; none: nobody is known to be missing.
    pub(super) async fn missing<'a>(&self, users: &[&'a str]) -> Result<Option<&'a str>, Error> {
        let unknown: Vec<&str> = users.iter().copied().filter(|user| !self.0.known_users.holds(user)).collect();
        for chunk in unknown.chunks(peers::MOST_STEPS) {
            let steps = chunk.iter().map(|user| relate_step(user, relate::Kind::Known, "", "", 0)).collect();
            for (user, found) in chunk.iter().copied().zip(self.apply(steps).await?) {
                match found {
                    Ok(_) => self.0.known_users.add(user),
                    Err(error) if error.code == Code::NotFound => return Ok(Some(user)),
                    // An instance of the version before does not know the question. Entering tells, too.
                    Err(error) if error.code == Code::InvalidArgument => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(None)
    }

    /// Enters a conversation into lists, of each user with whether they asked for it (see [`Core::enter_list`]); adds those who did not hold
    /// it to `entered`, also where it fails.
    pub(super) async fn enter_lists<'a>(
        &self,
        conversation_id: &str,
        users: &[(&'a str, bool)],
        now: i64,
        entered: &mut Vec<&'a str>,
    ) -> Result<(), Error> {
        let steps = users.iter().map(|(user, own)| peers::enter(user, conversation_id, now, *own)).collect();
        let mut outcome = Ok(());
        for ((user, _), result) in users.iter().copied().zip(self.apply(steps).await?) {
            match result {
                Ok(step_result::Result::Done(done)) if done.changed => entered.push(user),
                Ok(_) => {}
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// Takes entries back that were made for a call that was refused, of those who are not in the conversation.
    pub(super) async fn take_back(&self, conversation_id: &str, entered: Vec<&str>, now: i64) {
        if let Err(error) = self.follow_rows(conversation_id, entered, now).await {
            tracing::warn!(%error, conversation_id, "a list holds an entry of a conversation that its user is not in: it is not shown");
        }
    }

    /// Brings users' lists to what their rows say, after these have changed. Somebody else may change them at the same time and does the same:
    /// so each looks at the rows again behind what it has written, and who is the last to write a list has seen the rows as they stay.
    pub(super) async fn follow_rows(&self, conversation_id: &str, users: Vec<&str>, now: i64) -> Result<(), Error> {
        if users.is_empty() {
            return Ok(());
        }
        let (mut inside, mut outside) = self.split_by_membership(conversation_id, users).await?;
        let (end, mut failed) = (Self::end(), None);
        for attempt in 1..=FOLLOWING {
            let entering = inside.iter().map(|user| peers::enter(user, conversation_id, now, false));
            let leaving = outside.iter().map(|user| leave(user, conversation_id));
            let steps: Vec<_> = entering.chain(leaving).collect();
            failed = self.apply(steps).await?.into_iter().find_map(Result::err);
            match &failed {
                None => {}
                // What was not done is done again: nobody else will.
                Some(error) if error.is_retryable() && Instant::now() < end => {
                    super::apart(attempt).await;
                    continue;
                }
                Some(_) => break,
            }
            let were: BTreeSet<&str> = inside.iter().copied().collect();
            let users = inside.into_iter().chain(outside).collect();
            (inside, outside) = self.split_by_membership(conversation_id, users).await?;
            inside.retain(|user| !were.contains(user));
            outside.retain(|user| were.contains(user));
            if inside.is_empty() && outside.is_empty() {
                return Ok(());
            }
        }
        Err(failed.unwrap_or_else(|| EngineError::Conflict.into()))
    }

    /// Those of the users who see the conversation, and those who do not.
    async fn split_by_membership<'a>(
        &self,
        conversation_id: &str,
        users: Vec<&'a str>,
    ) -> Result<(Vec<&'a str>, Vec<&'a str>), Error> {
        // A block may have written a row before its conversation was made.
        let stands = Field::new(key::conversation(conversation_id), "k");
        let rows = users.iter().map(|user| Field::new(key::members(conversation_id), *user));
        let fields: Vec<Field> = std::iter::once(stands).chain(rows).collect();
        let values = self.fields(self.partition(conversation_id), &fields, Self::end()).await?;
        let stands = values.first().is_some_and(Option::is_some);
        let (inside, outside): (Vec<_>, Vec<_>) =
            users.into_iter().zip(values.into_iter().skip(1)).partition(|(_, row)| stands && row.is_some());
        let names = |pairs: Vec<(&'a str, _)>| pairs.into_iter().map(|(user, _)| user).collect();
        Ok((names(inside), names(outside)))
    }
}
