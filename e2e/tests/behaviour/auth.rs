//! Who may not come in.

use std::time::Duration;

use kith_e2e::{
    client::{
        Connection,
        connection::{OpenError, TokenIn, dial},
        frame::close,
    },
    target::Target,
};
use reqwest::Method;

use super::{Failure, Proof, two};

/// A token of the right form that nobody signed.
fn forged(good: &str) -> String {
    let mut parts: Vec<&str> = good.split('.').collect();
    let signature = parts.pop().unwrap_or_default();
    let turned: String = signature.chars().rev().collect();
    format!("{}.{turned}", parts.join("."))
}

pub async fn a_call_without_a_good_token_is_unauthenticated(target: &Target) -> Proof {
    let (alice, _) = two(target).await?;
    for token in
        [String::new(), "nonsense".to_owned(), "a.b.c".to_owned(), forged(alice.api.token()), "x".repeat(10_000)]
    {
        let answer = target.anonymous().with_token(&token).raw(Method::GET, "/v1/conversations", None).await?;
        let shown: String = token.chars().take(12).collect();
        assert_eq!(answer.status, 401, "{shown}");
        let problem = answer.problem()?;
        assert_eq!((problem.code.as_ref(), problem.status), ("UNAUTHENTICATED", 401), "{shown}");
        assert!(token.is_empty() || !problem.detail.contains(&token), "a token is never repeated");
    }
    let answer = alice.api.raw(Method::GET, "/v1/conversations", None).await?;
    assert_eq!(answer.status, 200);
    Ok(())
}

fn refused_for_good(result: Result<Connection, OpenError>) -> Result<(), Failure> {
    match result {
        // A token in the header may already be refused at the upgrade.
        Err(OpenError::Status(401)) => Ok(()),
        Err(OpenError::Closed(closed)) if closed.code == Some(close::AUTHENTICATION) => Ok(()),
        Err(other) => Err(format!("refused in another way: {other}").into()),
        Ok(_) => Err("it was let in".into()),
    }
}

pub async fn a_socket_without_a_good_token_is_closed_for_good(target: &Target) -> Proof {
    let (alice, _) = two(target).await?;
    for token in ["nonsense".to_owned(), forged(alice.api.token())] {
        refused_for_good(Connection::open(&target.ws, &token, TokenIn::Frame, None).await)?;
        refused_for_good(Connection::open(&target.ws, &token, TokenIn::Header, None).await)?;
    }
    for place in [TokenIn::Frame, TokenIn::Header] {
        let open = Connection::open(&target.ws, alice.api.token(), place, None).await?;
        assert_eq!(open.hello.user_id, alice.id);
        assert!(!open.hello.resumed && !open.hello.session_id.is_empty() && open.hello.heartbeat_ms > 0);
    }
    Ok(())
}

pub async fn a_silent_socket_is_closed_after_a_few_seconds(target: &Target) -> Proof {
    let (mut reader, _writer) = dial(&target.ws, None).await?;
    let closed = tokio::time::timeout(Duration::from_secs(12), reader.next()).await?;
    let closed = closed.expect_err("nothing is sent to who does not say who it is");
    assert_eq!(closed.code, Some(close::AUTHENTICATION), "{closed}");
    Ok(())
}

pub async fn keys_and_the_description_of_the_api_are_public(target: &Target) -> Proof {
    let api = target.anonymous();
    let description = api.raw(Method::GET, "/v1/openapi.json", None).await?;
    assert_eq!(description.status, 200);
    let description = description.json()?;
    assert!(description["openapi"].as_str().unwrap_or_default().starts_with("3.1"), "{}", description["openapi"]);
    for path in ["/v1/messages", "/v1/conversations", "/v1/sync", "/v1/ack"] {
        assert!(description["paths"][path].is_object(), "{path} is described");
    }
    let keys = api.raw(Method::GET, "/.well-known/jwks.json", None).await?;
    assert_eq!(keys.status, 200);
    let keys = keys.json()?;
    let first = &keys["keys"][0];
    assert!(first["kid"].is_string() && first["d"].is_null(), "public halves only");
    Ok(())
}
