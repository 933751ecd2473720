//! Waiting for a condition with a deadline: tests await what they need and never sleep for a guessed time.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// Between two looks.
const POLL: Duration = Duration::from_millis(50);

/// The condition did not come true in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: not within {deadline:?}; last seen: {last}")]
pub struct TimedOut {
    /// What was awaited.
    pub what: String,
    /// How long.
    pub deadline: Duration,
    /// Why it did not hold at the last look.
    pub last: String,
}

/// Looks until `look` answers a value, or fails after `deadline` with the reason of the last look. A look may itself take no longer
/// than what is left.
pub async fn await_until<T, F, Fut>(what: &str, deadline: Duration, look: F) -> Result<T, TimedOut>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    await_every(POLL, what, deadline, look).await
}

/// The same with another pause between two looks, for those that cost something.
pub async fn await_every<T, F, Fut>(poll: Duration, what: &str, deadline: Duration, mut look: F) -> Result<T, TimedOut>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let end = Instant::now() + deadline;
    let mut last = String::from("nothing");
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(why)) => last = why,
            Err(_) => {
                return Err(TimedOut { what: what.to_owned(), deadline, last: format!("{last}, then no answer") });
            }
        }
        if Instant::now() + poll >= end {
            return Err(TimedOut { what: what.to_owned(), deadline, last });
        }
        tokio::time::sleep(poll).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_comes_true_is_returned_and_one_that_does_not_says_why() {
        let mut looks = 0;
        let found = await_every(Duration::from_millis(1), "three looks", Duration::from_secs(5), || {
            looks += 1;
            let now = looks;
            async move { if now == 3 { Ok(now) } else { Err(format!("look {now}")) } }
        });
        assert_eq!(found.await, Ok(3));
        let never = await_every(Duration::from_millis(1), "never", Duration::from_millis(20), || async {
            Err::<(), _>("still dark".to_owned())
        });
        assert!(never.await.unwrap_err().to_string().contains("still dark"));
    }
}
