//! Carries events out on a partition in batches, in version order: fields are read once a batch, each batch is one atomic write.

use std::collections::HashMap;

use bytes::Bytes;

use super::change::{self, Change, SeqGap, Unrestorable};
use crate::engine::{EngineError, Field, Op, Refusal, Restoring, Write};

/// Events of one batch, and the writes at which one is full: the engine does nothing else meanwhile.
const BATCH: usize = 256;
const BATCH_WRITES: usize = 2_048;
const BATCH_BYTES: usize = 1 << 20;

/// A record of the event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) ver: u64,
    /// The name of its kind.
    pub(crate) kind: String,
    pub(crate) key: String,
    pub(crate) data: Bytes,
}

/// What did not come back as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Flaw {
    Unrestored { ver: u64, why: Unrestorable },
    Gap { ver: u64, gap: SeqGap },
}

/// Restores one partition; events come in version order.
pub(crate) struct Restorer<R> {
    store: R,
    ver: u64,
    waiting: Vec<Logged>,
    waiting_bytes: usize,
    flaws: Vec<Flaw>,
}

impl<R: Restoring> Restorer<R> {
    /// The partition stands at `ver`.
    pub(crate) fn new(store: R, ver: u64) -> Self {
        Self { store, ver, waiting: Vec::new(), waiting_bytes: 0, flaws: Vec::new() }
    }

    /// Takes the next event; what is not above the version before is known.
    pub(crate) async fn take(&mut self, event: Logged) -> Result<(), EngineError> {
        if event.ver <= self.waiting.last().map_or(self.ver, |e| e.ver) {
            return Ok(());
        }
        self.waiting_bytes += event.data.len();
        self.waiting.push(event);
        if self.waiting.len() >= BATCH || self.waiting_bytes >= BATCH_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Writes what waits.
    pub(crate) async fn flush(&mut self) -> Result<(), EngineError> {
        let events = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let mut rest = events.as_slice();
        while !rest.is_empty() {
            let taken = match self.write(rest).await {
                // Something in the batch does not fit what is stored: each event alone shows which.
                Err(EngineError::DataLoss(_)) => self.write_alone(&rest[0]).await?,
                outcome => outcome?,
            };
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Brings the partition to `ver`, whatever lies between is lost.
    pub(crate) async fn finish(mut self, ver: u64) -> Result<(u64, Vec<Flaw>), EngineError> {
        self.flush().await?;
        if ver > self.ver {
            self.restore(ver, Vec::new()).await?;
        }
        Ok((self.ver, self.flaws))
    }

    /// What has been found so far.
    pub(crate) fn flaws(&mut self) -> Vec<Flaw> {
        std::mem::take(&mut self.flaws)
    }

    /// Writes as many of the events as make one batch, at least one; says how many.
    async fn write(&mut self, events: &[Logged]) -> Result<usize, EngineError> {
        let changes: Vec<Result<Change, Unrestorable>> =
            events.iter().map(|e| change::read(&e.kind, &e.key, &e.data)).collect();
        let mut fields: Vec<Field> = changes.iter().flatten().flat_map(|c| c.reads.iter().cloned()).collect();
        fields.sort_unstable_by(|a, b| (&a.key, &a.name).cmp(&(&b.key, &b.name)));
        fields.dedup();
        let values = if fields.is_empty() { Vec::new() } else { self.store.fields(fields.clone()).await? };
        let mut known: HashMap<Field, Option<Bytes>> = fields.into_iter().zip(values).collect();
        let (mut writes, mut flaws, mut taken) = (Vec::new(), Vec::new(), 0);
        for (event, change) in events.iter().zip(changes) {
            let decided = change.and_then(|change| {
                let values: Vec<Option<Bytes>> =
                    change.reads.iter().map(|field| known.get(field).cloned().flatten()).collect();
                change.decide(&values)
            });
            match decided {
                Ok(restored) => {
                    flaws.extend(restored.gap.map(|gap| Flaw::Gap { ver: event.ver, gap }));
                    remember(&mut known, &restored.writes);
                    writes.extend(restored.writes);
                }
                Err(why) => flaws.push(Flaw::Unrestored { ver: event.ver, why }),
            }
            taken += 1;
            if writes.len() >= BATCH_WRITES {
                break;
            }
        }
        let outcome = self.restore(events[taken - 1].ver, writes).await;
        // A batch that does not fit is tried again in parts; one whose answer was lost may be done.
        if !matches!(outcome, Err(EngineError::DataLoss(_))) {
            self.flaws.extend(flaws);
        }
        outcome.map(|()| taken)
    }

    async fn write_alone(&mut self, event: &Logged) -> Result<usize, EngineError> {
        match self.write(std::slice::from_ref(event)).await {
            Err(EngineError::DataLoss(what)) => {
                let why = Unrestorable::Unfit(format!("{what}: another one stands there, or a newer one"));
                self.flaws.push(Flaw::Unrestored { ver: event.ver, why });
                self.restore(event.ver, Vec::new()).await?;
                Ok(1)
            }
            outcome => outcome,
        }
    }

    async fn restore(&mut self, ver: u64, writes: Vec<Write>) -> Result<(), EngineError> {
        match self.store.restore(ver, writes).await {
            // An attempt whose answer was lost had done it.
            Ok(()) | Err(EngineError::Refused(Refusal::NotAbove)) => {
                self.ver = ver;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// The fields of the batch as they will stand.
fn remember(known: &mut HashMap<Field, Option<Bytes>>, writes: &[Write]) {
    for write in writes {
        match write {
            Write::Op(Op::Set(field, value)) => drop(known.insert(field.clone(), Some(value.clone()))),
            Write::Op(Op::Delete(field)) => drop(known.insert(field.clone(), None)),
            _ => {}
        }
    }
}
