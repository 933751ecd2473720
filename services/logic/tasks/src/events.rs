//! The handler of `<cluster>.events`: reads, looks up, plans, and hands over in order.

use futures::{StreamExt, stream};
use kith_kit::kafka::consumer::{Event, Handler, Ticket};

use crate::{
    audience::Audiences,
    change::{self, Change},
    deliver::Deliverer,
    plan::{self, Needs},
};

/// Look-ups at once for one batch of one partition.
const LOOKUPS: usize = 16;

/// Delivers what happens to those who are online.
pub struct Online {
    audiences: Audiences,
    deliverer: Deliverer,
}

impl Online {
    /// Looks up with `audiences`, delivers with `deliverer`.
    pub fn new(audiences: Audiences, deliverer: Deliverer) -> Self {
        Self { audiences, deliverer }
    }

    /// Asks for the audiences of a batch side by side, before it is worked off one by one. Those that change within the batch are asked
    /// for when it is their turn.
    async fn prefetch(&self, changes: &[(Change, Ticket)]) {
        let mut changed: Vec<&str> = Vec::new();
        let mut wanted: Vec<Needs> = Vec::new();
        for (change, _) in changes {
            let needs = plan::needs(change);
            if let Needs::Members(conversation) = &needs
                && !changed.contains(&conversation.as_str())
                && !self.audiences.is_known(&needs)
                && !wanted.contains(&needs)
            {
                wanted.push(needs);
            }
            if let Change::Conversation(change) = change
                && change.members_changed
            {
                changed.push(&change.conversation);
            }
        }
        if wanted.len() > 1 {
            stream::iter(wanted)
                .for_each_concurrent(LOOKUPS, |needs| async { drop(self.audiences.find(needs).await) })
                .await;
        }
    }
}

impl Handler for Online {
    async fn handle(&self, events: Vec<Event>) {
        let mut changes = Vec::with_capacity(events.len());
        for event in events {
            match change::read(&event.kind, &event.key, &event.data) {
                Ok(Change::Ignored) => event.ticket.done(),
                Ok(change) => changes.push((change, event.ticket)),
                Err(error) => skip(&event, &error),
            }
        }
        self.prefetch(&changes).await;
        for (change, ticket) in changes {
            if let Change::Conversation(change) = &change
                && change.members_changed
            {
                self.audiences.forget(&change.conversation).await;
            }
            let audience = self.audiences.find(plan::needs(&change)).await;
            match plan::plan(change, &audience) {
                Some(planned) => self.deliverer.push(planned, ticket).await,
                None => ticket.done(),
            }
        }
    }

    fn assigned(&self, _partition: i32) {
        self.audiences.forget_all();
    }
}

/// An event that no attempt can read: counted, told and passed over.
pub(crate) fn skip(event: &Event, error: &change::Unreadable) {
    metrics::counter!("kith_tasks_events_skipped_total", "reason" => "unreadable").increment(1);
    tracing::error!(
        kind = event.kind, key = event.key, partition = event.partition, offset = event.ticket.offset(), %error,
        "event skipped: it can never be read"
    );
    event.ticket.done();
}
