//! Resume tokens: `r1.<session>.<time>.<check>`.
//!
//! A token names the session that a client continues; the check binds it to that user and device. It carries no authority: who the
//! client is says its JWT alone, and what it gets says its cursors. So it needs no secret, and any gateway of the ChatCluster takes it.
//! `resumed: true` means: the client's cursors were taken as they are, and everything after them follows.

use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

/// A client that was away longer starts anew.
const MAX_AGE: Duration = Duration::from_secs(24 * 3_600);
/// Clocks of two gateways may differ.
const SKEW_MS: i64 = 60_000;

/// The token of a session, as of now.
pub fn issue(session_id: &str, user_id: &str, device_id: &str, now_ms: i64) -> String {
    format!("r1.{session_id}.{now_ms:x}.{:016x}", check(session_id, user_id, device_id, now_ms))
}

/// Whether the token is of an earlier session of this user on this device, not too long ago.
pub fn accepts(token: &str, user_id: &str, device_id: &str, now_ms: i64) -> bool {
    let mut parts = token.split('.');
    let (Some("r1"), Some(session_id), Some(time), Some(given), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let Ok(issued_ms) = i64::from_str_radix(time, 16) else { return false };
    let Ok(given) = u64::from_str_radix(given, 16) else { return false };
    let age_ms = now_ms.saturating_sub(issued_ms);
    given == check(session_id, user_id, device_id, issued_ms)
        && age_ms >= -SKEW_MS
        && age_ms <= i64::try_from(MAX_AGE.as_millis()).unwrap_or(i64::MAX)
}

fn check(session_id: &str, user_id: &str, device_id: &str, issued_ms: i64) -> u64 {
    // Ids hold no spaces, so the parts cannot run into each other.
    xxh3_64(format!("{session_id} {user_id} {device_id} {issued_ms}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_from_the_same_device_for_a_day() {
        let token = issue("01ARZ3NDEKTSV4RRFFQ69G5FAV", "alice", "d1", 1_790_000_000_000);
        assert!(accepts(&token, "alice", "d1", 1_790_000_001_000));
        assert!(!accepts(&token, "alice", "d2", 1_790_000_001_000));
        assert!(!accepts(&token, "bob", "d1", 1_790_000_001_000));
        assert!(!accepts(&token, "alice", "d1", 1_790_000_000_000 + 25 * 3_600_000));
        for bad in ["", "r1", "r1.a.b", "r1.a.b.c.d", "r1.s.zz.0", "r1.s.-ffffffffffffffff.0"] {
            assert!(!accepts(bad, "alice", "d1", 1_790_000_001_000), "{bad}");
        }
    }
}
