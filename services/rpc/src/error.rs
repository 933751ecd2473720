//! The closed set of error codes, and the one mapping between gRPC and HTTP.
//!
//! An [`Error`] crosses a gRPC hop as `google.rpc.Status` with `ErrorInfo` (reason, metadata) and `RetryInfo`, and leaves the access
//! layer as a problem document. Its text is safe to show to users; causes that are not stay in the log where they were handled.

use std::{borrow::Cow, collections::HashMap, time::Duration};

pub use kith_contract::problem::reason;
use kith_proto::storage::v1::ItemError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// `ErrorInfo.domain` of everything that Kith reports.
pub const DOMAIN: &str = "kith.dev";

/// A refused or failed call, in the words of the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}{}: {detail}", reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default())]
pub struct Error {
    /// The gRPC code.
    pub code: Code,
    /// What to do about it; safe to show.
    pub detail: Cow<'static, str>,
    /// A constant of [`reason`], where it helps.
    pub reason: Option<Cow<'static, str>>,
    /// Facts for programs.
    pub metadata: HashMap<String, String>,
    /// When a retry makes sense.
    pub retry_after: Option<Duration>,
    /// Whether the connection to the instance that was called could not be made or broke. Its own refusals, UNAVAILABLE among them, say
    /// that it lives, and so does a stream that it reset. It does not cross a hop: who passes such an error on has answered.
    pub unanswered: bool,
}

impl Error {
    /// An error without a reason.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            reason: None,
            metadata: HashMap::new(),
            retry_after: None,
            unanswered: false,
        }
    }

    /// 400: malformed; `detail` names the field.
    pub fn invalid(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidArgument, detail)
    }

    /// 404, also where the caller may not know that it exists.
    pub fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::NotFound, detail)
    }

    /// 503: outcome unknown or not done; the same request may be sent again.
    pub fn unavailable(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unavailable, detail)
    }

    /// The same, since there is no connection to the instance that was called.
    pub fn unanswered(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { unanswered: true, ..Self::unavailable(detail) }
    }

    /// 403 with a reason.
    pub fn denied(reason: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::PermissionDenied, detail).with_reason(reason)
    }

    /// 401.
    pub fn unauthenticated(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unauthenticated, detail)
    }

    /// 429: a bound was reached; come back later.
    pub fn exhausted(detail: impl Into<Cow<'static, str>>, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(Code::ResourceExhausted, detail) }
    }

    /// 500: a fault of ours; the cause is in the log.
    pub fn internal(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Internal, detail)
    }

    /// 500: stored data are damaged or missing. Which ones is for the log of whoever found it, and never for a caller: keys hold ids.
    pub fn data_loss() -> Self {
        Self::new(Code::DataLoss, "stored data are damaged or missing: it has been logged")
            .with_reason(reason::DATA_LOSS)
    }

    /// The instance does not hold what was asked for.
    pub fn wrong_holder(holder: Option<&str>) -> Self {
        let mut error = Self::new(Code::FailedPrecondition, "this instance does not hold the key")
            .with_reason(reason::WRONG_HOLDER);
        if let Some(holder) = holder {
            error.metadata.insert("holder".to_owned(), holder.to_owned());
        }
        error
    }

    /// Adds a reason.
    #[must_use]
    pub fn with_reason(mut self, reason: impl Into<Cow<'static, str>>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Whether the call may be sent again as it was.
    pub fn is_retryable(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::Aborted)
            || (self.code == Code::FailedPrecondition && self.reason.as_deref() == Some(reason::WRONG_HOLDER))
    }

    /// The code's name in the contract, for example `INVALID_ARGUMENT`.
    pub fn code_name(&self) -> &'static str {
        code_name(self.code)
    }

    /// The HTTP status of the contract's table.
    pub fn http_status(&self) -> u16 {
        match self.code {
            Code::Ok => 200,
            Code::InvalidArgument if self.reason.as_deref() == Some(reason::TOO_LARGE) => 413,
            Code::InvalidArgument | Code::OutOfRange => 400,
            Code::Unauthenticated => 401,
            Code::PermissionDenied => 403,
            Code::NotFound => 404,
            Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => 409,
            Code::ResourceExhausted => 429,
            Code::Cancelled => 499,
            Code::Unimplemented => 501,
            Code::Unavailable => 503,
            Code::DeadlineExceeded => 504,
            Code::Internal | Code::Unknown | Code::DataLoss => 500,
        }
    }
}

/// The name of a gRPC code as the contract spells it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl From<kith_contract::Refused> for Error {
    fn from(refused: kith_contract::Refused) -> Self {
        Self::invalid(refused.into_detail())
    }
}

impl From<kith_contract::ids::IdError> for Error {
    fn from(e: kith_contract::ids::IdError) -> Self {
        Self::invalid(e.to_string())
    }
}

