//! The loop around one connection's [`Machine`]: socket, queue, answers and time go in; frames and jobs come out.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::Bytes;
use futures::{FutureExt, SinkExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kith_kit::clock;
use kith_proto::{
    chat::v1::{Platform, Position},
    sessions::v1::Session,
};
use kith_rpc::{admission::Seat, budget::Held};
use metrics::Counter;
use tokio::{sync::mpsc, task::JoinError};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    frame::close,
    jobs::{Answer, Worker},
    machine::{
        Machine,
        io::{Input, Job, Opened, Output, Settings},
    },
    registry::{Command, Cut, Handle},
};

/// A client that takes no bytes for this long is too slow a reader.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the client's answer to a close frame is awaited.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// What frames that came before a close may still take.
const LAST_JOBS: Duration = Duration::from_secs(2);
/// Jobs of one connection at once; the rest wait.
const MAX_JOBS: usize = 24;
/// Jobs that may wait; a connection that wants more is cut off: it reads or sends faster than storage answers.
const MAX_WAITING_JOBS: usize = 1_024;
/// What is taken of each source, beyond the first, before the socket is written to.
const AT_ONCE: usize = 64;
/// How long a client is not read that has sent more than may wait: what it sends meanwhile is refused in one go. Refusals that each cost
/// a read and a write would take from those who are served.
const FULL_PAUSE: Duration = Duration::from_millis(50);
/// The longest reason of a close frame (RFC 6455).
const MAX_REASON_BYTES: usize = 123;

/// How a connection ended.
enum End {
    /// The client went away, or the close frame was sent.
    Over,
    /// The client does not read, or the session was kicked.
    Cut,
}

