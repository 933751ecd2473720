//! The calls of ImBusiness: who may, then what storage and sessions say.

use std::{collections::HashMap, time::Duration};

use futures::{StreamExt, TryFutureExt, stream};
use kith_clients::{auth::Signer, sessions::Sessions, storage::Storage};
use kith_contract::{ids, kinds};
use kith_proto::{
    business::v1::{
        BatchSendMessagesRequest, BatchSendMessagesResponse, BatchSendResult, ConversationSummary, GetUsersRequest,
        GetUsersResponse, IssueTokenRequest, IssueTokenResponse, ListConversationsRequest, ListConversationsResponse,
        ListMessagesRequest, ListMessagesResponse, QueryPresenceRequest, QueryPresenceResponse, SendMessageRequest,
        SendMessageResponse, UpsertUsersRequest, UpsertUsersResponse, UserPresence, im_business_server::ImBusiness,
    },
    chat::v1::{Platform, Receipt},
    storage::v1::{self as storage_v1, Device, ListDevicesRequest, PutDeviceRequest},
};
use kith_rpc::error::{Error, reason};
use kith_send::{Door, Doorway, Draft, Target, draft::MAX_CONTENT_BYTES};
use serde_json::value::RawValue;
use tonic::{Code, Request, Response, Status};

use crate::{
    line::Lines,
    users::{self, MAX_USERS},
};

/// Messages in one batch, and how many conversations of it are written at once.
const MAX_BATCH: usize = 100;
const BATCH_CONCURRENCY: usize = 32;
/// Lifetimes of tokens, seconds.
const SHORTEST_S: u32 = 60;

/// The service.
pub(crate) struct Business {
    lines: Lines,
    doorway: Doorway,
    storage: Storage,
    sessions: Sessions,
    signer: Signer,
    token_ttl: Duration,
}

impl Business {
    pub(crate) fn new(lines: Lines, storage: Storage, sessions: Sessions, signer: Signer, token_ttl: Duration) -> Self {
        Self { lines, doorway: Doorway::of_lines(storage.clone()), storage, sessions, signer, token_ttl }
    }

    async fn send(&self, line: &str, message: SendMessageRequest) -> Result<SendMessageResponse, Error> {
        self.lines.check_user(line, "sender_id", &message.sender_id).await?;
        let draft = draft(message)?;
        let refused = match self.doorway.send(draft.clone()).await {
            Ok(receipt) => return Ok(sent(receipt)),
            Err(error) if error.code == Code::NotFound => error,
            Err(error) => return Err(error),
        };
        // Perhaps not a member: the line may still write into the groups of its own users (system accounts do).
        match &draft.target {
            Target::Conversation(id) if self.lines.owns_group(line, id).await? => {
                self.doorway.send_privileged(draft).await.map(sent)
            }
            _ => Err(refused),
        }
    }

    async fn issue(&self, line: &str, request: IssueTokenRequest) -> Result<IssueTokenResponse, Error> {
        ids::check_id("device_id", &request.device_id)?;
        let platform = Platform::from(request.platform.parse::<kinds::Platform>()?);
        let ttl = match request.ttl_s {
            0 => self.token_ttl,
            ttl if ttl >= SHORTEST_S && Duration::from_secs(ttl.into()) <= self.token_ttl => {
                Duration::from_secs(ttl.into())
            }
            _ => {
                let most = self.token_ttl.as_secs();
                let detail = format!(
                    "ttl_s: {SHORTEST_S} to {most} seconds (auth.tokenTtl of the ChatCluster), or 0 for the longest"
                );
                return Err(Error::invalid(detail));
            }
        };
        if request.create_user {
            users::ensure(&self.lines, &self.storage, line, &request.user_id).await?;
        } else {
            self.lines.check_user(line, "user_id", &request.user_id).await?;
        }
        self.know_device(&request.user_id, &request.device_id, platform).await?;
        let (token, claims) = self.signer.sign(&request.user_id, &request.device_id, &request.platform, line, ttl)?;
        let expires_at = i64::try_from(claims.exp).unwrap_or(i64::MAX).saturating_mul(1_000);
        Ok(IssueTokenResponse { token, expires_at })
    }

    /// Makes the device's row. One that stands is left alone: it holds the push token.
    async fn know_device(&self, user_id: &str, device_id: &str, platform: Platform) -> Result<(), Error> {
        let user_id = user_id.to_owned();
        let devices = self.storage.list_devices(ListDevicesRequest { user_id: user_id.clone() }).await?.devices;
        if devices.iter().any(|d| d.device_id == device_id && d.platform() == platform) {
            return Ok(());
        }
        let device = Device { device_id: device_id.to_owned(), platform: platform.into(), ..Default::default() };
        self.storage.put_device(PutDeviceRequest { user_id, device: Some(device), ..Default::default() }).await?;
        Ok(())
    }