impl From<Error> for Status {
    fn from(e: Error) -> Self {
        if e.reason.is_none() && e.retry_after.is_none() {
            return Self::new(e.code, e.detail);
        }
        let mut details = ErrorDetails::new();
        if let Some(reason) = e.reason {
            details.set_error_info(reason, DOMAIN, e.metadata);
        }
        if let Some(after) = e.retry_after {
            details.set_retry_info(Some(after));
        }
        Self::with_error_details(e.code, e.detail, details)
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|i| i.domain == DOMAIN);
        // A transport's own failures carry text about addresses and sockets, which is for the log and not for users.
        let source = std::error::Error::source(&status);
        let transport = source.is_some();
        let detail =
            if transport { "a part of the platform did not answer".to_owned() } else { status.message().to_owned() };
        let code = match status.code() {
            // h2 and hyper report a connection that broke as Unknown or Cancelled; the outcome is as unknown as with Unavailable.
            Code::Unknown | Code::Cancelled | Code::Internal if transport => Code::Unavailable,
            // The deadline that tonic's own client keeps is reported as Cancelled.
            Code::Cancelled => Code::DeadlineExceeded,
            code => code,
        };
        Self {
            code,
            detail: detail.into(),
            reason: info.map(|i| i.reason.clone().into()),
            metadata: info.map(|i| i.metadata.clone()).unwrap_or_default(),
            retry_after: details.retry_info().and_then(|r| r.retry_delay),
            unanswered: source.is_some_and(|source| !is_of_one_stream(source)),
        }
    }
}

impl From<ItemError> for Error {
    fn from(item: ItemError) -> Self {
        let mut error = Self::new(Code::from_i32(item.code), item.message);
        if !item.reason.is_empty() {
            error = error.with_reason(item.reason);
        }
        error.metadata = item.metadata.into_iter().collect();
        error.retry_after = (item.retry_after_ms > 0).then(|| Duration::from_millis(item.retry_after_ms));
        error
    }
}

impl From<Error> for ItemError {
    fn from(error: Error) -> Self {
        Self {
            code: error.code as i32,
            message: error.detail.into_owned(),
            reason: error.reason.map(Cow::into_owned).unwrap_or_default(),
            metadata: error.metadata.into_iter().collect(),
            // Rounded up: 0 would say nothing.
            retry_after_ms: error.retry_after.map_or(0, |after| (after.as_millis() as u64).max(1)),
        }
    }
}

/// Whether a transport's failure is that of one stream: the connection below it goes on, and the instance lives.
fn is_of_one_stream(mut source: &(dyn std::error::Error + 'static)) -> bool {
    loop {
        if let Some(error) = source.downcast_ref::<h2::Error>() {
            return error.is_reset();
        }
        match source.source() {
            Some(next) => source = next,
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_a_hop() {
        let mut error = Error::denied(reason::BLOCKED, "the recipient does not take your messages");
        error.retry_after = Some(Duration::from_secs(2));
        assert_eq!(Error::from(Status::from(error.clone())), error);
        let hint = Error::wrong_holder(Some("10.0.0.1:7443"));
        assert_eq!(Error::from(Status::from(hint.clone())), hint);
        assert!(hint.is_retryable());
    }

    #[test]
    fn who_passes_on_that_nobody_answered_has_answered() {
        let error = Error::unanswered("the stream ended");
        assert!(error.unanswered && error.is_retryable());
        assert!(!Error::from(Status::from(error)).unanswered);
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert!(Error::from(Status::from_error(Box::new(refused))).unanswered);
    }

    #[test]
    fn a_reset_stream_is_tried_again_and_says_nothing_against_its_instance() {
        for reason in [h2::Reason::INTERNAL_ERROR, h2::Reason::CANCEL, h2::Reason::REFUSED_STREAM] {
            let error = Error::from(Status::from_error(Box::new(h2::Error::from(reason))));
            assert_eq!(error.code, Code::Unavailable, "{reason}");
        }
    }

    #[test]
    fn only_what_may_succeed_later_is_tried_again() {
        let all = (0..17).map(Code::from_i32);
        let again: Vec<_> = all.filter(|code| Error::new(*code, "x").is_retryable()).collect();
        assert_eq!(again, [Code::Aborted, Code::Unavailable]);
        assert!(Error::wrong_holder(None).is_retryable());
        assert!(!Error::new(Code::FailedPrecondition, "x").with_reason(reason::DATA_LOSS).is_retryable());
    }

    #[test]
    fn codes_map_to_the_statuses_of_the_contract() {
        for (code, status) in [
            (Code::InvalidArgument, 400),
            (Code::AlreadyExists, 409),
            (Code::ResourceExhausted, 429),
            (Code::DeadlineExceeded, 504),
        ] {
            assert_eq!(Error::new(code, "x").http_status(), status);
        }
    }
}
