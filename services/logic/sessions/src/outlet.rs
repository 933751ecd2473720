//! The way down to one gateway: a bounded queue of deliveries, and beside it kicks, which overtake.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures::{FutureExt, Stream, stream};
use kith_proto::sessions::v1::{AttachResponse, Delivery, attach_response::Frame};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Deliveries that wait for one gateway, at most, in number and bytes.
const MAX_DELIVERIES: usize = 8_192;
const MAX_BYTES: usize = 16 << 20;
/// Kicks that wait for one gateway; a gateway that does not take that many is cut off.
const MAX_CONTROL: usize = 4_096;
/// What a delivery takes beside itself, about.
const DELIVERY_BYTES: usize = 256;

/// The sending end.
pub(crate) struct Outlet {
    deliveries: mpsc::Sender<(AttachResponse, usize)>,
    control: mpsc::Sender<AttachResponse>,
    bytes: Arc<AtomicUsize>,
    end: CancellationToken,
}

/// A way down, and the stream that gRPC sends.
pub(crate) fn outlet(
    end: CancellationToken,
) -> (Outlet, impl Stream<Item = Result<AttachResponse, Status>> + Send + 'static) {
    let (deliveries, mut waiting) = mpsc::channel(MAX_DELIVERIES);
    let (control, mut first) = mpsc::channel(MAX_CONTROL);
    let bytes = Arc::new(AtomicUsize::new(0));
    let (taken, mut ended) = (bytes.clone(), Box::pin(end.clone().cancelled_owned()));
    let frames = stream::poll_fn(move |cx: &mut Context<'_>| {
        if ended.poll_unpin(cx).is_ready() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = first.poll_recv(cx) {
            return Poll::Ready(frame.map(Ok));
        }
        waiting.poll_recv(cx).map(|delivery: Option<(AttachResponse, usize)>| {
            delivery.map(|(frame, weight)| {
                taken.fetch_sub(weight, Ordering::Relaxed);
                Ok(frame)
            })
        })
    });
    (Outlet { deliveries, control, bytes, end }, frames)
}

impl Outlet {
    /// Queues a delivery; false when there is no room. Never waits.
    pub(crate) fn deliver(&self, delivery: Delivery) -> bool {
        let weight = weight(&delivery);
        if self.bytes.fetch_add(weight, Ordering::Relaxed) + weight <= MAX_BYTES {
            let frame = AttachResponse { frame: Some(Frame::Delivery(delivery)) };
            if self.deliveries.try_send((frame, weight)).is_ok() {
                return true;
            }
        }
        self.bytes.fetch_sub(weight, Ordering::Relaxed);
        false
    }

    /// Whether the stream is over, though nobody may have noticed yet.
    pub(crate) fn is_over(&self) -> bool {
        self.deliveries.is_closed() || self.end.is_cancelled()
    }

    /// Queues a frame ahead of all deliveries. A gateway that takes none is cut off: it reports its sessions anew.
    pub(crate) fn control(&self, frame: Frame) {
        if self.control.try_send(AttachResponse { frame: Some(frame) }).is_err() {
            self.end.cancel();
        }
    }

    /// Ends the stream.
    pub(crate) fn end(&self) {
        self.end.cancel();
    }
}

fn weight(delivery: &Delivery) -> usize {
    delivery.encoded_len() + DELIVERY_BYTES
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use kith_proto::{
        chat::v1::Message,
        sessions::v1::{
            attach_response::Kick,
            delivery::{Messages, Payload},
        },
    };

    use super::*;

    fn delivery(bytes: usize) -> Delivery {
        let message = Message { content: vec![0; bytes].into(), ..Message::default() };
        Delivery {
            session_ids: vec!["s".to_owned()],
            payload: Some(Payload::Messages(Messages { messages: vec![message], ..Messages::default() })),
        }
    }

    #[tokio::test]
    async fn a_kick_overtakes_the_deliveries_and_a_full_queue_refuses() {
        let (outlet, frames) = outlet(CancellationToken::new());
        let mut accepted = 0;
        while outlet.deliver(delivery(64 << 10)) {
            accepted += 1;
        }
        assert!((200..256).contains(&accepted), "{accepted}: bounded in bytes");
        outlet.control(Frame::Kick(Kick::default()));
        let mut frames = Box::pin(frames);
        assert!(matches!(frames.next().await.unwrap().unwrap().frame, Some(Frame::Kick(_))));
        assert!(matches!(frames.next().await.unwrap().unwrap().frame, Some(Frame::Delivery(_))));
        assert!(outlet.deliver(delivery(64 << 10)), "what was sent makes room");
        outlet.end();
        assert!(frames.next().await.is_none());
    }
}
