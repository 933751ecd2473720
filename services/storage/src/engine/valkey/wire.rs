//! Calls as `FCALL`s, and answers as typed values. Reading answers is total: what the library does not write is DATA_LOSS.

mod verdict;

use bytes::Bytes;
use redis::{Cmd, Value};
use xxhash_rust::xxh3::Xxh3;

pub(super) use verdict::{Verdict, verdict};

use super::partition::Pending;
use crate::{
    core::model::whole,
    engine::{
        Append, ChangePage, Cursor, EngineError, Entry, Expect, FieldPage, Got, HeadRow, History, Last, ListRow,
        MemberChange, MemberPage, MemberRow, Op, Page, Range, Since, Spot, Stored, Swap, Want, Window, Write,
    },
    event, weight,
};

const DAY_MS: i64 = 86_400_000;
/// A day's bucket lives until a day after its last second, and some.
const BUCKET_SECONDS: u32 = 50 * 3_600;

/// Up to here every whole number is a double of its own.
const EXACT: i64 = 1 << 53;

/// What a committed call puts on the event log.
pub(super) enum Emits {
    Nothing,
    /// `opening`: the events that come before it where it makes its conversation.
    Message {
        conversation_id: String,
        row: Bytes,
        privileged: bool,
        opening: Vec<Bytes>,
    },
    Cursor(Bytes),
    /// The event of an entry, and the one of the entry that gave way to it.
    Entry {
        entered: Bytes,
        left: Bytes,
    },
    Bodies(Vec<Bytes>),
}

/// The events of a committed call, from its answer.
pub(super) fn emitted(emits: &Emits, ver: u64, values: &[Value]) -> Vec<Pending> {
    match emits {
        // A third value is the row of an earlier call: nothing was emitted.
        Emits::Message { conversation_id, row, privileged, opening } if values.len() == 2 || opened(values) => {
            let seq = values.get(1).and_then(number).unwrap_or(0);
            let body = event::message_body(conversation_id, seq, *privileged);
            let before: &[Bytes] = if opened(values) { opening } else { &[] };
            let mut events = in_a_row(ver.saturating_sub(1), before);
            events.push(Pending { ver, body, row: Some(row.clone()) });
            events
        }
        Emits::Nothing | Emits::Message { .. } => Vec::new(),
        Emits::Cursor(body) => {
            let moved = values.get(2).and_then(number) == Some(1) && !body.is_empty();
            let seq = values.get(1).and_then(number).unwrap_or(0);
            if moved { vec![Pending { ver, body: event::filled(body, seq), row: None }] } else { Vec::new() }
        }
        Emits::Entry { entered, left } => {
            let gone = values.get(2).cloned().and_then(text).unwrap_or_default();
            let told: Vec<Bytes> = match values.get(1).and_then(number) {
                Some(1) => vec![entered.clone()],
                Some(2) => vec![event::filled(left, gone), entered.clone()],
                _ => Vec::new(),
            };
            in_a_row(ver, &told)
        }
        Emits::Bodies(bodies) => match values.get(2).and_then(number) {
            None => in_a_row(ver, bodies),
            Some(found) => in_a_row(ver, &bodies.iter().map(|body| event::filled(body, found)).collect::<Vec<_>>()),
        },
    }
}

/// Events of which the last has this version.
fn in_a_row(last: u64, bodies: &[Bytes]) -> Vec<Pending> {
    let first = last.saturating_add(1).saturating_sub(bodies.len() as u64);
    (first..=last).zip(bodies).map(|(ver, body)| Pending { ver, body: body.clone(), row: None }).collect()
}

/// Whether the answer to an append says that the conversation was made.
pub(super) fn opened(values: &[Value]) -> bool {
    values.get(3).and_then(number) == Some(1)
}

/// A call of a function of the library on one partition; counts its bytes.
pub(super) struct Call {
    pub(super) command: Cmd,
    pub(super) bytes: usize,
}