    /// Messages to one conversation keep their order; different conversations go at once.
    async fn send_batch(&self, line: &str, messages: Vec<SendMessageRequest>) -> Result<Vec<BatchSendResult>, Error> {
        if messages.is_empty() || messages.len() > MAX_BATCH {
            return Err(Error::invalid(format!("messages: {}, give 1 to {MAX_BATCH}", messages.len())));
        }
        let mut results = vec![BatchSendResult::default(); messages.len()];
        let mut groups: HashMap<String, Vec<(usize, SendMessageRequest)>> = HashMap::new();
        for (at, message) in messages.into_iter().enumerate() {
            groups.entry(destination(&message)).or_default().push((at, message));
        }
        let mut done = stream::iter(groups.into_values())
            .map(|group| async move {
                let mut results = Vec::with_capacity(group.len());
                for (at, message) in group {
                    results.push((at, self.send(line, message).await));
                }
                results
            })
            .buffer_unordered(BATCH_CONCURRENCY);
        while let Some(group) = done.next().await {
            for (at, result) in group {
                results[at] = batch_result(result);
            }
        }
        Ok(results)
    }

    async fn users_of_line(&self, line: &str, user_ids: Vec<String>) -> Result<Vec<String>, Error> {
        let user_ids = unique_ids(user_ids)?;
        let owners = self.lines.of_users(&user_ids).await?;
        Ok(user_ids.into_iter().filter(|id| owners.get(id).is_some_and(|owner| owner == line)).collect())
    }
}

/// What must stay in order: the conversation, by whichever name it was given.
fn destination(message: &SendMessageRequest) -> String {
    if message.conversation_id.is_empty() {
        ids::direct_conversation_id(&message.sender_id, &message.recipient_id).unwrap_or_default()
    } else {
        message.conversation_id.clone()
    }
}

fn draft(message: SendMessageRequest) -> Result<Draft, Error> {
    if message.content_json.len() > 2 * MAX_CONTENT_BYTES {
        return Err(Error::invalid("content_json: more than 65536 bytes as JSON").with_reason(reason::TOO_LARGE));
    }
    let content =
        RawValue::from_string(message.content_json).map_err(|e| Error::invalid(format!("content_json: {e}")))?;
    Ok(Draft {
        door: Door::Line,
        sender_id: message.sender_id,
        target: Target::of(Some(message.conversation_id), Some(message.recipient_id))?,
        client_msg_id: message.client_msg_id,
        kind: message.r#type,
        content,
        mentions: message.mentions,
        ext: message.ext,
    })
}

fn sent(receipt: Receipt) -> SendMessageResponse {
    SendMessageResponse {
        message_id: receipt.message_id,
        conversation_id: receipt.conversation_id,
        seq: receipt.seq,
        sent_at: receipt.sent_at,
        duplicate: receipt.duplicate,
    }
}

fn batch_result(result: Result<SendMessageResponse, Error>) -> BatchSendResult {
    match result {
        Ok(sent) => BatchSendResult { sent: Some(sent), ..Default::default() },
        Err(error) => BatchSendResult {
            sent: None,
            code: error.code_name().to_owned(),
            reason: error.reason.map(std::borrow::Cow::into_owned).unwrap_or_default(),
            detail: error.detail.into_owned(),
        },
    }
}

/// 1 to 100 valid ids, each once.
fn unique_ids(mut user_ids: Vec<String>) -> Result<Vec<String>, Error> {
    if user_ids.is_empty() || user_ids.len() > MAX_USERS {
        return Err(Error::invalid(format!("user_ids: {}, give 1 to {MAX_USERS}", user_ids.len())));
    }
    for user_id in &user_ids {
        ids::check_id("user_ids", user_id)?;
    }
    let mut seen = std::collections::HashSet::new();
    user_ids.retain(|id| seen.insert(id.clone()));
    Ok(user_ids)
}

