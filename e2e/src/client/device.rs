//! A device that stays connected: it keeps what it was pushed, acknowledges it, fills holes, comes back after a close as the contract
//! says, and sends.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kith_contract::json::U64;
use kith_kit::backoff::Backoff;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    connection::{Closed, Connection, OpenError, Reader, TokenIn, Writer},
    error::ClientError,
    frame::{Auth, ClientFrame, Reconnect, ServerFrame},
    http::{Api, Page, retried},
    inbox::Inbox,
    model::{Draft, Position, Sent},
};
use crate::wait::TimedOut;

/// An answer to a send on the socket.
const SEND_DEADLINE: Duration = Duration::from_secs(8);
/// First pause before a new connection; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Commands and conversations to fill that may wait.
const QUEUE: usize = 1_024;

/// How a device behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Acknowledges what it is pushed.
    pub ack: bool,
    /// Pulls what it sees to be missing, as a good client does; off in tests of what the server pushes by itself.
    pub pull: bool,
    /// Where the token goes at the first connection.
    pub token_in: TokenIn,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self { ack: true, pull: true, token_in: TokenIn::Frame }
    }
}

struct Shared {
    ws: String,
    api: Api,
    options: DeviceOptions,
    inbox: Mutex<Inbox>,
    changed: Notify,
    fill: mpsc::Sender<String>,
}

enum Command {
    Send { draft: Draft, answer: oneshot::Sender<Result<Sent, ClientError>> },
    Ack(Vec<Position>),
    Typing(String),
    Ping,
    Text(String),
    Drop,
    Stop,
}

/// A connected device of a user.
pub struct Device {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    tasks: Vec<JoinHandle<()>>,
}

impl Device {
    /// Connects and waits for the hello. `api` carries the same token.
    pub async fn connect(ws: &str, api: Api, options: DeviceOptions) -> Result<Self, OpenError> {
        let connection = Connection::open_trusting(api.trust(), ws, api.token(), options.token_in, None).await?;
        let (fill, fills) = mpsc::channel(QUEUE);
        let (commands, orders) = mpsc::channel(QUEUE);
        let shared =
            Arc::new(Shared { ws: ws.to_owned(), api, options, inbox: Mutex::default(), changed: Notify::new(), fill });
        shared.change(|inbox| inbox.hellos.push(connection.hello.clone()));
        let tasks = vec![
            tokio::spawn(run(shared.clone(), connection, orders)),
            tokio::spawn(fill_holes(shared.clone(), fills)),
        ];
        Ok(Self { shared, commands, tasks })
    }

    /// Looks into what was received.
    pub fn inbox<T>(&self, look: impl FnOnce(&Inbox) -> T) -> T {
        look(&self.shared.inbox.lock())
    }

    /// Waits until `look` finds something in what was received.
    pub async fn until<T>(
        &self,
        what: &str,
        deadline: Duration,
        look: impl Fn(&Inbox) -> Option<T>,
    ) -> Result<T, TimedOut> {
        let end = tokio::time::Instant::now() + deadline;
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = self.inbox(&look) {
                return Ok(found);
            }
            if tokio::time::timeout_at(end, changed).await.is_err() {
                let last = self.inbox(|inbox| {
                    format!("{} messages, {} closes {:?}", inbox.all().count(), inbox.closes.len(), inbox.closes.last())
                });
                return Err(TimedOut { what: what.to_owned(), deadline, last });
            }
        }
    }

    /// Sends over the socket, once.
    pub async fn send(&self, draft: &Draft) -> Result<Sent, ClientError> {
        let (answer, answered) = oneshot::channel();
        self.order(Command::Send { draft: draft.clone(), answer }).await?;
        match tokio::time::timeout(SEND_DEADLINE, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ClientError::Unanswered("the connection ended".to_owned())),
            Err(_) => Err(ClientError::Unanswered("no answer to the send in time".to_owned())),
        }
    }

    /// Sends over the socket until it is stored, refused for good, or `deadline` is over.
    pub async fn send_until_stored(&self, draft: &Draft, deadline: Duration) -> Result<Sent, ClientError> {
        retried(deadline, || self.send(draft)).await
    }

    /// Acknowledges by hand.
    pub async fn ack(&self, positions: Vec<Position>) -> Result<(), ClientError> {
        self.order(Command::Ack(positions)).await
    }

    /// Says that the user types.
    pub async fn typing(&self, conversation: &str) -> Result<(), ClientError> {
        self.order(Command::Typing(conversation.to_owned())).await
    }

    /// Sends a ping and waits for its pong.
    pub async fn ping(&self, deadline: Duration) -> Result<(), TimedOut> {
        let before = self.inbox(|inbox| inbox.pongs);
        // A device that has ended answers no ping either: the wait says so.
        drop(self.order(Command::Ping).await);
        self.until("a pong", deadline, |inbox| (inbox.pongs > before).then_some(())).await
    }

    /// Writes any text, for tests of bad frames.
    pub async fn send_text(&self, text: impl Into<String>) -> Result<(), ClientError> {
        self.order(Command::Text(text.into())).await
    }

    /// Cuts the connection; the device comes back by itself.
    pub async fn drop_connection(&self) -> Result<(), ClientError> {
        self.order(Command::Drop).await
    }

    /// The user's HTTP calls.
    pub fn api(&self) -> &Api {
        &self.shared.api
    }

    /// Closes the connection in good order and ends.
    pub async fn stop(mut self) {
        if self.order(Command::Stop).await.is_ok()
            && let Some(task) = self.tasks.first_mut()
        {
            // The task ends with the close; one that was aborted has ended too.
            drop(tokio::time::timeout(Duration::from_secs(5), task).await);
        }
    }

    async fn order(&self, command: Command) -> Result<(), ClientError> {
        self.commands.send(command).await.map_err(|_| ClientError::Unanswered("the device has ended".to_owned()))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut self.inbox.lock());
        self.changed.notify_waiters();
    }

    /// Asks the filler to look at a conversation; when its queue is full, a later frame asks again.
    fn look_at(&self, conversation: String) {
        if self.options.pull && self.fill.try_send(conversation).is_err() {
            tracing::debug!("too many conversations to fill at once");
        }
    }
}