/// What a connection came with.
pub(crate) struct Arrival {
    /// The token of the header.
    pub(crate) token: Option<String>,
    /// Its seat at the listener, in which it says whose it is.
    pub(crate) seat: Option<Arc<Seat>>,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(
    socket: WebSocket,
    worker: Arc<Worker>,
    settings: Settings,
    Arrival { token, seat }: Arrival,
    end: CancellationToken,
) {
    metrics::gauge!("kith_gateway_connections").increment(1.0);
    let (sender, commands) = mpsc::channel(settings.frames_queued);
    let mut machine = Machine::new(settings, ulid::Ulid::generate().to_string(), Instant::now());
    if let Some(token) = token {
        machine.token_in_header(token);
    }
    let connection = Connection {
        socket,
        machine,
        worker,
        seat,
        sender: Some(sender),
        cut: Arc::default(),
        end,
        jobs: FuturesUnordered::new(),
        held: Vec::new(),
        waiting: VecDeque::new(),
        opened: None,
        handle: None,
        ended: None,
        read_from: Instant::now(),
        frames_in: metrics::counter!("kith_gateway_frames_total", "direction" => "in"),
        frames_out: metrics::counter!("kith_gateway_frames_total", "direction" => "out"),
    };
    connection.run(commands).await;
    metrics::gauge!("kith_gateway_connections").decrement(1.0);
}

struct Connection {
    socket: WebSocket,
    machine: Machine,
    worker: Arc<Worker>,
    seat: Option<Arc<Seat>>,
    /// Goes into the handle when the session opens.
    sender: Option<mpsc::Sender<Command>>,
    cut: Arc<Cut>,
    end: CancellationToken,
    jobs: FuturesUnordered<BoxFuture<'static, Option<Answer>>>,
    /// For what was read, until it has been written.
    held: Vec<Held>,
    waiting: VecDeque<Job>,
    opened: Option<Opened>,
    handle: Option<Arc<Handle>>,
    /// How the socket ended, when that was read ahead.
    ended: Option<Received>,
    /// The socket is not read before.
    read_from: Instant,
    frames_in: Counter,
    frames_out: Counter,
}

/// What a socket gives: a message, an error, or none when it is over.
type Received = Option<Result<Message, axum::Error>>;

async fn receive(socket: &mut WebSocket, ended: &mut Option<Received>) -> Received {
    match ended.take() {
        Some(end) => end,
        None => socket.recv().await,
    }
}

impl Connection {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            if let Err(end) = self.perform().await {
                if matches!(end, End::Cut) {
                    self.close_cut().await;
                }
                break;
            }
            if self.cut.is_cut() {
                // Before anything else that the client has sent is read.
                self.close_cut().await;
                break;
            }
            let next = self.machine.next_tick();
            let paused = self.read_from > Instant::now();
            let input = tokio::select! {
                () = tokio::time::sleep_until(self.read_from.into()), if paused => continue,
                message = receive(&mut self.socket, &mut self.ended), if !paused => match message {
                    Some(Ok(message)) => match self.input_of(message) {
                        Some(input) => input,
                        None => {
                            self.answer_close().await;
                            break;
                        }
                    },
                    Some(Err(error)) => {
                        self.broken(&error).await;
                        break;
                    }
                    None => break,
                },
                Some(command) = commands.recv() => self.input_of_command(command),
                Some(answer) = self.jobs.next(), if !self.jobs.is_empty() => match answer {
                    Some(answer) => self.answered(answer),
                    None => continue,
                },
                () = tokio::time::sleep_until(next.into()) => Input::Tick,
                () = self.cut.cut() => {
                    self.close_cut().await;
                    break;
                }
                () = self.end.cancelled() => Input::Drain { after_ms: 1_000 },
            };
            self.handle(input);
            if !paused {
                self.read_ready();
            }
            self.take_ready(&mut commands);
        }
        if let Some(handle) = &self.handle {
            self.worker.links.close(handle);
        }
        self.finish_jobs().await;
    }

    /// Reads what the client has sent meanwhile: it is answered in the same write. The end of the socket is kept until that is done.
    fn read_ready(&mut self) {
        for _ in 0..AT_ONCE {
            if self.ended.is_some() || self.machine.is_closed() || self.waiting.len() > MAX_WAITING_JOBS / 2 {
                break;
            }
            match self.socket.recv().now_or_never() {
                None => break,
                Some(Some(Ok(message))) if !matches!(message, Message::Close(_)) => {
                    if let Some(input) = self.input_of(message) {
                        self.handle(input);
                    }
                }
                end => self.ended = end,
            }
        }
        if self.machine.is_full() {
            self.read_from = Instant::now() + FULL_PAUSE;
        }
    }

    /// Takes what has come from inside meanwhile.
    fn take_ready(&mut self, commands: &mut mpsc::Receiver<Command>) {
        for _ in 0..AT_ONCE {
            let Ok(command) = commands.try_recv() else { break };
            let input = self.input_of_command(command);
            self.handle(input);
        }
        for _ in 0..AT_ONCE {
            let Some(Some(answer)) = self.jobs.next().now_or_never() else { break };
            if let Some(answer) = answer {
                let input = self.answered(answer);
                self.handle(input);
            }
        }
    }

    fn answered(&mut self, Answer { input, held }: Answer) -> Input {
        self.held.extend(held);
        input
    }

    /// What the client asked for before it left is still done, as far as a moment allows: acknowledgements and sends often are the
    /// last frames before a close. Their answers go nowhere.
    async fn finish_jobs(&mut self) {
        self.waiting.retain(|job| matches!(job, Job::Ack(_) | Job::Send { .. }));
        let rest = async {
            loop {
                self.start_jobs();
                if self.jobs.next().await.is_none() {
                    return;
                }
            }
        };
        if tokio::time::timeout(LAST_JOBS, rest).await.is_err() {
            tracing::debug!("a connection's last frames were not all worked off");
        }
    }

    fn handle(&mut self, input: Input) {
        self.machine.handle(input, Instant::now(), clock::now_ms());
    }

    /// Does what the machine wants. Where the socket takes no more, what is not for the client is still taken over.
    async fn perform(&mut self) -> Result<(), End> {
        let outputs = self.machine.take();
        let mut written = Ok(false);
        for output in outputs {
            match output {
                Output::Opened(opened) => self.open(opened),
                Output::Renewed(claims) => {
                    if let Some(handle) = &self.handle {
                        handle.renewed(claims.issued_at_ms());
                        self.worker.links.renewed(handle);
                    }
                }
                Output::Job(job) => self.waiting.push_back(job),
                _ if written.is_err() => {}
                Output::Frame(text) => {
                    self.frames_out.increment(1);
                    written = self.write(Message::Text(text.into())).await.map(|()| true);
                }
                Output::Ping => written = self.write(Message::Ping(Bytes::new())).await.map(|()| true),
                Output::Close { code, reason } => {
                    metrics::counter!("kith_gateway_closes_total", "code" => code.to_string()).increment(1);
                    self.close(code, &reason).await;
                    written = Err(End::Over);
                }
            }
        }
        let wrote = written?;
        if self.waiting.len() > MAX_WAITING_JOBS {
            return Err(End::Cut);
        }
        self.start_jobs();
        if wrote {
            self.flush().await?;
        }
        self.held.clear();
        Ok(())
    }

    fn start_jobs(&mut self) {
        while self.jobs.len() < MAX_JOBS
            && let Some(job) = self.waiting.pop_front()
        {
            let (worker, opened) = (self.worker.clone(), self.opened.clone());
            let reads = matches!(job, Job::Read(_) | Job::CatchUp { .. } | Job::Compare(_));
            let work = async move { worker.run(job, opened).await };
            // Reads get on while the client does not take what was written: they hold what other clients wait for.
            self.jobs.push(if reads {
                AbortOnDropHandle::new(tokio::spawn(work)).map(done).boxed()
            } else {
                work.boxed()
            });
        }
    }

    fn open(&mut self, opened: Opened) {
        let Some(sender) = self.sender.take() else { return };
        let claims = &opened.claims;
        if let Some(seat) = &self.seat {
            seat.known_as(&claims.sub);
        }
        let cursors =
            opened.cursors.iter().map(|(id, seq)| Position { conversation_id: id.as_ref().to_owned(), seq: *seq });
        let session = Session {
            session_id: opened.session_id.clone(),
            user_id: claims.sub.clone(),
            device_id: claims.dev.clone(),
            platform: claims.platform().map_or(Platform::Unspecified, Into::into).into(),
            line: claims.line.clone(),
            opened_at: opened.opened_at,
            cursors: cursors.collect(),
            fresh: false,
            token_issued_at: claims.issued_at_ms(),
        };
        tracing::debug!(session_id = %opened.session_id, user_id = %claims.sub, "session opened");
        let handle = Arc::new(Handle::new(session, sender, self.cut.clone()));
        self.worker.links.open(handle.clone());
        self.handle = Some(handle);
        self.opened = Some(opened);
    }

    async fn write(&mut self, message: Message) -> Result<(), End> {
        written(&self.cut, self.socket.feed(message)).await
    }

    async fn flush(&mut self) -> Result<(), End> {
        written(&self.cut, self.socket.flush()).await
    }

    fn input_of_command(&self, command: Command) -> Input {
        if let Some(handle) = &self.handle {
            handle.taken(&command);
        }
        match command {
            Command::Deliver(delivery) => Input::Delivery(delivery),
            Command::Suspect => Input::Suspect,
            Command::LeftOut => Input::LeftOut,
            Command::Recheck => Input::Recheck,
            Command::Drain { after_ms } => Input::Drain { after_ms },
        }
    }

    fn input_of(&self, message: Message) -> Option<Input> {
        self.frames_in.increment(1);
        match message {
            Message::Text(text) => Some(Input::Text(text)),
            Message::Binary(_) => Some(Input::Binary),
            Message::Ping(_) | Message::Pong(_) => Some(Input::Control),
            Message::Close(_) => None,
        }
    }

    /// The client has said goodbye: the answer to its close frame is written while the socket is read to its end.
    async fn answer_close(&mut self) {
        let goodbye = async { while let Some(Ok(_)) = self.socket.recv().await {} };
        // The client may be gone already.
        drop(tokio::time::timeout(CLOSE_DEADLINE, goodbye).await);
    }

    /// The connection was ended from outside. What a kicked client has sent before is not worked off.
    async fn close_cut(&mut self) {
        match self.cut.kick().cloned() {
            Some(kick) => {
                metrics::counter!("kith_gateway_closes_total", "code" => kick.code.to_string()).increment(1);
                self.waiting.clear();
                self.close(kick.code, &kick.reason).await;
            }
            None => self.close(close::TOO_SLOW, "the reader is too slow: reconnect and sync").await,
        }
    }

    /// Sends a close frame and waits a moment for the client's own, so that what was written before still arrives.
    async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code, reason: shorten(reason).into() };
        let goodbye = async {
            if self.socket.send(Message::Close(Some(frame))).await.is_ok() {
                while let Some(Ok(_)) = self.socket.recv().await {}
            }
        };
        // The client may be gone, or not read: the socket is dropped either way.
        drop(tokio::time::timeout(CLOSE_DEADLINE, goodbye).await);
    }

    /// The socket failed: a frame over its bound or against the protocol is told, a lost connection is not.
    async fn broken(&mut self, error: &axum::Error) {
        tracing::debug!(%error, "a connection broke");
        self.close(close::PROTOCOL, "a frame is too long or breaks the WebSocket protocol").await;
    }
}

/// Waits for a write, which mostly is done at once: then there is nothing to time or to call off.
async fn written(cut: &Cut, writing: impl Future<Output = Result<(), axum::Error>>) -> Result<(), End> {
    let mut writing = pin!(writing);
    if let Some(done) = writing.as_mut().now_or_never() {
        return done.map_err(|_| End::Over);
    }
    tokio::select! {
        done = tokio::time::timeout(WRITE_DEADLINE, writing) => match done {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Over),
            Err(_) => Err(End::Cut),
        },
        () = cut.cut() => Err(End::Cut),
    }
}

/// What a spawned job brings back; its panic is the connection's.
fn done(outcome: Result<Option<Answer>, JoinError>) -> Option<Answer> {
    outcome.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => None,
    })
}

fn shorten(reason: &str) -> String {
    let mut end = reason.len().min(MAX_REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        assert_eq!(shorten("short"), "short");
        let long = "ä".repeat(100);
        assert_eq!(shorten(&long).len(), 122);
    }
}