impl Call {
    pub(super) fn mutation(function: &str, key: &str, token: &[u8], trim: u64) -> Self {
        Self::new("FCALL", function, key, token).arg(trim.to_string())
    }

    pub(super) fn reading(function: &str, key: &str, token: &[u8]) -> Self {
        Self::new("FCALL_RO", function, key, token)
    }

    fn new(verb: &str, function: &str, key: &str, token: &[u8]) -> Self {
        let mut command = redis::cmd(verb);
        command.arg(function).arg(1).arg(key).arg(token);
        Self { command, bytes: 96 }
    }

    pub(super) fn arg(mut self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.bytes += value.len() + 8;
        self.command.arg(value);
        self
    }

    /// A whole number, as near as the library counts it: its numbers are doubles, and a script that computes with more than they hold
    /// fails or errs. Whatever callers give, nothing that is stored lies beyond.
    pub(super) fn number(self, value: impl TryInto<i64>) -> Self {
        // Only what is above the range of i64 does not fit into it.
        let value = value.try_into().unwrap_or(i64::MAX).clamp(-EXACT, EXACT);
        self.arg(value.to_string())
    }
}

/// By which a retry is found.
fn sent_hash(sender_id: &str, client_msg_id: &str) -> [u8; 8] {
    let mut hash = Xxh3::new();
    hash.update(sender_id.as_bytes());
    hash.update(b"\0");
    hash.update(client_msg_id.as_bytes());
    hash.digest().to_be_bytes()
}

pub(super) fn append(call: Call, a: &Append) -> (Call, Emits) {
    let day = a.now_ms.div_euclid(DAY_MS);
    let call = call
        .arg(&a.conversation_id)
        .arg(&a.sender_id)
        .number(day)
        .number(day - 1)
        .arg(sent_hash(&a.sender_id, &a.client_msg_id))
        .number(BUCKET_SECONDS)
        .number(a.identity_len)
        .number(a.now_ms)
        .number(a.hot_limit)
        .arg(if a.privileged { "1" } else { "0" })
        .arg(&a.row)
        .number(day + 1)
        .number(day - 2);
    let (call, opening) = operations(call, &a.opening);
    let Append { conversation_id, row, privileged, .. } = a;
    let emits =
        Emits::Message { conversation_id: conversation_id.clone(), row: row.clone(), privileged: *privileged, opening };
    (call, emits)
}

pub(super) fn cursor(call: Call, c: &Cursor) -> Call {
    call.arg(&c.conversation_id).arg(&c.user_id).arg(c.kind.field(&c.user_id)).number(c.seq).arg(&c.event)
}

pub(super) fn swap(mut call: Call, swap: &Swap) -> (Call, Vec<Bytes>) {
    call = call.number(swap.conditions.len());
    for condition in &swap.conditions {
        let expect = match &condition.expect {
            Expect::Absent => b"-".to_vec(),
            Expect::MayWrite(now_ms) => format!("w{now_ms}").into_bytes(),
            Expect::Value(value) => [b"=", value.as_ref()].concat(),
            Expect::Fewer(most) => format!("<{most}").into_bytes(),
            Expect::Next => b"s".to_vec(),
        };
        call = call.arg(&condition.field.key).arg(&condition.field.name).arg(expect);
    }
    operations(call, &swap.ops)
}

/// Operations, and the events among them.
fn operations(mut call: Call, ops: &[Op]) -> (Call, Vec<Bytes>) {
    let mut bodies = Vec::new();
    for op in ops {
        if let Op::Emit(body) = op {
            bodies.push(body.clone());
        }
        call = operation(call, op);
    }
    (call, bodies)
}

fn operation(call: Call, op: &Op) -> Call {
    match op {
        Op::Set(field, value) => call.arg("S").arg(&field.key).arg(&field.name).arg(value),
        Op::SetNew(field, value) => call.arg("N").arg(&field.key).arg(&field.name).arg(value),
        Op::Delete(field) => call.arg("D").arg(&field.key).arg(&field.name),
        Op::Score { key, score, member } => call.arg("Z").arg(key).number(*score).arg(member),
        Op::Rescore { key, score, member } => call.arg("X").arg(key).number(*score).arg(member),
        Op::Unscore { key, member } => call.arg("Y").arg(key).arg(member),
        Op::Noted { conversation_id, from, to } => call.arg("W").arg(conversation_id).number(*from).number(*to),
        Op::Emit(body) => call.arg("E").arg(body),
    }
}