enum End {
    Closed(Closed),
    Dropped,
    Stopped,
}

/// Connection after connection.
async fn run(shared: Arc<Shared>, first: Connection, mut orders: mpsc::Receiver<Command>) {
    let mut connection = first;
    loop {
        let mut resume = Some(connection.hello.resume_token.to_string());
        let mut hint = None;
        let end = session(&shared, connection, &mut orders, &mut hint, &mut resume).await;
        if let End::Closed(closed) = &end {
            tracing::debug!(code = closed.code, reason = %closed.reason, "a connection ended");
            shared.change(|inbox| inbox.closes.push(closed.clone()));
            if closed.code.is_some_and(super::frame::close::is_final) {
                return;
            }
        }
        if matches!(end, End::Stopped) {
            return;
        }
        match reconnect(&shared, hint, resume.as_deref()).await {
            Some(next) => connection = next,
            None => return,
        }
        shared.change(|inbox| inbox.hellos.push(connection.hello.clone()));
        let known: Vec<String> = shared.inbox.lock().cursors().into_keys().collect();
        for id in known {
            shared.look_at(id);
        }
    }
}

/// Tries until the server takes the device or says to stay away.
async fn reconnect(shared: &Shared, hint: Option<u64>, resume: Option<&str>) -> Option<Connection> {
    if let Some(after) = hint {
        tokio::time::sleep(Duration::from_millis(after)).await;
    }
    let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
    loop {
        let cursors = shared.inbox.lock().cursors().into_iter().map(|(id, seq)| (id, U64(seq))).collect();
        let auth = ClientFrame::Auth(Auth {
            token: Some(shared.api.token().to_owned()),
            cursors: Some(cursors),
            resume_token: resume.map(str::to_owned),
        });
        let api = &shared.api;
        match Connection::open_trusting(api.trust(), &shared.ws, api.token(), TokenIn::Frame, Some(&auth)).await {
            Ok(connection) => return Some(connection),
            Err(error) => {
                let closed = Closed { code: close_code(&error), reason: error.to_string() };
                if error.is_final() {
                    shared.change(|inbox| inbox.closes.push(closed));
                    return None;
                }
                tracing::debug!(%error, "not connected yet");
            }
        }
        backoff.pause().await;
    }
}

fn close_code(error: &OpenError) -> Option<u16> {
    match error {
        OpenError::Closed(closed) => closed.code,
        _ => None,
    }
}

type Waiting = HashMap<String, oneshot::Sender<Result<Sent, ClientError>>>;

/// One connection until its end; sends without an answer by then fail, so that their callers try again.
async fn session(
    shared: &Shared,
    connection: Connection,
    orders: &mut mpsc::Receiver<Command>,
    hint: &mut Option<u64>,
    resume: &mut Option<String>,
) -> End {
    let Connection { hello, mut reader, mut writer } = connection;
    let mut waiting = Waiting::new();
    let mut next_id = 0_u64;
    let beat = Duration::from_millis((hello.heartbeat_ms / 3).max(100));
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + beat, beat);
    loop {
        let step = tokio::select! {
            frame = reader.next() => match frame {
                Ok(ServerFrame::Reconnect(Reconnect { after_ms, resume_token })) => {
                    *hint = Some(after_ms);
                    *resume = Some(resume_token.into_owned());
                    shared.change(|inbox| inbox.reconnect_hints.push(after_ms));
                    Ok(())
                }
                Ok(frame) => receive(shared, frame, &mut waiting, &mut writer).await,
                Err(closed) => Err(closed),
            },
            order = orders.recv() => match order {
                None | Some(Command::Stop) => {
                    writer.close().await;
                    return End::Stopped;
                }
                Some(Command::Drop) => return End::Dropped,
                Some(command) => obey(command, &mut writer, &mut waiting, &mut next_id).await,
            },
            _ = ping.tick() => writer.send(&ClientFrame::Ping).await,
        };
        if let Err(closed) = step {
            return End::Closed(last_words(closed, &mut reader).await);
        }
    }
}

