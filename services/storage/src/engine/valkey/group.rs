//! Groups of calls to one primary: those that gather, and those that are under way.

use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use kith_kit::valkey::ValkeyError;
use redis::Value;
use tokio::time::Instant;

use super::node::Item;

/// Calls in one group, and the bytes at which a group is full.
const GROUP: usize = 512;
const GROUP_BYTES: usize = 1 << 20;
/// Groups under way at once, and the calls that make another one worth it: fewer rather share the next.
pub(super) const DEPTH: usize = 2;
pub(super) const OVERLAP: usize = 64;
/// How long a group may take in all once those before it are answered; longer than WAIT, so that a slow replica is told from a silent
/// primary.
pub(super) const ANSWER: Duration = Duration::from_millis(2_500);
/// A group that is not answered after this, and after three times what groups take, gets a nudge, and again, a few times. On a busy machine
/// all groups take longer, and nudges would only add to what it has to do.
const NUDGE: Duration = Duration::from_millis(5);
const NUDGES: u32 = 3;

pub(super) type Answer = Result<Vec<Value>, ValkeyError>;

/// Groups in the order in which they were sent.
#[derive(Default)]
pub(super) struct UnderWay(pub(super) VecDeque<Group>);

pub(super) struct Group {
    pub(super) items: Vec<Item>,
    pub(super) sent: Instant,
    /// When it became the first of those under way.
    pub(super) first_since: Instant,
    pub(super) nudged: u32,
    pub(super) answer: BoxFuture<'static, Answer>,
    pub(super) answered: Option<Answer>,
}

impl UnderWay {
    /// The answer to the first group; pending while there is none.
    pub(super) async fn answered(&mut self) -> Answer {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Looks at the groups in their order: the first look at each puts it on the wire.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        for group in &mut self.0 {
            if group.answered.is_none()
                && let Poll::Ready(answer) = group.answer.poll_unpin(cx)
            {
                group.answered = Some(answer);
            }
        }
        match self.0.front_mut().and_then(|group| group.answered.take()) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        }
    }

    pub(super) fn take_first(&mut self) -> Option<Group> {
        let first = self.0.pop_front();
        if let Some(next) = self.0.front_mut() {
            next.first_since = Instant::now();
        }
        first
    }

    /// When the first group has to be answered.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.front().map(|group| group.first_since + ANSWER)
    }

    /// When the first group gets its next nudge.
    pub(super) fn nudge_at(&self, usual: Duration) -> Option<Instant> {
        let group = self.0.front().filter(|group| group.nudged < NUDGES)?;
        Some(group.first_since + NUDGE.max(usual * 3) * (group.nudged + 1))
    }
}

/// Calls that are not sent yet.
pub(super) struct Gathered {
    pub(super) items: Vec<Item>,
    pub(super) bytes: usize,
}

impl Gathered {
    pub(super) fn add(&mut self, item: Item) {
        self.bytes += item.bytes;
        self.items.push(item);
    }

    pub(super) fn is_full(&self) -> bool {
        self.items.len() >= GROUP || self.bytes >= GROUP_BYTES
    }

    /// What goes next: of many calls one half, so that their callers are busy with its answers while the engine works on the other half.
    /// All in one group, they would take turns.
    pub(super) fn take(&mut self) -> Vec<Item> {
        let all = self.items.len();
        let rest = self.items.split_off(if all < 2 * OVERLAP { all } else { all / 2 });
        self.bytes = rest.iter().map(|item| item.bytes).sum();
        std::mem::replace(&mut self.items, rest)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::sync::oneshot;

    use super::*;

    fn group(answer: BoxFuture<'static, Answer>) -> Group {
        let now = Instant::now();
        Group { items: Vec::new(), sent: now, first_since: now, nudged: 0, answer, answered: None }
    }

    #[tokio::test]
    async fn groups_go_out_and_are_answered_in_the_order_in_which_they_were_sent() {
        let (sent, mut answers) = (Arc::new(Mutex::new(Vec::new())), Vec::new());
        let mut under_way = UnderWay::default();
        for n in 0..DEPTH as i64 {
            let (answer, answered) = oneshot::channel();
            answers.push(answer);
            let sent = sent.clone();
            let on_the_wire = async move {
                sent.lock().push(n);
                Ok(vec![Value::Int(answered.await.unwrap())])
            };
            under_way.0.push_back(group(on_the_wire.boxed()));
        }
        assert!(under_way.answered().now_or_never().is_none());
        assert_eq!(*sent.lock(), [0, 1]);
        answers.pop().unwrap().send(1).unwrap();
        assert!(under_way.answered().now_or_never().is_none(), "the second has to wait for the first");
        answers.pop().unwrap().send(0).unwrap();
        for n in 0..DEPTH as i64 {
            let answer = under_way.answered().now_or_never().unwrap().unwrap();
            assert_eq!(answer, [Value::Int(n)]);
            under_way.take_first().unwrap();
        }
        assert!(under_way.answered().now_or_never().is_none() && under_way.deadline().is_none());
    }
}
