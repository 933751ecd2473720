//! What callers are told when the engine did not do what was asked.

use std::time::Duration;

use kith_rpc::error::{Error, reason};
use tonic::Code;

use super::{EngineError, Refusal};

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::WrongHolder(holder) => Self::wrong_holder(holder.as_deref()),
            EngineError::Unavailable(why) => Self::unavailable(why),
            EngineError::Exhausted(what, after) => Self::exhausted(what, after),
            EngineError::Deadline => {
                Self::new(Code::DeadlineExceeded, "the storage engine did not answer in time: retry with the same ids")
            }
            EngineError::Internal => Self::internal(error.to_string()),
            EngineError::Conflict => Self::new(Code::Aborted, "changed by another call at the same time: try again"),
            EngineError::DataLoss(what) => {
                tracing::error!(what, "stored data are damaged or missing");
                Self::data_loss()
            }
            EngineError::Refused(refusal) => match refusal {
                // Who is no member may not know that it exists.
                Refusal::NoConversation | Refusal::NotMember => Self::not_found("no such conversation"),
                Refusal::Blocked => Self::denied(reason::BLOCKED, "the recipient does not take your messages"),
                Refusal::Muted => Self::denied(reason::MUTED, "muted in this conversation"),
                Refusal::Dissolved => Self::not_found("this group has been dissolved"),
                Refusal::NoUser => Self::not_found("no such user"),
                Refusal::Full => Self::exhausted("a list holds as much as it may", Duration::from_secs(3_600)),
                Refusal::NotAbove => Self::new(Code::FailedPrecondition, "the partition is at this version already"),
                Refusal::HotLimit => {
                    Self::exhausted("this conversation holds as many messages as are kept", Duration::from_secs(3_600))
                }
            },
        }
    }
}
