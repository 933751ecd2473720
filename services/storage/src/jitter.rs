//! Pauses that do not fall together.

use std::time::Duration;

use rand::RngExt;

/// Half to one and a half times `pause`.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}
