//! `kith.storage.v1.Messages`.

use std::{panic::AssertUnwindSafe, pin::Pin, task::Poll, time::Duration};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kith_proto::storage::v1::{
    AppendItem, AppendRequest, AppendResponse, AppendResult, AppendStreamRequest, AppendStreamResponse, EditRequest,
    EditResponse, ListAfterRequest, ListAfterResponse, ListMessagesRequest, ListMessagesResponse, ReactRequest,
    ReactResponse, RecallRequest, RecallResponse, append_result::Result as Outcome, messages_server::Messages,
};
use kith_rpc::{error::Error, server::panicked};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument;

use super::service;
use crate::core::Core;

/// Items of one stream under way; beyond it the stream is not read on.
const UNDER_WAY: usize = 1_024;
/// Items of one request, and results of one answer.
const MOST_ITEMS: usize = 1_024;
/// Answers that a slow caller has not taken.
const ANSWERS: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(5);

/// The core, and the end of the server: streams end then, when what is under way has been answered.
pub(super) struct Service(pub(super) Core, pub(super) CancellationToken);

service! {
    Messages for Service {
        type AppendStreamStream = Pin<Box<dyn Stream<Item = Result<AppendStreamResponse, Status>> + Send>>;

        async fn append(&self, request: Request<AppendRequest>) -> Result<Response<AppendResponse>, Status> {
            let outcome = self.0.append(request.into_inner()).await;
            super::respond("append", outcome.map(|receipt| AppendResponse { receipt: Some(receipt) }))
        }

        async fn append_stream(&self, request: Request<Streaming<AppendStreamRequest>>) -> Result<Response<Self::AppendStreamStream>, Status> {
            let (answers, out) = mpsc::channel(ANSWERS);
            tokio::spawn(serve(self.0.clone(), request.into_inner(), answers, self.1.clone()));
            Ok(Response::new(Box::pin(ReceiverStream::new(out))))
        }
    }
    list_messages(ListMessagesRequest) -> ListMessagesResponse { |r| r }
    list_after(ListAfterRequest) -> ListAfterResponse { |r| r }
    recall(RecallRequest) -> RecallResponse { |r| r }
    edit(EditRequest) -> EditResponse { |r| r }
    react(ReactRequest) -> ReactResponse { |r| r }
}

/// Reads a stream and answers its items as they commit, those together that commit together. Items are queued in the order in which
/// they came.
async fn serve(
    core: Core,
    mut requests: Streaming<AppendStreamRequest>,
    answers: mpsc::Sender<Result<AppendStreamResponse, Status>>,
    end: CancellationToken,
) {
    let mut under_way: FuturesUnordered<BoxFuture<'static, AppendResult>> = FuturesUnordered::new();
    let mut open = true;
    while open || !under_way.is_empty() {
        let mut results = Vec::new();
        tokio::select! {
            request = requests.next(), if open && under_way.len() < UNDER_WAY => match request {
                Some(Ok(request)) if request.items.len() > MOST_ITEMS => {
                    let detail = format!("items: {}, at most {MOST_ITEMS}", request.items.len());
                    // The caller breaks the contract: it may as well have gone.
                    drop(answers.send(Err(Error::invalid(detail).into())).await);
                    open = false;
                }
                Some(Ok(request)) => {
                    for item in request.items {
                        let mut one = one(core.clone(), item).boxed();
                        // The first look queues it, behind those before it.
                        match futures::poll!(&mut one) {
                            Poll::Ready(answer) => results.push(answer),
                            Poll::Pending => under_way.push(one),
                        }
                    }
                }
                // The caller has gone or has no more; what is under way is done all the same.
                Some(Err(_)) | None => open = false,
            },
            Some(answer) = under_way.next() => {
                results.push(answer);
                while results.len() < MOST_ITEMS && let Some(Some(answer)) = under_way.next().now_or_never() {
                    results.push(answer);
                }
            }
            // What is sent after this was not read: its sender hears of the end of the stream and asks another instance.
            () = end.cancelled(), if open => open = false,
            // All branches are off only when the loop is about to end.
            else => return,
        }
        if !results.is_empty() && answers.send(Ok(AppendStreamResponse { results })).await.is_err() {
            return;
        }
    }
}

async fn one(core: Core, item: AppendItem) -> AppendResult {
    let limit = if item.timeout_ms == 0 { TIMEOUT } else { Duration::from_millis(item.timeout_ms.into()) };
    let append = item.append.unwrap_or_default();
    let span = tracing::debug_span!("append", request_id = %item.request_id);
    let started = std::time::Instant::now();
    // A panic is this item's alone: the others share the stream.
    let append = AssertUnwindSafe(core.append(append).instrument(span)).catch_unwind();
    let outcome = match tokio::time::timeout(limit, append).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => Err(panicked("append", &*panic)),
        Err(_) => {
            Err(Error::new(Code::DeadlineExceeded, "not stored in time, or not known to be: retry with the same ids"))
        }
    };
    super::account("append", outcome.as_ref().err());
    metrics::histogram!("kith_storage_append_seconds").record(started.elapsed());
    let result = match outcome {
        Ok(receipt) => Outcome::Receipt(receipt),
        Err(error) => Outcome::Error(error.into()),
    };
    AppendResult { id: item.id, result: Some(result) }
}
