//! A running platform as its users see it: addresses, and the business line that makes users. The local cluster and local processes
//! look the same from here.

use std::time::Duration;

use kith_kit::config::Tls;

use crate::{
    business::{Business, BusinessError},
    client::{Api, ClientError, Device, DeviceOptions, Trust, connection::OpenError},
    env::{Env, EnvError},
    kafka::Reader,
};

/// Why a platform could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Its addresses are not known.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// ImBusiness.
    #[error(transparent)]
    Business(#[from] BusinessError),
    /// A client's call.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A WebSocket.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Where a platform is.
#[derive(Clone)]
pub struct Target {
    /// `http://host:port`, or `https`.
    pub api: String,
    /// `ws://host:port/v1/connect`, or `wss`.
    pub ws: String,
    /// A connected business line.
    pub business: Business,
    /// Kafka, as the business line reads it.
    pub kafka: Reader,
    /// The topic of all changes.
    pub events_topic: String,
    http: Api,
}

/// A user and how to call the API as that user.
#[derive(Clone)]
pub struct User {
    /// User id.
    pub id: String,
    /// The user's calls.
    pub api: Api,
}

impl Target {
    /// Connects the business line.
    pub fn new(api: &str, ws: &str, business: Business, kafka: Reader, cluster: &str) -> Result<Self, ClientError> {
        Ok(Self {
            api: api.to_owned(),
            ws: ws.to_owned(),
            business,
            kafka,
            events_topic: format!("{cluster}.events"),
            http: Api::new(api, "")?,
        })
    }

    /// The platform of `make up`.
    pub async fn of_env() -> Result<Self, TargetError> {
        let env = Env::load()?;
        let business = Business::connect(&env).await?;
        let certificate = Tls { ca: env.business_ca, cert: env.business_cert, key: env.business_key };
        let kafka = Reader { bootstrap: env.kafka, certificate: Some(certificate) };
        let target = Self::new(&env.api, &env.ws, business, kafka, &env.cluster)?;
        Ok(match &env.ca {
            Some(file) => target.trusting(Trust::in_file(file)?)?,
            None => target,
        })
    }

    /// The same platform, whose certificates are trusted where its addresses are `https` and `wss`.
    pub fn trusting(self, trust: Trust) -> Result<Self, ClientError> {
        Ok(Self { http: Api::trusting(&self.api, "", trust)?, ..self })
    }

    /// A user of that very id, on a device of a platform; made when absent.
    pub async fn user_on(&self, id: &str, device: &str, platform: &str) -> Result<User, TargetError> {
        let token = self.business.token(id, device, platform).await?;
        Ok(User { id: id.to_owned(), api: self.http.with_token(token) })
    }

    /// A new user whose id nobody else has, so that tests share a platform.
    pub async fn new_user(&self, name: &str) -> Result<User, TargetError> {
        self.user_on(&unique(name), "d1", "ios").await
    }

    /// A connected device of a user.
    pub async fn device(&self, user: &User, options: DeviceOptions) -> Result<Device, TargetError> {
        Ok(Device::connect(&self.ws, user.api.clone(), options).await?)
    }

    /// Calls without a token.
    pub fn anonymous(&self) -> Api {
        self.http.clone()
    }

    /// The event log, read to its end.
    pub async fn replay(&self, deadline: Duration) -> Result<crate::kafka::Replay, crate::kafka::LogError> {
        crate::kafka::replay(&self.kafka, &self.events_topic, deadline).await
    }
}

/// `name` with an ending that is used once.
pub fn unique(name: &str) -> String {
    format!("{name}-{}", ulid::Ulid::generate().to_string().to_lowercase())
}
