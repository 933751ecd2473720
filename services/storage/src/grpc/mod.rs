//! The gRPC services: each call handed to the core, failures as statuses.

mod conversations;
mod messages;
mod peer;
mod users;

use std::sync::Arc;

use kith_proto::storage::v1::{
    conversations_server::ConversationsServer, messages_server::MessagesServer, peer_server::PeerServer,
    users_server::UsersServer,
};
use kith_rpc::{client::MAX_MESSAGE_BYTES, error::Error};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status, service::Routes};

use crate::{
    core::Core,
    engine::valkey::{Hub, View},
    repair::Repairs,
};

/// All services of storage; streams end with `end`.
pub(crate) fn routes(core: &Core, hub: &Arc<Hub>, view: &Arc<View>, end: CancellationToken) -> Routes {
    let messages = messages::Service(core.clone(), end);
    let conversations = conversations::Service(core.clone());
    let users = users::Service(core.clone());
    let repairs = Arc::new(Repairs::new(hub.clone()));
    let peer = peer::Service { core: core.clone(), hub: hub.clone(), view: view.clone(), repairs };
    Routes::new(MessagesServer::new(messages).max_encoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(ConversationsServer::new(conversations).max_encoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(UsersServer::new(users).max_encoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(PeerServer::new(peer).max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// An outcome as gRPC tells it; counted.
fn respond<T>(call: &'static str, outcome: Result<T, Error>) -> Result<Response<T>, Status> {
    account(call, outcome.as_ref().err());
    outcome.map(Response::new).map_err(Status::from)
}

/// Counts a call, and logs a failure that a person should see.
fn account(call: &'static str, failed: Option<&Error>) {
    let code = failed.map_or("OK", Error::code_name);
    metrics::counter!("kith_storage_calls_total", "call" => call, "code" => code).increment(1);
    if let Some(error) = failed
        && matches!(error.code, Code::Internal | Code::DataLoss)
    {
        tracing::error!(call, %error, "a call failed");
    }
}

/// Implements a service: calls of its own, and calls that hand the request to the core as it is and answer what the core gives, put into
/// the response by `$wrap`.
macro_rules! service {
    (
        $service:ident for $name:ident { $($own:tt)* }
        $($call:ident($request:ty) -> $response:ty { $wrap:expr })*
    ) => {
        #[tonic::async_trait]
        impl $service for $name {
            $($own)*
            $(
                async fn $call(&self, request: tonic::Request<$request>) -> Result<tonic::Response<$response>, tonic::Status> {
                    let outcome = self.0.$call(request.into_inner()).await;
                    super::respond(stringify!($call), outcome.map($wrap))
                }
            )*
        }
    };
}
use service;
