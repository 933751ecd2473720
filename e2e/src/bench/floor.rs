//! The floor: the platform's own append function on the bare engine, pipelined, trimmed, each batch ended by WAIT 1. Nothing that keeps
//! the same promise on the same machine can be faster.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kith_kit::valkey::Connection;
use redis::{Pipeline, Value, cmd};
use tokio::{sync::mpsc, task::JoinSet};

use super::{BenchError, Phase, Stats, pace::pace};
use crate::local::Platform;

/// Partitions that the floor writes to; their tags are none of the platform's own.
const PARTITIONS: usize = 64;
/// Replicas that must have a batch, and how long to wait for them.
const WAIT_REPLICAS: u32 = 1;
const WAIT_MS: u32 = 1_000;
/// Largest batch of the open loop.
const MAX_BATCH: usize = 256;
const TOKEN: &str = "floor-token";
const SENDER: &str = "floor-sender";
/// The fixed head of a stored row, before the bytes by which a retry is known.
const ROW_HEAD: [u8; 16] = [0; 16];

/// The engine, ready for the floor's calls.
pub struct Floor {
    connections: Vec<Connection>,
    payload: usize,
}

/// A writer on one connection.
struct Writer {
    connection: Connection,
    payload: usize,
    published: Vec<i64>,
    next: u64,
    name: usize,
}

impl Floor {
    /// Opens connections to the primary and makes the partitions and conversations.
    pub async fn prepare(platform: &Platform, connections: usize, payload: usize) -> Result<Self, BenchError> {
        let primary = platform.valkey.primary(0).await?;
        let mut open = Vec::new();
        for name in 0..connections {
            let mut connection = platform.valkey.nodes(0)[primary].connect().await?;
            let mut setup = Pipeline::new();
            for partition in 0..PARTITIONS {
                let tag = tag(name, partition);
                setup.add_command(call("k1_claim", &tag, &[b"0", b"floor", b"floor/1/1"]));
                setup.cmd("HSET").arg(format!("{tag}c:f")).arg("s").arg(0).arg("k").arg("1");
                setup.cmd("HSET").arg(format!("{tag}g:f")).arg(SENDER).arg("1|1|1|0|0");
            }
            check(&connection.pipeline(&setup).await.map_err(|e| BenchError::Engine(e.to_string()))?)?;
            open.push(connection);
        }
        Ok(Self { connections: open, payload })
    }

    fn writers(&self, count: usize) -> Vec<Writer> {
        let all = self.connections.iter().take(count).enumerate();
        all.map(|(name, connection)| Writer {
            connection: connection.clone(),
            payload: self.payload,
            published: vec![0; PARTITIONS],
            // Ids of one run are new to the next.
            next: kith_kit::clock::now_ms().unsigned_abs() * 1_000_000,
            name,
        })
        .collect()
    }

    /// As fast as it goes: each connection one batch after the other. Messages per second.
    pub async fn saturate(&self, connections: usize, batch: usize, lasts: Duration) -> Result<f64, BenchError> {
        let begin = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        for mut writer in self.writers(connections) {
            let stop = stop.clone();
            running.spawn(async move {
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    done += writer.write(batch).await?;
                }
                Ok::<_, BenchError>(done)
            });
        }
        tokio::time::sleep(lasts).await;
        stop.store(true, Ordering::Relaxed);
        let mut messages = 0;
        while let Some(done) = running.join_next().await {
            messages += done.map_err(|e| BenchError::Engine(e.to_string()))??;
        }
        Ok(messages as f64 / begin.elapsed().as_secs_f64())
    }

    /// Open loop at `rate`: what is due when the batch before is done makes the next one.
    pub async fn at_rate(&self, rate: f64, lasts: Duration) -> Result<Stats, BenchError> {
        let Some(mut writer) = self.writers(1).pop() else {
            return Err(BenchError::Option("the floor needs a connection".to_owned()));
        };
        let phase = Phase::begin(lasts);
        let (send, mut due) = mpsc::channel::<Instant>(1 << 20);
        let counted = phase.clone();
        let pacing = tokio::spawn(pace(rate, lasts, phase.began(), move |_, at| {
            counted.due();
            if send.try_send(at).is_err() {
                counted.stuck();
            }
        }));
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while due.recv_many(&mut batch, MAX_BATCH).await > 0 {
            writer.write(batch.len()).await?;
            batch.drain(..).for_each(|at| phase.acked(at));
        }
        pacing.await.and_then(|inner| inner).map_err(|e| BenchError::Engine(e.to_string()))?;
        Ok(phase.stats())
    }
}

impl Writer {
    /// One batch: appends, then WAIT. Answers how many.
    async fn write(&mut self, count: usize) -> Result<usize, BenchError> {
        let mut pipeline = Pipeline::with_capacity(count + 1);
        let now = kith_kit::clock::now_ms();
        let day = (now / 86_400_000).to_string();
        let yesterday = (now / 86_400_000 - 1).to_string();
        let mut touched = Vec::with_capacity(count);
        for _ in 0..count {
            self.next += 1;
            let partition = self.next as usize % PARTITIONS;
            touched.push(partition);
            let id = format!("{SENDER}\0m-{}", self.next);
            let mut row = ROW_HEAD.to_vec();
            row.extend_from_slice(id.as_bytes());
            row.resize(row.len() + self.payload, b'x');
            let (published, length) = (self.published[partition].to_string(), id.len().to_string());
            let (at, hash) = (now.to_string(), self.next.to_be_bytes());
            let arguments: [&[u8]; 12] = [
                published.as_bytes(),
                b"f",
                SENDER.as_bytes(),
                day.as_bytes(),
                yesterday.as_bytes(),
                &hash,
                b"172800",
                length.as_bytes(),
                at.as_bytes(),
                b"100000000",
                b"0",
                &row,
            ];
            pipeline.add_command(call("k1_append", &tag(self.name, partition), &arguments));
        }
        pipeline.cmd("WAIT").arg(WAIT_REPLICAS).arg(WAIT_MS);
        let answers = self.connection.pipeline(&pipeline).await.map_err(|e| BenchError::Engine(e.to_string()))?;
        check(&answers)?;
        for (answer, partition) in answers.iter().zip(touched) {
            if let Value::Array(parts) = answer
                && let Some(Value::Int(version)) = parts.first()
            {
                self.published[partition] = *version;
            }
        }
        match answers.last() {
            Some(Value::Int(replicas)) if *replicas >= i64::from(WAIT_REPLICAS) => Ok(count),
            other => Err(BenchError::Engine(format!("WAIT answered {other:?}"))),
        }
    }
}

fn tag(name: usize, partition: usize) -> String {
    format!("{{floor-{name}-{partition}}}")
}

fn call(function: &str, tag: &str, arguments: &[&[u8]]) -> redis::Cmd {
    let mut command = cmd("FCALL");
    command.arg(function).arg(1).arg(format!("{tag}v")).arg(TOKEN);
    for argument in arguments {
        command.arg(*argument);
    }
    command
}

fn check(answers: &[Value]) -> Result<(), BenchError> {
    match answers.iter().find(|a| matches!(a, Value::ServerError(_))) {
        Some(refusal) => Err(BenchError::Engine(format!("{refusal:?}"))),
        None => Ok(()),
    }
}
