//! Appends on one stream to each instance of storage: what callers ask for meanwhile shares a frame, and so do the answers. On a call of
//! its own an append costs both sides about three times the work.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kith_proto::{
    chat::v1::Receipt,
    storage::v1::{
        AppendItem, AppendRequest, AppendResult, AppendStreamRequest, AppendStreamResponse, append_result,
        messages_client::MessagesClient,
    },
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use kith_rpc::{
    client::{Dialer, MAX_MESSAGE_BYTES, Transport},
    error::Error,
    request,
};

/// Appends that wait for their frame; callers beyond it wait for room, within their own deadline.
const QUEUE: usize = 1_024;
/// Of one frame: storage takes 1,024 items and 4 MiB.
const MAX_ITEMS: usize = 256;
const MAX_BYTES: usize = 1 << 20;
/// Frames between this task and the connection.
const FRAMES: usize = 2;

/// What an append came to.
type Answer = Result<Receipt, Error>;

/// One append on its way.
struct Order {
    append: AppendRequest,
    timeout: Duration,
    request_id: String,
    answer: oneshot::Sender<Answer>,
}

/// The streams, by instance. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Appends(Arc<Mutex<HashMap<String, mpsc::Sender<Order>>>>);

impl Appends {
    /// Sends `append` to the instance at `address` and waits for its answer. A lost stream is UNAVAILABLE: the outcome is unknown then.
    /// The caller bounds the wait; `timeout` is what storage is told.
    pub(crate) async fn append(
        &self,
        dialer: &Dialer,
        address: &str,
        append: AppendRequest,
        timeout: Duration,
    ) -> Answer {
        let request_id = request::current().map(|id| id.as_ref().to_owned()).unwrap_or_default();
        let (answer, answered) = oneshot::channel();
        let order = Order { append, timeout, request_id, answer };
        if let Err(mpsc::error::SendError(_)) = self.way(dialer, address).send(order).await {
            return Err(lost());
        }
        answered.await.unwrap_or_else(|_| Err(lost()))
    }

    /// The stream to an instance; opened when there is none or it has ended.
    fn way(&self, dialer: &Dialer, address: &str) -> mpsc::Sender<Order> {
        let mut ways = self.0.lock();
        if let Some(way) = ways.get(address)
            && !way.is_closed()
        {
            return way.clone();
        }
        ways.retain(|_, way| !way.is_closed());
        let (way, orders) = mpsc::channel(QUEUE);
        ways.insert(address.to_owned(), way.clone());
        tokio::spawn(carry(dialer.channel(address), orders));
        way
    }
}

/// The stream is over; its instance may live all the same.
fn lost() -> Error {
    Error::unavailable("the stream to storage ended before the answer")
}

/// Carries orders over one stream until it ends; then everything that waits is told so, and the next append opens another.
async fn carry(transport: Transport, mut orders: mpsc::Receiver<Order>) {
    let mut waiting = Waiting::default();
    let error = match run(transport, &mut orders, &mut waiting).await {
        Ok(()) => return,
        // The fault of the stream, not of what was under way on it: each is asked for again.
        Err(error) if matches!(error.code, Code::Internal | Code::Unknown | Code::DeadlineExceeded) => lost(),
        Err(error) => error,
    };
    orders.close();
    let queued = std::iter::from_fn(|| orders.try_recv().ok()).map(|order| order.answer);
    for answer in waiting.open.into_values().chain(queued) {
        // The caller may have given up.
        drop(answer.send(Err(error.clone())));
    }
}

/// Returns when nobody can order any more.
async fn run(transport: Transport, orders: &mut mpsc::Receiver<Order>, waiting: &mut Waiting) -> Result<(), Error> {
    let (frames, outgoing) = mpsc::channel(FRAMES);
    let mut client = MessagesClient::new(transport).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut answers = client.append_stream(ReceiverStream::new(outgoing)).await?.into_inner();
    loop {
        // Answers are read while no frame can be sent: else both sides could wait for each other.
        let next = async {
            let room = frames.reserve().await.map_err(|_| lost())?;
            Ok::<_, Error>((room, orders.recv().await))
        };
        tokio::select! {
            next = next => {
                let (room, Some(first)) = next? else { return Ok(()) };
                room.send(waiting.frame(first, orders));
            }
            answer = answers.message() => match answer? {
                Some(AppendStreamResponse { results }) => results.into_iter().for_each(|r| waiting.settle(r)),
                None => return Err(lost()),
            },
        }
    }
}

