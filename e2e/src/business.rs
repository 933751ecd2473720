//! ImBusiness as a business line calls it: gRPC with the line's client certificate.

use std::{io, path::Path, time::Duration};

use kith_proto::business::v1::{
    BusinessUser, IssueTokenRequest, ListMessagesRequest, ListMessagesResponse, SendMessageRequest,
    SendMessageResponse, UpsertUserResult, UpsertUsersRequest, im_business_client::ImBusinessClient,
};
use kith_rpc::error::Error as CallError;
use tonic::{
    Request,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::env::Env;

/// One call.
const DEADLINE: Duration = Duration::from_secs(5);
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// Why ImBusiness could not be called or refused.
#[derive(Debug, thiserror::Error)]
pub enum BusinessError {
    /// A certificate file.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// No connection.
    #[error("ImBusiness at {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// A refusal or an unknown outcome.
    #[error("ImBusiness: {0}")]
    Call(#[from] CallError),
}

impl From<tonic::Status> for BusinessError {
    fn from(status: tonic::Status) -> Self {
        Self::Call(status.into())
    }
}

/// Files that a business line connects with.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// The CA.
    pub ca: &'a Path,
    /// The line's certificate and its key; none: a caller whom nobody knows.
    pub identity: Option<(&'a Path, &'a Path)>,
}

/// A connection of a business line. Cheap to clone.
#[derive(Clone)]
pub struct Business(ImBusinessClient<Channel>);

impl Business {
    /// Connects as `env` says.
    pub async fn connect(env: &Env) -> Result<Self, BusinessError> {
        let files = Files { ca: &env.business_ca, identity: Some((&env.business_cert, &env.business_key)) };
        Self::connect_to(&env.business, &env.cluster, Some(files)).await
    }

    /// Connects to `address` (`host:port`) of the ChatCluster `cluster`; without files in plain text.
    pub async fn connect_to(address: &str, cluster: &str, files: Option<Files<'_>>) -> Result<Self, BusinessError> {
        Ok(Self::over(channel(address, cluster, files).await?))
    }

    /// Over a connection that is there.
    pub fn over(channel: Channel) -> Self {
        Self(ImBusinessClient::new(channel))
    }

    /// A token for a user, who is made when absent.
    pub async fn token(&self, user: &str, device: &str, platform: &str) -> Result<String, BusinessError> {
        let request = IssueTokenRequest {
            user_id: user.to_owned(),
            device_id: device.to_owned(),
            platform: platform.to_owned(),
            ttl_s: 0,
            create_user: true,
        };
        self.issue(request).await
    }

    /// IssueToken with all that it takes; the token alone.
    pub async fn issue(&self, request: IssueTokenRequest) -> Result<String, BusinessError> {
        Ok(self.0.clone().issue_token(timed(request)).await?.into_inner().token)
    }

    /// UpsertUsers.
    pub async fn upsert(&self, users: Vec<BusinessUser>) -> Result<Vec<UpsertUserResult>, BusinessError> {
        Ok(self.0.clone().upsert_users(timed(UpsertUsersRequest { users })).await?.into_inner().results)
    }

    /// SendMessage.
    pub async fn send(&self, message: SendMessageRequest) -> Result<SendMessageResponse, BusinessError> {
        Ok(self.0.clone().send_message(timed(message)).await?.into_inner())
    }

    /// ListMessages.
    pub async fn list_messages(&self, request: ListMessagesRequest) -> Result<ListMessagesResponse, BusinessError> {
        Ok(self.0.clone().list_messages(timed(request)).await?.into_inner())
    }

    /// The generated client, for calls that have no method here.
    pub fn raw(&self) -> ImBusinessClient<Channel> {
        self.0.clone()
    }
}

/// A connection to ImBusiness at `address` (`host:port`) of the ChatCluster `cluster`; without files in plain text.
pub async fn channel(address: &str, cluster: &str, files: Option<Files<'_>>) -> Result<Channel, BusinessError> {
    let failed = |source| BusinessError::Connect { address: address.to_owned(), source };
    let scheme = if files.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(failed)?
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(3));
    if let Some(files) = files {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(files.ca)?))
            .domain_name(format!("business.{cluster}.kith.internal"));
        if let Some((cert, key)) = files.identity {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        endpoint = endpoint.tls_config(tls).map_err(failed)?;
    }
    let channel = tokio::time::timeout(CONNECT_DEADLINE * 2, endpoint.connect())
        .await
        .map_err(|_| CallError::unavailable(format!("{address}: no connection in time")))?
        .map_err(failed)?;
    Ok(channel)
}

/// A request with the deadline of a call.
pub fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn read(path: &Path) -> Result<Vec<u8>, BusinessError> {
    std::fs::read(path).map_err(|source| BusinessError::File { path: path.display().to_string(), source })
}