pub(super) fn restore(mut call: Call, ver: u64, writes: &[Write]) -> Call {
    call = call.number(ver);
    for write in writes {
        call = match write {
            Write::Op(op) => operation(call, op),
            Write::Row { conversation_id, seq, row } => call.arg("M").arg(conversation_id).number(*seq).arg(row),
            Write::Sent { conversation_id, sender_id, client_msg_id, sent_at, seq } => call
                .arg("I")
                .arg(conversation_id)
                .number(sent_at.div_euclid(DAY_MS))
                .arg(sent_hash(sender_id, client_msg_id))
                .number(*seq)
                .number(sent_at / 1_000 + i64::from(BUCKET_SECONDS)),
        };
    }
    call
}

pub(super) fn get(mut call: Call, wants: &[Want]) -> Call {
    for want in wants {
        call = match want {
            Want::Field(field) => call.arg(&field.key).arg(&field.name),
            Want::All(key) => call.arg(key).arg("*"),
            Want::Count { key, prefix } => call.arg(key).arg(format!("#{prefix}")),
        };
    }
    call
}

pub(super) fn history(call: Call, conversation_id: &str, page: Page) -> Call {
    let Page { window, limit, bytes, first } = page;
    let (before, after) = match window {
        Window::Newest => (0, None),
        Window::Before(seq) => (seq, None),
        Window::After(seq) => (0, Some(seq)),
    };
    let call = call.arg(conversation_id).number(before);
    let call = match after {
        None => call.number(-1),
        Some(after) => call.number(after),
    };
    call.number(limit).number(bytes).arg(if first { "1" } else { "0" })
}

pub(super) fn heads(call: Call, user_id: &str, device_id: &str, last: usize, conversation_ids: &[String]) -> Call {
    // To the library 1 is no number of bytes.
    let last = if last == 1 { 2 } else { last };
    let call = call.arg(user_id).arg(device_id).number(last);
    conversation_ids.iter().fold(call, Call::arg)
}

pub(super) fn walk(call: Call, user_id: &str, behind: Option<&Spot>, limit: u32) -> Call {
    let call = call.arg(user_id);
    let call = match behind {
        Some(Spot(activity, conversation_id)) => call.number(*activity).arg(conversation_id),
        None => call.arg("").arg(""),
    };
    call.number(limit)
}

pub(super) fn changed(call: Call, conversation_id: &str, since: &Since) -> Call {
    let call = call.arg(conversation_id).number(since.version);
    let call = match &since.behind {
        Some((version, member)) => call.number(*version).arg(member),
        None => call.arg("").arg(""),
    };
    call.number(since.limit)
}

pub(super) fn fields(call: Call, range: &Range) -> Call {
    call.arg(&range.key).arg(&range.after).arg(range.end).number(range.limit).number(weight::PAGE)
}

pub(super) fn enter(call: Call, entry: &Entry) -> Call {
    call.arg(&entry.user_id)
        .arg(&entry.conversation_id)
        .number(entry.activity)
        .number(entry.most)
        .arg(if entry.gives_way { "1" } else { "0" })
        .arg(&entry.entered)
        .arg(&entry.left)
}

/// Says of which key an answer was that cannot be read.
pub(super) fn named<T>(key: &str, read: Result<T, EngineError>) -> Result<T, EngineError> {
    read.map_err(|error| match error {
        EngineError::DataLoss(what) => EngineError::DataLoss(format!("{key}: {what}")),
        other => other,
    })
}

fn odd(what: &str) -> EngineError {
    EngineError::DataLoss(format!("the function library gave an answer that cannot be read: {what}"))
}

