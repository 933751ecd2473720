//! The handler of `<cluster>.events`: reads, looks up, plans, and hands over in order.

use futures::{StreamExt, future::BoxFuture, stream};
use kith_clients::storage::Storage;
use kith_eventlog::{
    consumer::{Event, Handler, Ticket},
    origin::{Foreign, Stray, Verified},
};

use crate::{
    aside::Aside,
    audience::Audiences,
    change::{self, Change},
    deliver::Deliverer,
    pauses,
    plan::{self, Needs},
};

/// Look-ups at once for one batch of one partition.
const LOOKUPS: usize = 16;

/// Delivers what happens to those who are online.
pub struct Online {
    storage: Storage,
    audiences: Audiences,
    deliverer: Deliverer,
    aside: Aside,
}

impl Online {
    /// Asks `storage`, delivers with `deliverer`.
    pub fn new(storage: Storage, deliverer: Deliverer, aside: Aside) -> Self {
        Self { audiences: Audiences::new(storage.clone()), storage, deliverer, aside }
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
    type Item = Change;

    fn read(&self, record: &Verified) -> Result<Change, String> {
        change::read(&record.kind, &record.key, &record.data).map_err(|e| e.to_string())
    }

    fn newest(&self, stream: u32) -> BoxFuture<'static, u64> {
        Box::pin(newest(self.storage.clone(), stream))
    }

    fn set_aside(&self, record: Stray, why: &Foreign) {
        self.aside.put(record, why);
    }

    async fn handle(&self, events: Vec<Event<Change>>) {
        let mut changes = Vec::with_capacity(events.len());
        for Event { item, ticket, .. } in events {
            match item {
                Change::Ignored => ticket.done(),
                change => changes.push((change, ticket)),
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

/// Asks until storage answers. Without an answer nothing that is ahead of its turn is believed, so there is no end to it but the
/// caller's.
async fn newest(storage: Storage, partition: u32) -> u64 {
    let mut backoff = pauses();
    loop {
        match storage.get_version(partition).await {
            Ok(ver) => return ver,
            Err(error) => {
                metrics::counter!("kith_tasks_retries_total", "step" => "version").increment(1);
                tracing::warn!(partition, %error, "storage has not said how far a partition has come: asking again");
            }
        }
        backoff.pause().await;
    }
}
