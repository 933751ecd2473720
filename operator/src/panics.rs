//! Panics: what one object causes is caught there, so that nobody else suffers; any other ends the process, so that nothing goes on without
//! one of its parts while the lease is held.

use std::{
    any::Any,
    cell::Cell,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
};

use thiserror::Error;

/// The exit code of a process that ends for a panic, as Rust's own.
const EXIT: i32 = 101;

thread_local! {
    /// Whether a panic of this thread is caught right now.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// A panic that was caught.
#[derive(Debug, Clone, Error)]
#[error("a fault of the operator: {0}; please report it with the operator's log")]
pub struct Panicked(String);

/// From now on a panic that nobody catches ends the process. For the process's start.
pub fn end_the_process() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        if !CAUGHT.get() {
            tracing::error!(%panic, "a part of the operator ended: so does the process, and another takes over");
            std::process::exit(EXIT);
        }
    }));
}

/// Runs `work`, which concerns one object alone; a panic of it is logged, counted and answered. Tasks that it spawns are not covered.
pub async fn caught<T>(what: &str, work: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut work = pin!(work);
    let ended = poll_fn(|cx| {
        let before = CAUGHT.replace(true);
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx)));
        CAUGHT.set(before);
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => std::task::Poll::Ready(Err(text(panic.as_ref()))),
        }
    });
    ended.await.map_err(|panic| told(what, panic))
}

/// The same for work that blocks.
pub fn caught_here<T>(what: &str, work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let before = CAUGHT.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(before);
    done.map_err(|panic| told(what, text(panic.as_ref())))
}

fn told(what: &str, panic: String) -> Panicked {
    tracing::error!(what, panic, "a panic was caught");
    metrics::counter!("kith_operator_panics_total").increment(1);
    Panicked(panic)
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("not a text").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_and_what_comes_next_runs() {
        let poisoned = async {
            tokio::task::yield_now().await;
            assert!(CAUGHT.get());
            panic!("division by {}", "zero");
        };
        let answer: Result<(), _> = caught("a pass", poisoned).await;
        assert!(answer.unwrap_err().to_string().contains("division by zero"));
        assert!(!CAUGHT.get(), "the next panic of this thread is nobody's");
        assert_eq!(caught("a pass", async { 7 }).await.unwrap(), 7);
        let blocking = caught_here("a look", || assert!(!CAUGHT.get(), "poisoned"));
        assert!(blocking.unwrap_err().to_string().contains("poisoned"));
        // Work that runs an executor of its own, as the look at topics does.
        assert_eq!(caught_here("a look", || futures::executor::block_on(async { 7 })).unwrap(), 7);
    }
}
