//! The short connection: typed calls of the HTTP API with deadlines, and sends that are retried with the same client_msg_id.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use kith_contract::problem::MEDIA_TYPE;
use kith_kit::backoff::Backoff;
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    error::ClientError,
    model::{Conversation, Conversations, Draft, History, Message, Position, Problem, Read, Sent, Sync},
    trust::Trust,
};

/// One request, the answer read included.
const DEADLINE: Duration = Duration::from_secs(8);
/// First pause between two tries; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// An answer as it came, for tests that look at status and headers.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `content-type`.
    pub content_type: String,
    /// `retry-after`, seconds.
    pub retry_after: Option<Duration>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value, ClientError> {
        decode(&self.body)
    }

    /// The body as a problem document.
    pub fn problem(&self) -> Result<Problem, ClientError> {
        decode(&self.body)
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body)
        .map_err(|e| ClientError::Contract(format!("{e}: {}", String::from_utf8_lossy(&body[..body.len().min(400)]))))
}

/// A page of history to ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Page {
    /// Only older ones.
    pub before: Option<u64>,
    /// Only newer ones.
    pub after: Option<u64>,
    /// At most 200.
    pub limit: Option<u32>,
}

/// A user's calls to one API address. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Api {
    base: String,
    token: String,
    http: reqwest::Client,
    trust: Trust,
}

impl Api {
    /// For `base` (`http://host:port`) with a token.
    pub fn new(base: &str, token: impl Into<String>) -> Result<Self, ClientError> {
        Self::trusting(base, token, Trust::nobody())
    }