/// What has been sent and is not answered, by the id of its item.
#[derive(Default)]
struct Waiting {
    open: HashMap<u64, oneshot::Sender<Answer>>,
    last: u64,
}

impl Waiting {
    /// A frame of `first` and of what waits behind it, as far as it fits.
    fn frame(&mut self, first: Order, orders: &mut mpsc::Receiver<Order>) -> AppendStreamRequest {
        let mut items = Vec::with_capacity(1 + orders.len().min(MAX_ITEMS));
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(order) = next {
            bytes += order.append.draft.as_ref().map_or(0, |d| d.content.len());
            items.push(self.item(order));
            next = if items.len() < MAX_ITEMS && bytes < MAX_BYTES { orders.try_recv().ok() } else { None };
        }
        AppendStreamRequest { items }
    }

    fn item(&mut self, order: Order) -> AppendItem {
        self.last += 1;
        self.open.insert(self.last, order.answer);
        AppendItem {
            id: self.last,
            append: Some(order.append),
            timeout_ms: u32::try_from(order.timeout.as_millis()).unwrap_or(u32::MAX).max(1),
            request_id: order.request_id,
        }
    }

    fn settle(&mut self, AppendResult { id, result }: AppendResult) {
        let Some(answer) = self.open.remove(&id) else {
            tracing::warn!(id, "storage answered an append that nobody waits for");
            return;
        };
        let outcome = match result {
            Some(append_result::Result::Receipt(receipt)) => Ok(receipt),
            Some(append_result::Result::Error(error)) => Err(error.into()),
            None => Err(Error::internal("storage answered an append without a result")),
        };
        // The caller may have given up.
        drop(answer.send(outcome));
    }
}

#[cfg(test)]
mod tests {
    use kith_proto::{chat::v1::Draft, storage::v1::ItemError};

    use super::*;

    fn order(bytes: usize) -> (Order, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let draft = Draft { content: vec![b'x'; bytes].into(), ..Draft::default() };
        let append = AppendRequest { draft: Some(draft), ..AppendRequest::default() };
        (Order { append, timeout: Duration::from_secs(2), request_id: "r".to_owned(), answer }, answered)
    }

    async fn frames(sizes: &[usize]) -> Vec<usize> {
        let (send, mut orders) = mpsc::channel(QUEUE);
        for bytes in sizes {
            send.send(order(*bytes).0).await.unwrap();
        }
        let (mut waiting, mut counts) = (Waiting::default(), Vec::new());
        while let Ok(first) = orders.try_recv() {
            counts.push(waiting.frame(first, &mut orders).items.len());
        }
        counts
    }

    #[tokio::test]
    async fn what_waits_shares_a_frame_within_storage_s_bounds() {
        assert_eq!(frames(&[100; 3]).await, [3]);
        assert_eq!(frames(&[1; MAX_ITEMS + 44]).await, [MAX_ITEMS, 44]);
        assert_eq!(frames(&[64 << 10; 20]).await, [16, 4]);
    }

    #[tokio::test]
    async fn answers_find_their_callers_whatever_their_order() {
        let (send, mut orders) = mpsc::channel(QUEUE);
        let (first, mut one) = order(1);
        let (second, mut two) = order(1);
        send.send(second).await.unwrap();
        let mut waiting = Waiting::default();
        let ids: Vec<_> = waiting.frame(first, &mut orders).items.iter().map(|i| i.id).collect();
        let refused = ItemError {
            code: Code::ResourceExhausted as i32,
            reason: "OUTBOX".to_owned(),
            retry_after_ms: 250,
            ..ItemError::default()
        };
        waiting.settle(AppendResult { id: ids[1], result: Some(append_result::Result::Error(refused)) });
        assert!(one.try_recv().is_err());
        let error = two.try_recv().unwrap().unwrap_err();
        assert_eq!((error.code, error.reason.as_deref()), (Code::ResourceExhausted, Some("OUTBOX")));
        assert_eq!(error.retry_after, Some(Duration::from_millis(250)), "says when to come back");
        let receipt = Receipt { seq: 7, ..Receipt::default() };
        waiting.settle(AppendResult { id: ids[0], result: Some(append_result::Result::Receipt(receipt)) });
        assert_eq!(one.try_recv().unwrap().unwrap().seq, 7);
        waiting.settle(AppendResult { id: ids[0], result: None });
        assert!(waiting.open.is_empty());
    }
}
