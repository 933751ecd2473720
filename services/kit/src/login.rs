//! Who a client token stands for, revocations included: verified once, remembered briefly, asked for again after seconds.

use std::{sync::Arc, time::Duration};

use futures::TryFutureExt;
use kith_proto::storage::v1::{GetRevocationRequest, GetRevocationResponse};
use moka::future::Cache;

use crate::{
    auth::{Claims, Verifier},
    clock,
    error::{Error, reason},
    storage::Storage,
};

/// How long a revocation of another process may stay unseen. An instance sees its own at once.
const REVOCATION_TTL: Duration = Duration::from_secs(2);
/// Users whose revocations are remembered.
const REVOCATIONS: u64 = 100_000;
/// Verified tokens that are remembered (about half a kilobyte each), and how long: a key that is taken out of `jwks.json` stops counting.
const TOKENS: u64 = 20_000;
const TOKEN_TTL: Duration = Duration::from_secs(30);

/// Verifies tokens and knows which have been revoked.
pub struct Authenticator {
    verifier: Verifier,
    storage: Storage,
    tokens: Cache<String, Arc<Claims>>,
    revocations: Cache<String, Arc<GetRevocationResponse>>,
}

impl Authenticator {
    /// With the keys of `verifier` and the revocations in `storage`.
    pub fn new(verifier: Verifier, storage: Storage) -> Self {
        Self {
            verifier,
            storage,
            tokens: Cache::builder().max_capacity(TOKENS).time_to_live(TOKEN_TTL).build(),
            revocations: Cache::builder().max_capacity(REVOCATIONS).time_to_live(REVOCATION_TTL).build(),
        }
    }

    /// The JWK set as published.
    pub fn jwks(&self) -> String {
        self.verifier.jwks()
    }

    /// The claims of a token that is valid now: signature, lifetime, not revoked.
    pub async fn authenticate(&self, token: &str) -> Result<Arc<Claims>, Error> {
        let claims = match self.tokens.get(token).await {
            Some(claims) if i64::try_from(claims.exp).is_ok_and(|exp| clock::now_ms() / 1_000 < exp) => claims,
            // Unknown, or past its end: the verifier says which.
            _ => {
                let claims = Arc::new(self.verifier.verify(token)?);
                self.tokens.insert(token.to_owned(), claims.clone()).await;
                claims
            }
        };
        self.check_revoked(&claims).await?;
        Ok(claims)
    }

    /// Refuses claims whose token has been revoked since it was issued.
    pub async fn check_revoked(&self, claims: &Claims) -> Result<(), Error> {
        let revocation = match self.revocations.get(&claims.sub).await {
            Some(known) => known,
            None => Box::pin(self.load_revocation(&claims.sub)).await?,
        };
        if is_revoked(claims, &revocation) {
            return Err(
                Error::unauthenticated("the token has been revoked: get a new one").with_reason(reason::REVOKED)
            );
        }
        Ok(())
    }

    /// Boxed by the caller: it is rare, and large for those who know already.
    async fn load_revocation(&self, user: &str) -> Result<Arc<GetRevocationResponse>, Error> {
        let load = self.storage.get_revocation(GetRevocationRequest { user_id: user.to_owned() }).map_ok(Arc::new);
        self.revocations.try_get_with_by_ref(user, load).await.map_err(|error| Error::clone(&error))
    }

    /// Forgets what is remembered about a user's revocations, after this process made one.
    pub async fn forget(&self, user_id: &str) {
        self.revocations.invalidate(user_id).await;
    }
}

fn is_revoked(claims: &Claims, revocation: &GetRevocationResponse) -> bool {
    // Tokens of other issuers may not carry milliseconds.
    let issued_at =
        if claims.iat_ms > 0 { claims.iat_ms } else { i64::try_from(claims.iat).unwrap_or(0).saturating_mul(1_000) };
    let device = revocation.device_issued_at_or_before.get(&claims.dev).copied().unwrap_or(0);
    issued_at <= revocation.all_issued_at_or_before.max(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(iat_ms: i64) -> Claims {
        Claims {
            sub: "alice".into(),
            dev: "d1".into(),
            plt: "ios".into(),
            line: "default".into(),
            iss: "demo".into(),
            jti: "j".into(),
            iat: u64::try_from(iat_ms / 1_000).unwrap(),
            iat_ms,
            exp: u64::MAX,
        }
    }

    #[test]
    fn a_token_of_the_same_second_as_the_kick_but_after_it_lives() {
        let revocation = GetRevocationResponse {
            all_issued_at_or_before: 0,
            device_issued_at_or_before: [("d1".to_owned(), 1_790_000_000_500)].into(),
        };
        assert!(is_revoked(&claims(1_790_000_000_500), &revocation));
        assert!(!is_revoked(&claims(1_790_000_000_501), &revocation));
    }

    #[test]
    fn another_devices_kick_does_not_count() {
        let revocation = GetRevocationResponse {
            all_issued_at_or_before: 0,
            device_issued_at_or_before: [("d2".to_owned(), i64::MAX)].into(),
        };
        assert!(!is_revoked(&claims(1), &revocation));
    }
}