/// A number, in whichever form the engine gave it.
pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(n) => u64::try_from(*n).ok(),
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
        Value::SimpleString(text) => text.parse().ok(),
        _ => None,
    }
}

fn signed(value: &Value) -> Option<i64> {
    match value {
        Value::Int(n) => Some(*n),
        // A score; the engine may spell it with an exponent.
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse::<f64>().ok().map(|score| score as i64),
        Value::Double(score) => Some(*score as i64),
        _ => None,
    }
}

pub(super) fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        _ => None,
    }
}

pub(super) fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn hash(value: Value) -> Result<Vec<(String, Bytes)>, EngineError> {
    let Value::Array(words) = value else { return Err(odd("not a hash")) };
    let mut fields = Vec::with_capacity(words.len() / 2);
    let mut words = words.into_iter();
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        fields.push((
            text(name).ok_or_else(|| odd("a field's name"))?,
            bytes(value).ok_or_else(|| odd("a field's value"))?,
        ));
    }
    Ok(fields)
}

pub(super) fn read_get(wants: &[Want], values: Vec<Value>) -> Result<Vec<Got>, EngineError> {
    let read = |(want, value): (&Want, Value)| match want {
        Want::Field(_) => Ok(Got::Field(bytes(value))),
        Want::All(_) => hash(value).map(Got::All),
        Want::Count { .. } => number(&value).map(Got::Count).ok_or_else(|| odd("a count")),
    };
    let got: Vec<Got> = wants.iter().zip(values.into_iter().skip(1)).map(read).collect::<Result<_, _>>()?;
    if got.len() == wants.len() { Ok(got) } else { Err(odd("too few values")) }
}

/// None: the hash's index must be built first.
pub(super) fn read_fields(values: Vec<Value>) -> Result<Option<FieldPage>, EngineError> {
    let mut values = values.into_iter().skip(1);
    let more = match values.next() {
        Some(Value::Int(-1)) => return Ok(None),
        Some(Value::Int(more)) => more == 1,
        _ => return Err(odd("not a page of fields")),
    };
    let fields = hash(Value::Array(values.collect()))?;
    Ok(Some(FieldPage { fields, more }))
}

pub(super) fn read_history(window: Window, values: Vec<Value>) -> Result<Option<History>, EngineError> {
    let mut values = values.into_iter().skip(1);
    let (Some(seq), Some(floor)) = (values.next(), values.next()) else { return Err(odd("no head")) };
    let Some(seq) = number(&seq) else { return Ok(None) };
    let mut messages = Vec::new();
    let cut = loop {
        let Some(at) = values.next() else { break false };
        // A last word alone says that bytes have cut the page.
        let (Some(row), overlay) = (values.next(), values.next()) else { break true };
        let seq = number(&at).ok_or_else(|| odd("a seq"))?;
        let row = bytes(row).ok_or_else(|| odd("a row"))?;
        messages.push(Stored { seq, row, overlay: overlay.and_then(bytes) });
    };
    if !matches!(window, Window::After(_)) {
        messages.reverse();
    }
    let floor = number(&floor).ok_or_else(|| odd("a floor"))?;
    Ok(Some(History { seq, floor, messages, cut }))
}

/// Lowers a cursor to what is known; one that is damaged stays so.
pub(super) fn lower(cursor: &mut Option<Bytes>, known: u64) {
    if cursor.as_ref().and_then(whole::<u64>).is_some_and(|at| at > known) {
        *cursor = Some(known.to_string().into());
    }
}

pub(super) fn read_heads(values: Vec<Value>) -> Result<Vec<HeadRow>, EngineError> {
    values.into_iter().skip(1).map(read_head).collect()
}

