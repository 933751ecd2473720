//! The clock of an open loop: a thread of its own calls at the due times, whatever the callee is doing.

use std::time::{Duration, Instant};

/// The shortest sleep: thousands of wake-ups a second would cost what is to be measured. What is sent later for it counts as waiting.
const GRAIN: Duration = Duration::from_micros(500);

/// Calls `send(n, due)` for every message that is due in `lasts` at `rate` per second, never early. The callee must not block.
pub(super) async fn pace(
    rate: f64,
    lasts: Duration,
    begin: Instant,
    mut send: impl FnMut(u64, Instant) + Send + 'static,
) -> Result<(), tokio::task::JoinError> {
    let count = (rate * lasts.as_secs_f64()).round() as u64;
    tokio::task::spawn_blocking(move || {
        for n in 0..count {
            let due = begin + Duration::from_secs_f64(n as f64 / rate);
            let now = Instant::now();
            if due > now {
                std::thread::sleep((due - now).max(GRAIN));
            }
            send(n, due);
        }
    })
    .await
}