/// A write that fails says less than the close frame that the server may have sent before.
async fn last_words(closed: Closed, reader: &mut Reader) -> Closed {
    if closed.code.is_some() {
        return closed;
    }
    let end = Instant::now() + Duration::from_millis(200);
    loop {
        match tokio::time::timeout(end.saturating_duration_since(Instant::now()), reader.next()).await {
            Ok(Ok(_)) => {}
            Ok(Err(better)) if better.code.is_some() => return better,
            _ => return closed,
        }
    }
}

async fn obey(command: Command, writer: &mut Writer, waiting: &mut Waiting, next_id: &mut u64) -> Result<(), Closed> {
    match command {
        Command::Send { draft, answer } => {
            *next_id += 1;
            let id = next_id.to_string();
            waiting.insert(id.clone(), answer);
            writer.send(&ClientFrame::Send { id, message: &draft }).await
        }
        Command::Ack(acks) => writer.send(&ClientFrame::Ack { acks }).await,
        Command::Typing(conversation_id) => writer.send(&ClientFrame::Typing { conversation_id }).await,
        Command::Ping => writer.send(&ClientFrame::Ping).await,
        Command::Text(text) => writer.send_text(text).await,
        Command::Drop | Command::Stop => Ok(()),
    }
}

async fn receive(
    shared: &Shared,
    frame: ServerFrame,
    waiting: &mut Waiting,
    writer: &mut Writer,
) -> Result<(), Closed> {
    match frame {
        ServerFrame::Messages { messages, has_more } => {
            let mut ids: Vec<String> = messages.iter().map(|m| m.conversation_id.to_string()).collect();
            ids.dedup();
            shared.change(|inbox| inbox.take_all(messages));
            let mut acks = Vec::new();
            for id in ids {
                let (seq, hole) = shared.inbox.lock().place(&id);
                if seq > 0 {
                    acks.push(Position { conversation_id: id.clone(), seq });
                }
                if hole || has_more.get(id.as_str()).is_some_and(|more| *more) {
                    shared.look_at(id);
                }
            }
            if shared.options.ack && !acks.is_empty() {
                writer.send(&ClientFrame::Ack { acks }).await?;
            }
        }
        ServerFrame::Sent(sent) => {
            if let Some(answer) = waiting.remove(&*sent.id) {
                let sent = Sent {
                    message_id: sent.message_id.into_owned(),
                    conversation_id: sent.conversation_id.into_owned(),
                    seq: sent.seq,
                    sent_at: sent.sent_at,
                    duplicate: sent.duplicate,
                };
                // The caller may have given up.
                drop(answer.send(Ok(sent)));
            }
        }
        ServerFrame::Error(error) => match error.id.as_ref().and_then(|id| waiting.remove(&**id)) {
            Some(answer) => drop(answer.send(Err(ClientError::Frame(Box::new(error))))),
            None => shared.change(|inbox| inbox.errors.push(error)),
        },
        ServerFrame::Event { event, data } => shared.change(|inbox| inbox.events.push((event.to_string(), data))),
        ServerFrame::Pong => shared.change(|inbox| inbox.pongs += 1),
        ServerFrame::Hello(_) | ServerFrame::Reconnect(_) => {
            return Err(Closed { code: None, reason: "a second hello".to_owned() });
        }
    }
    Ok(())
}

/// Pulls what is missing, one conversation at a time.
async fn fill_holes(shared: Arc<Shared>, mut fills: mpsc::Receiver<String>) {
    while let Some(id) = fills.recv().await {
        loop {
            let page = Page { after: Some(shared.inbox.lock().contiguous(&id)), limit: Some(200), ..Page::default() };
            match retried(Duration::from_secs(20), || shared.api.history(&id, page)).await {
                Ok(found) => {
                    let more = found.has_more && !found.messages.is_empty();
                    shared.change(|inbox| inbox.take_all(found.messages));
                    if !more {
                        break;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, conversation = %id, "a hole could not be filled");
                    break;
                }
            }
        }
    }
}