/// Counts an outcome and gives it its gRPC form.
fn answer<T>(call: &'static str, result: Result<T, Error>) -> Result<Response<T>, Status> {
    let code = result.as_ref().map_or_else(Error::code_name, |_| "OK");
    metrics::counter!("kith_business_calls_total", "call" => call, "code" => code).increment(1);
    result.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl ImBusiness for Business {
    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        let line = self.lines.of(&request)?;
        answer("SendMessage", self.send(&line, request.into_inner()).await)
    }

    async fn batch_send_messages(
        &self,
        request: Request<BatchSendMessagesRequest>,
    ) -> Result<Response<BatchSendMessagesResponse>, Status> {
        let line = self.lines.of(&request)?;
        let results = self.send_batch(&line, request.into_inner().messages).await;
        answer("BatchSendMessages", results.map(|results| BatchSendMessagesResponse { results }))
    }

    async fn issue_token(&self, request: Request<IssueTokenRequest>) -> Result<Response<IssueTokenResponse>, Status> {
        let line = self.lines.of(&request)?;
        answer("IssueToken", self.issue(&line, request.into_inner()).await)
    }

    async fn upsert_users(
        &self,
        request: Request<UpsertUsersRequest>,
    ) -> Result<Response<UpsertUsersResponse>, Status> {
        let line = self.lines.of(&request)?;
        let results = users::upsert(&self.lines, &self.storage, &line, request.into_inner().users).await;
        answer("UpsertUsers", results.map(|results| UpsertUsersResponse { results }))
    }

    async fn get_users(&self, request: Request<GetUsersRequest>) -> Result<Response<GetUsersResponse>, Status> {
        let line = self.lines.of(&request)?;
        let found = async {
            let user_ids = unique_ids(request.into_inner().user_ids)?;
            let found = self.storage.get_users(user_ids).await?;
            Ok(found.into_iter().filter(|u| u.line == line).map(users::shown).collect())
        };
        answer("GetUsers", found.await.map(|users| GetUsersResponse { users }))
    }

    async fn list_messages(
        &self,
        request: Request<ListMessagesRequest>,
    ) -> Result<Response<ListMessagesResponse>, Status> {
        let line = self.lines.of(&request)?;
        let request = request.into_inner();
        let listed = async {
            self.lines.check_conversation(&line, &request.conversation_id).await?;
            let found = self
                .storage
                .list_messages(storage_v1::ListMessagesRequest {
                    conversation_id: request.conversation_id,
                    user_id: String::new(),
                    before_seq: request.before_seq,
                    after_seq: request.after_seq,
                    limit: request.limit,
                })
                .await?;
            Ok(ListMessagesResponse { messages: found.messages, has_more: found.has_more })
        };
        answer("ListMessages", listed.await)
    }

    async fn list_conversations(
        &self,
        request: Request<ListConversationsRequest>,
    ) -> Result<Response<ListConversationsResponse>, Status> {
        let line = self.lines.of(&request)?;
        let ListConversationsRequest { user_id, limit, cursor } = request.into_inner();
        let listed = self.lines.check_user(&line, "user_id", &user_id).and_then(|()| {
            let user_id = user_id.clone();
            self.storage.list_conversations(storage_v1::ListConversationsRequest { user_id, limit, cursor })
        });
        answer("ListConversations", listed.await.map(summaries))
    }

    async fn query_presence(
        &self,
        request: Request<QueryPresenceRequest>,
    ) -> Result<Response<QueryPresenceResponse>, Status> {
        let line = self.lines.of(&request)?;
        let found = async {
            let own = self.users_of_line(&line, request.into_inner().user_ids).await?;
            self.sessions.presence(&self.storage, own).await
        };
        answer("QueryPresence", found.await.map(presence))
    }
}

fn presence(found: Vec<kith_proto::sessions::v1::Presence>) -> QueryPresenceResponse {
    let shown = found.into_iter().map(|p| {
        let platforms =
            p.platforms().filter_map(kith_proto::chat::v1::Platform::known).map(|known| known.to_string()).collect();
        UserPresence { online: p.online, platforms, last_seen: p.last_seen, user_id: p.user_id }
    });
    QueryPresenceResponse { presence: shown.collect() }
}

fn summaries(listed: storage_v1::ListConversationsResponse) -> ListConversationsResponse {
    let summary = |c: storage_v1::Conversation| {
        let error = c.error.map(Error::from);
        ConversationSummary {
            code: error.as_ref().map(|e| e.code_name().to_owned()).unwrap_or_default(),
            detail: error.map(|e| e.detail.into_owned()).unwrap_or_default(),
            conversation_id: c.conversation_id,
            kind: c.kind,
            seq: c.seq,
            read_seq: c.read_seq,
            unread: c.unread,
            last_message: c.last_message,
            updated_at: c.updated_at,
        }
    };
    ListConversationsResponse {
        conversations: listed.conversations.into_iter().map(summary).collect(),
        next_cursor: listed.next_cursor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sender: &str, recipient: &str) -> SendMessageRequest {
        SendMessageRequest {
            sender_id: sender.into(),
            recipient_id: recipient.into(),
            client_msg_id: "c".into(),
            r#type: kinds::MessageType::Text.to_string(),
            content_json: r#"{"text":"hi"}"#.into(),
            ..Default::default()
        }
    }

    #[test]
    fn both_names_of_a_conversation_are_one_place_in_a_batch() {
        let by_id = SendMessageRequest { conversation_id: "d:a:b".into(), ..message("a", "") };
        assert_eq!(destination(&message("b", "a")), destination(&by_id));
    }

    #[test]
    fn content_that_is_not_json_is_refused_by_its_field() {
        let broken = SendMessageRequest { content_json: "{".into(), ..message("a", "b") };
        assert!(draft(broken).unwrap_err().detail.starts_with("content_json:"));
        let large = SendMessageRequest { content_json: "x".repeat(200_000), ..message("a", "b") };
        assert_eq!(draft(large).unwrap_err().reason.as_deref(), Some(reason::TOO_LARGE));
    }

    #[test]
    fn ids_are_bounded_and_counted_once() {
        assert!(unique_ids(vec![]).is_err());
        assert!(unique_ids(vec!["x".into(); 101]).is_err());
        assert_eq!(unique_ids(vec!["a".into(), "b".into(), "a".into()]).unwrap(), ["a", "b"]);
    }
}
