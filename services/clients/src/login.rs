//! Who a client token stands for, revocations included: verified once, remembered briefly, asked for again after seconds.

use std::{sync::Arc, time::Duration};

use kith_proto::storage::v1::GetRevocationRequest;
use moka::future::Cache;

use crate::{
    auth::{Claims, Verifier},
    storage::Storage,
};
use kith_kit::clock;
use kith_rpc::error::{Error, reason};

/// How long a revocation of another process may stay unseen, with the time that reading it takes: a kick holds within two seconds. An
/// instance sees its own at once.
const REVOCATION_TTL: Duration = Duration::from_millis(1_500);
/// Devices whose revocations are remembered.
const REVOCATIONS: u64 = 100_000;
/// Verified tokens that are remembered (about half a kilobyte each), and how long: a key that is taken out of `jwks.json` stops counting.
const TOKENS: u64 = 20_000;
const TOKEN_TTL: Duration = Duration::from_secs(30);

/// A user and one of their devices.
type Device = (String, String);

/// Verifies tokens and knows which have been revoked.
pub struct Authenticator {
    verifier: Verifier,
    storage: Storage,
    tokens: Cache<String, Arc<Claims>>,
    /// Up to when the tokens of a device are revoked, Unix ms.
    revocations: Cache<Device, i64>,
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

    /// The claims of a token that is valid now: signature, lifetime, not revoked. A revocation by another process counts within
    /// two seconds.
    pub async fn authenticate(&self, token: &str) -> Result<Arc<Claims>, Error> {
        let claims = self.verify(token).await?;
        let device = device_of(&claims);
        let revoked = match self.revocations.get(&device).await {
            Some(known) => known,
            None => Box::pin(self.load_revocation(device)).await?,
        };
        refuse_revoked(&claims, revoked)?;
        Ok(claims)
    }

    /// Refuses claims whose token has been revoked since it was issued, as storage has it now: for what lives on, a connection, and not only
    /// for one request.
    pub async fn check_revoked_now(&self, claims: &Claims) -> Result<(), Error> {
        let device = device_of(claims);
        let revoked = self.read_revocation(&device).await?;
        self.revocations.insert(device, revoked).await;
        refuse_revoked(claims, revoked)
    }

    /// The claims of a token whose signature and lifetime are right, revoked or not: enough to say whose bounds a call counts for, and
    /// known without a call to storage.
    pub async fn verify(&self, token: &str) -> Result<Arc<Claims>, Error> {
        match self.tokens.get(token).await {
            Some(claims) if clock::now_ms() < claims.ends_at_ms() => Ok(claims),
            // Unknown, or past its end: the verifier says which.
            _ => {
                let claims = Arc::new(self.verifier.verify(token)?);
                self.tokens.insert(token.to_owned(), claims.clone()).await;
                Ok(claims)
            }
        }
    }

    /// Boxed by the caller: it is rare, and large for those who know already.
    async fn load_revocation(&self, device: Device) -> Result<i64, Error> {
        let load = self.read_revocation(&device);
        self.revocations.try_get_with_by_ref(&device, load).await.map_err(|error| Error::clone(&error))
    }

    async fn read_revocation(&self, (user_id, device_id): &Device) -> Result<i64, Error> {
        let request = GetRevocationRequest { user_id: user_id.clone(), device_id: device_id.clone() };
        let found = self.storage.get_revocation(request).await?;
        let of_device = found.device_issued_at_or_before.get(device_id).copied().unwrap_or(0);
        Ok(found.all_issued_at_or_before.max(of_device))
    }

    /// Forgets what is remembered about a device's revocations, after this process made one.
    pub async fn forget(&self, user_id: &str, device_id: &str) {
        self.revocations.invalidate(&(user_id.to_owned(), device_id.to_owned())).await;
    }
}

fn device_of(claims: &Claims) -> Device {
    (claims.sub.clone(), claims.dev.clone())
}

/// Refuses a token that was issued at or before `revoked`.
fn refuse_revoked(claims: &Claims, revoked: i64) -> Result<(), Error> {
    if claims.issued_at_ms() > revoked {
        return Ok(());
    }
    Err(Error::unauthenticated("the token has been revoked: get a new one").with_reason(reason::REVOKED))
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
        let refused = refuse_revoked(&claims(1_790_000_000_500), 1_790_000_000_500).unwrap_err();
        assert_eq!(refused.reason.as_deref(), Some(reason::REVOKED));
        assert!(refuse_revoked(&claims(1_790_000_000_501), 1_790_000_000_500).is_ok());
    }

    #[test]
    fn a_token_without_milliseconds_counts_as_of_the_beginning_of_its_second() {
        let whole = Claims { iat: 1_790_000_000, iat_ms: 0, ..claims(0) };
        assert!(refuse_revoked(&whole, 1_790_000_000_000).is_err());
        assert!(refuse_revoked(&whole, 1_789_999_999_999).is_ok());
    }
}