    /// For `base` (`https://host:port`, too) with a token.
    pub fn trusting(base: &str, token: impl Into<String>, trust: Trust) -> Result<Self, ClientError> {
        let http = client(None, &trust)?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), token: token.into(), http, trust })
    }

    /// For `base` without a token, with connections of their own that come from an address of this machine.
    pub fn from_address(base: &str, from: IpAddr) -> Result<Self, ClientError> {
        let (trust, base) = (Trust::nobody(), base.trim_end_matches('/').to_owned());
        Ok(Self { base, token: String::new(), http: client(Some(from), &trust)?, trust })
    }

    /// The same connections for another user.
    #[must_use]
    pub fn with_token(&self, token: impl Into<String>) -> Self {
        Self { token: token.into(), ..self.clone() }
    }

    /// The token that calls carry.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Whose certificates it trusts.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Any request, with the token unless it is empty.
    pub async fn raw(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer, ClientError> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.finish(request).await
    }

    /// A request whose body is no JSON, for tests of bad input.
    pub async fn raw_body(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<Answer, ClientError> {
        let request = self.http.request(method, format!("{}{path}", self.base));
        self.finish(request.header("content-type", kind).body(body)).await
    }

    async fn finish(&self, mut request: reqwest::RequestBuilder) -> Result<Answer, ClientError> {
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        let unanswered = |e: reqwest::Error| ClientError::Unanswered(chain(&e));
        let response = request.send().await.map_err(unanswered)?;
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (status, content_type) = (response.status().as_u16(), header("content-type").unwrap_or_default());
        let retry_after = header("retry-after").and_then(|v| v.parse().ok()).map(Duration::from_secs);
        let body = response.bytes().await.map_err(unanswered)?.to_vec();
        Ok(Answer { status, content_type, retry_after, body })
    }

    /// A call whose success is decoded and whose refusal becomes an error.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, ClientError> {
        let answer = self.raw(method, path, body).await?;
        if (200..300).contains(&answer.status) {
            // Calls without an answer of their own may come back empty.
            return decode(if answer.body.is_empty() { b"null" } else { &answer.body });
        }
        // A proxy or load balancer in between answers in its own words.
        if answer.content_type.starts_with(MEDIA_TYPE) {
            let problem = Box::new(answer.problem()?);
            return Err(ClientError::Refused { problem, retry_after: answer.retry_after });
        }
        if answer.status >= StatusCode::BAD_GATEWAY.as_u16() {
            return Err(ClientError::Unanswered(format!("status {}", answer.status)));
        }
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        Err(ClientError::Contract(format!("status {} without a problem document: {text}", answer.status)))
    }

    /// POST /v1/messages, once.
    pub async fn send(&self, draft: &Draft) -> Result<Sent, ClientError> {
        let body = serde_json::to_value(draft).map_err(|e| ClientError::Contract(e.to_string()))?;
        self.call(Method::POST, "/v1/messages", Some(body)).await
    }

    /// Sends until it is stored, refused for good, or `deadline` is over; every try has the same client_msg_id.
    pub async fn send_until_stored(&self, draft: &Draft, deadline: Duration) -> Result<Sent, ClientError> {
        retried(deadline, || self.send(draft)).await
    }

    /// GET /v1/conversations/{id}/messages
    pub async fn history(&self, conversation: &str, page: Page) -> Result<History, ClientError> {
        let mut query = Vec::new();
        for (name, value) in
            [("before_seq", page.before), ("after_seq", page.after), ("limit", page.limit.map(u64::from))]
        {
            if let Some(value) = value {
                query.push(format!("{name}={value}"));
            }
        }
        let path = format!("/v1/conversations/{conversation}/messages?{}", query.join("&"));
        self.call(Method::GET, path.trim_end_matches('?'), None).await
    }

    /// All messages of a conversation that the caller may see, page by page, each page retried within `deadline` in all.
    pub async fn whole_history(&self, conversation: &str, deadline: Duration) -> Result<Vec<Message>, ClientError> {
        let end = Instant::now() + deadline;
        let mut all: Vec<Message> = Vec::new();
        loop {
            let page = Page { after: Some(all.last().map_or(0, |m| m.seq)), limit: Some(200), ..Page::default() };
            let left = end.saturating_duration_since(Instant::now());
            let page = retried(left, || self.history(conversation, page)).await?;
            let more = page.has_more;
            if more && page.messages.is_empty() {
                return Err(ClientError::Contract(format!("{conversation}: an empty page that says has_more")));
            }
            all.extend(page.messages);
            if !more {
                return Ok(all);
            }
        }
    }

    /// GET /v1/conversations
    pub async fn conversations(&self, limit: u32, cursor: Option<&str>) -> Result<Conversations, ClientError> {
        let cursor = cursor.map(|c| format!("&cursor={c}")).unwrap_or_default();
        self.call(Method::GET, &format!("/v1/conversations?limit={limit}{cursor}"), None).await
    }

    /// GET /v1/conversations/{id}
    pub async fn conversation(&self, id: &str) -> Result<Conversation, ClientError> {
        self.call(Method::GET, &format!("/v1/conversations/{id}"), None).await
    }

    /// POST /v1/conversations/{id}/read
    pub async fn read(&self, conversation: &str, seq: u64) -> Result<Read, ClientError> {
        let body = json!({"seq": seq.to_string()});
        self.call(Method::POST, &format!("/v1/conversations/{conversation}/read"), Some(body)).await
    }

    /// POST /v1/ack
    pub async fn ack(&self, positions: &[Position]) -> Result<Value, ClientError> {
        self.call(Method::POST, "/v1/ack", Some(json!({"acks": positions}))).await
    }

    /// POST /v1/sync
    pub async fn sync(&self, cursors: &BTreeMap<String, u64>, limit: u32) -> Result<Sync, ClientError> {
        let cursors: BTreeMap<_, _> = cursors.iter().map(|(id, seq)| (id, seq.to_string())).collect();
        self.call(Method::POST, "/v1/sync", Some(json!({"cursors": cursors, "limit": limit}))).await
    }
}

fn client(from: Option<IpAddr>, trust: &Trust) -> Result<reqwest::Client, ClientError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(trust.tls(&["h2", "http/1.1"])?)
        .local_address(from)
        .timeout(DEADLINE)
        // A lost first packet is sent again after one second, and after three.
        .connect_timeout(Duration::from_secs(5))
        // What is tested is on this machine.
        .no_proxy()
        .pool_max_idle_per_host(256)
        .tcp_nodelay(true)
        .build()
        .map_err(|e| ClientError::Contract(chain(&e)))
}

/// The text of an error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Repeats what the contract says may be repeated, with back-off, jitter and an end.
pub async fn retried<T, F, Fut>(deadline: Duration, mut call: F) -> Result<T, ClientError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, ClientError>>,
{
    let end = Instant::now() + deadline;
    let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
    loop {
        match call().await {
            Err(error) if error.is_retryable() => {
                let wait = backoff.after_refusal(error.retry_after());
                if Instant::now() + wait >= end {
                    return Err(error);
                }
                tokio::time::sleep(wait).await;
            }
            done => return done,
        }
    }
}
