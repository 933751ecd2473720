//! Who calls: the bearer token of a request, verified, not revoked, within its rate.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use kith_clients::auth::Claims;
use kith_rpc::{admission::Seat, error::Error};

use crate::{
    budget::{self, Slot},
    state::{App, Shared},
};

/// The authenticated user of a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller(Arc<Claims>);

impl Caller {
    /// The user's id.
    pub(crate) fn user(&self) -> String {
        self.0.sub.clone()
    }

    /// The device's id.
    pub(crate) fn device(&self) -> &str {
        &self.0.dev
    }

    /// Counts the items of a call one by one, beside the call itself; refuses more than the user's share.
    pub(crate) fn charge(&self, app: &App, items: usize) -> Result<(), Error> {
        app.items
            .check_n(&self.0.sub, items)
            .map_err(|wait| Error::exhausted("too many items in the requests of this user: slow down", wait))
    }

    /// All that the token says.
    pub(crate) fn claims(&self) -> &Claims {
        &self.0
    }
}

/// The token of an `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Result<&str, Error> {
    let value = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| Error::unauthenticated("no token: send Authorization: Bearer <JWT>"))?;
    let malformed = || Error::unauthenticated("the Authorization header is malformed: send Bearer <JWT>");
    let (scheme, token) = value.to_str().map_err(|_| malformed())?.split_once(' ').ok_or_else(malformed)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(malformed()) }
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Error> {
        let claims = app.authenticator.authenticate(bearer(&parts.headers)?).await?;
        app.requests
            .check(&claims.sub)
            .map_err(|wait| Error::exhausted("too many requests of this user: slow down", wait))?;
        if let Some(seat) = parts.extensions.get::<Arc<Seat>>() {
            seat.known_as(&claims.sub);
        }
        if let Some(slot) = parts.extensions.get::<Slot>() {
            let place = app.in_flight.enter(&claims.sub)?;
            slot.fill(claims.clone(), place, app.budget.hold(&claims.sub, budget::weight(parts)).await?);
        }
        Ok(Self(claims))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_token_is_taken() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            headers
        };
        assert_eq!(bearer(&with("Bearer a.b.c")).unwrap(), "a.b.c");
        assert_eq!(bearer(&with("bearer a.b.c")).unwrap(), "a.b.c");
        for bad in ["", "Bearer", "Basic abc", "a.b.c"] {
            assert!(bearer(&with(bad)).is_err(), "{bad}");
        }
        assert!(bearer(&HeaderMap::new()).is_err());
    }
}