fn read_head(value: Value) -> Result<HeadRow, EngineError> {
    let Value::Array(parts) = value else { return Err(odd("not a head")) };
    let mut parts = parts.into_iter();
    let fields = hash(parts.next().ok_or_else(|| odd("an empty head"))?)?;
    let member = parts.next().and_then(bytes);
    let mut cursor = || parts.next().and_then(bytes);
    let (read, own, cleared, delivered) = (cursor(), cursor(), cursor(), cursor());
    let last = match (parts.next(), parts.next()) {
        (Some(Value::BulkString(row)), overlay) => Last::Row(row.into(), overlay.and_then(bytes)),
        (Some(Value::Int(_)), _) => Last::Over,
        _ => Last::None,
    };
    Ok(HeadRow { fields, member, read, own, cleared, delivered, last })
}

pub(super) fn read_members(values: Vec<Value>) -> Result<Option<MemberPage>, EngineError> {
    let mut values = values.into_iter().skip(1);
    let (Some(version), Some(count)) = (values.next(), values.next()) else { return Err(odd("no member version")) };
    let Some(version) = number(&version) else { return Ok(None) };
    let mut members = Vec::new();
    while let (Some(user), Some(order), Some(row)) = (values.next(), values.next(), values.next()) {
        let user_id = text(user).ok_or_else(|| odd("a member"))?;
        members.push(MemberRow { user_id, order: signed(&order).ok_or_else(|| odd("a join order"))?, row: bytes(row) });
    }
    let count = number(&count).ok_or_else(|| odd("a count of members"))?;
    Ok(Some(MemberPage { version, count, members }))
}

pub(super) fn read_changed(values: Vec<Value>) -> Result<Option<ChangePage>, EngineError> {
    let mut values = values.into_iter().skip(1);
    let (Some(version), Some(count), Some(reset)) = (values.next(), values.next(), values.next()) else {
        return Err(odd("no member version"));
    };
    let Some(version) = number(&version) else { return Ok(None) };
    let count = number(&count).ok_or_else(|| odd("a count of members"))?;
    if number(&reset) != Some(0) {
        return Ok(Some(ChangePage { version, count, changes: None }));
    }
    let mut changes = Vec::new();
    while let (Some(user), Some(version), Some(row)) = (values.next(), values.next(), values.next()) {
        let version = signed(&version).and_then(|version| u64::try_from(version).ok());
        changes.push(MemberChange {
            user_id: text(user).ok_or_else(|| odd("a member"))?,
            version: version.ok_or_else(|| odd("the version of a change"))?,
            row: bytes(row),
        });
    }
    Ok(Some(ChangePage { version, count, changes: Some(changes) }))
}

pub(super) fn read_list(values: Vec<Value>) -> Result<Vec<ListRow>, EngineError> {
    let mut values = values.into_iter().skip(1);
    let mut rows = Vec::new();
    while let (Some(id), Some(activity), Some(settings)) = (values.next(), values.next(), values.next()) {
        let conversation_id = text(id).ok_or_else(|| odd("a list entry"))?;
        let activity = signed(&activity).ok_or_else(|| odd("an activity"))?;
        rows.push(ListRow { conversation_id, activity, settings: bytes(settings) });
    }
    Ok(rows)
}

pub(super) fn read_outbox(values: Vec<Value>) -> Result<Vec<Pending>, EngineError> {
    let mut values = values.into_iter().skip(1);
    let mut entries = Vec::new();
    while let (Some(ver), Some(body), Some(row)) = (values.next(), values.next(), values.next()) {
        let ver = number(&ver).ok_or_else(|| odd("an outbox version"))?;
        entries.push(Pending { ver, body: bytes(body).ok_or_else(|| odd("an outbox entry"))?, row: bytes(row) });
    }
    Ok(entries)
}

/// The answer to a claim.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claimed {
    pub(super) ver: u64,
    /// Entries in the outbox.
    pub(super) entries: u64,
    /// Who held the partition before.
    pub(super) before: String,
}

pub(super) fn read_claim(values: &[Value]) -> Option<Claimed> {
    let [ver, entries, rest @ ..] = values else { return None };
    let before = rest.first().cloned().and_then(text).unwrap_or_default();
    Some(Claimed { ver: number(ver)?, entries: number(entries)?, before })
}

#[cfg(test)]
mod tests;
