//! Where a device's offline pushes go, as its client says it.

use crate::{Refused, kinds::Provider};

/// A token, in bytes; a subscription of a browser is the longest.
const MAX_TOKEN_BYTES: usize = 4_096;

/// Checks a provider with its token, both empty where a device wants no pushes. `webpush`: the token is the browser's subscription, a JSON
/// object. `webhook`: opaque text that is passed on to the line's own address. Whatever it looks like, it never becomes an address that the
/// platform calls.
pub fn check(provider: &str, token: &str) -> Result<(), Refused> {
    let known: Option<Provider> = provider.parse().ok();
    if !provider.is_empty() && known.is_none() {
        return Err(Refused::new(format!("provider: one of {}, or empty", Provider::NAMES.join(", "))));
    }
    if token.is_empty() != provider.is_empty() || token.len() > MAX_TOKEN_BYTES {
        return Err(Refused::new(format!("token: 1 to {MAX_TOKEN_BYTES} bytes with a provider, empty without")));
    }
    if token.chars().any(char::is_control) {
        return Err(Refused::new("token: no control characters"));
    }
    let object = || serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(token);
    if known == Some(Provider::Webpush) && object().is_err() {
        return Err(Refused::new("token: of webpush, the subscription as a JSON object"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_with_a_provider_and_holds_what_the_provider_takes() {
        for (provider, token) in [
            ("", ""),
            ("apns", "00ff"),
            ("fcm", "a:b"),
            ("webhook", "http://169.254.169.254/latest"),
            ("webpush", r#"{"endpoint":"https://push.example/1","keys":{}}"#),
        ] {
            assert_eq!(check(provider, token), Ok(()), "{provider} {token}");
        }
        for (provider, token, field) in [
            ("pigeon", "t", "provider"),
            ("APNS", "t", "provider"),
            ("apns", "", "token"),
            ("", "t", "token"),
            ("webhook", "a\r\nHost: b", "token"),
            ("fcm", "a\0", "token"),
            ("webhook", "a\u{85}", "token"),
            ("webpush", "https://push.example/1", "token"),
            ("webpush", r#"["https://push.example/1"]"#, "token"),
            ("apns", &"x".repeat(4_097), "token"),
        ] {
            let error = check(provider, token).unwrap_err();
            assert!(error.to_string().starts_with(field), "{provider} {token}: {error}");
        }
    }
}
