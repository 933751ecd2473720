//! The pages and schemas that are generated from the types: compared here, and written anew with `KITH_BLESS=1`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    events::{self, Kind, Topic, envelope::header},
    frames::{self, ClientFrame, EventName, ServerFrame, close, example},
    json,
    message::{Message, SendMessage},
    problem::Problem,
};

const COMMAND: &str = "KITH_BLESS=1 cargo test -p kith-contract";

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// The files, by their places below `docs`.
fn files() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut add = |name: &str, schema: &Value| {
        let text = serde_json::to_string_pretty(schema).unwrap() + "\n";
        files.insert(format!("schemas/{name}.json"), text);
    };
    for kind in Kind::ALL {
        add(kind.name(), &events::schema(*kind));
    }
    add("client-frame", &json::schema::<ClientFrame<SendMessage<Value>>>());
    add("server-frame", &json::schema::<ServerFrame<'_, Value>>());
    add("message", &json::schema::<Message<'_, Value>>());
    add("send-message", &json::schema::<SendMessage<Value>>());
    add("problem", &json::schema::<Problem<'_>>());
    files.insert("events.md".to_owned(), events_page());
    files.insert("websocket.md".to_owned(), websocket_page());
    files
}

fn text<'a>(schema: &'a Value, field: &str) -> &'a str {
    schema[field].as_str().unwrap_or_default()
}

/// What a field may hold, in words.
fn spelt(schema: &Value) -> String {
    if let Some(names) = schema["enum"].as_array() {
        let names: Vec<String> = names.iter().filter_map(Value::as_str).map(|name| format!("`{name}`")).collect();
        return names.join(", ");
    }
    let decimal = schema["pattern"].is_string();
    let one = |kind: &Value| match kind.as_str().unwrap_or("any") {
        "string" if decimal => "integer as a string".to_owned(),
        "array" => format!("array of {}", spelt(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("object of {}", spelt(&schema["additionalProperties"]))
        }
        kind => kind.to_owned(),
    };
    match &schema["type"] {
        Value::Array(kinds) => kinds.iter().map(one).collect::<Vec<_>>().join(" or "),
        kind => one(kind),
    }
}

/// The fields of an object as a table.
fn fields(schema: &Value) -> String {
    let mut table = "| field | JSON | meaning |\n| --- | --- | --- |\n".to_owned();
    let always: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        if field["const"].is_string() {
            continue;
        }
        let optional = if always.contains(&name.as_str()) { "" } else { "?" };
        let meaning = text(field, "description").replace('\n', " ");
        let spelt = spelt(field);
        // What may be absent is never written as null.
        let spelt = if optional.is_empty() { &spelt } else { spelt.trim_end_matches(" or null") };
        writeln!(table, "| `{name}`{optional} | {spelt} | {meaning} |").unwrap();
    }
    table
}

fn events_page() -> String {
    let mut page = format!(
        "# Events\n\n<!-- Generated from services/contract; `{COMMAND}` writes it anew. -->\n\n\
        What the platform tells on Kafka: CloudEvents 1.0 in binary mode, a record each. `<cluster>.events` has everything that storage \
        changed, in order per key; `<cluster>.sessions` has logins and logouts. A record comes at least once. Skip types and fields that you \
        do not know: later versions add some. 64-bit integers are strings. Fields marked `?` may be absent. The JSON Schema of each is in \
        [schemas](schemas).\n\n## Headers\n\n| header | value |\n| --- | --- |\n"
    );
    for (name, value) in [
        (header::SPEC_VERSION, "`1.0`"),
        (header::TYPE, "The type, as below."),
        (header::ID, "Unique per source."),
        (header::SOURCE, "`kith://<cluster>/<service>`"),
        (header::TIME, "When it happened, RFC 3339 in UTC."),
        (header::PARTITION_KEY, "The record's key: the conversation or user that it is about."),
        (header::CLUSTER, "The UID of the ChatCluster."),
        (header::PARTITION, "Kith's own partition of the key."),
        (
            header::VERSION,
            "The place in that partition. On `<cluster>.events` it rises by one with every event: what is not above the last one was told \
             before, and a gap is one that is missing.",
        ),
        (header::CONTENT_TYPE, "`application/json`"),
    ] {
        writeln!(page, "| `{name}` | {value} |").unwrap();
    }
    writeln!(
        page,
        "\nTwo types on `<cluster>.events` tell nothing: `{}` (an entry that could not be read; it keeps its place, and has an empty key), and \
         `{}` (where a repair's reading ends; without `{}`).",
        events::CORRUPT,
        events::REPAIR_MARKER,
        header::VERSION
    )
    .unwrap();
    for (title, topic, internal) in [
        ("`<cluster>.events`", Topic::Events, false),
        ("`<cluster>.sessions`", Topic::Sessions, false),
        ("Internal types", Topic::Events, true),
        ("Internal types of sessions", Topic::Sessions, true),
    ] {
        writeln!(page, "\n## {title}").unwrap();
        if internal {
            writeln!(
                page,
                "\nThe platform restores and keeps itself by them; others skip them, since they may change."
            )
            .unwrap();
        }
        let of_topic = Kind::ALL.iter().filter(|kind| kind.topic() == topic && kind.is_internal() == internal);
        for kind in of_topic {
            let schema = events::schema(*kind);
            let name = kind.ce_type();
            let (what, key) = (kind.what(), kind.key_field());
            write!(
                page,
                "\n### {name}\n\n{what} The key is `{key}`.\n\n{}\n```json\n{}\n```\n",
                fields(&schema),
                events::example::of(*kind)
            )
            .unwrap();
        }
    }
    page
}

/// One of several frames in a schema, by its `type`.
fn variant<'a>(schema: &'a Value, name: &str) -> &'a Value {
    let variants = schema["oneOf"].as_array().expect("frames are variants");
    variants.iter().find(|v| v["properties"]["type"]["const"] == name).unwrap_or_else(|| panic!("no frame {name}"))
}

fn websocket_page() -> String {
    let mut page = format!(
        "# WebSocket\n\n<!-- Generated from services/contract; `{COMMAND}` writes it anew. -->\n\n\
        `GET /v1/connect` with the subprotocol `{}`: one JSON object a frame, at most {} KiB from a client. The token comes in the \
        `Authorization` header or in the first frame within {} s, never in the URL. 64-bit integers are strings. Fields marked `?` may be \
        absent. Skip frames, events and fields that you do not know: later versions add some. The JSON Schemas are \
        [client-frame](schemas/client-frame.json) and [server-frame](schemas/server-frame.json).\n\n\
        Heartbeat: `hello` says how often (`heartbeat_ms`); a client that was silent for {} heartbeats is taken for gone. WebSocket pings \
        count, too.\n\n\
        Resume: come back with `cursors` and the last `resume_token`. `resumed: true` says that the cursors were taken as they are and \
        everything behind them follows.\n\n\
        An `ack` names at most {} positions, an `auth` at most {} cursors, and the `id` of a `send` has at most {} bytes.\n",
        frames::SUBPROTOCOL,
        frames::MAX_FRAME_BYTES >> 10,
        frames::AUTH_SECONDS,
        frames::SILENT_HEARTBEATS,
        frames::MAX_ACKS,
        frames::MAX_CURSORS,
        frames::MAX_SEND_ID_BYTES,
    );
    let (client, server) =
        (json::schema::<ClientFrame<SendMessage<Value>>>(), json::schema::<ServerFrame<'_, Value>>());
    for (title, schema, examples) in
        [("Frames of clients", &client, &example::CLIENT[..]), ("Frames of the server", &server, &example::SERVER[..])]
    {
        writeln!(page, "\n## {title}").unwrap();
        for (name, shown) in examples {
            let frame = variant(schema, name);
            let what = text(frame, "description").replace('\n', " ");
            write!(page, "\n### {name}\n\n{what}\n").unwrap();
            if frame["properties"].as_object().is_some_and(|fields| fields.len() > 1) {
                write!(page, "\n{}", fields(frame)).unwrap();
            }
            write!(page, "\n```json\n{shown}\n```\n").unwrap();
        }
    }
    page.push_str("\n## Messages\n\nA message in a `messages` frame, and wherever HTTP shows one.\n\n");
    page.push_str(&fields(&json::schema::<Message<'_, Value>>()));
    page.push_str("\nThe `message` of a `send`, and the body of POST /v1/messages:\n\n");
    page.push_str(&fields(&json::schema::<SendMessage<Value>>()));
    page.push_str("\n## Events\n\nWhat `event` may be, and its `data`; [events.md](events.md) has the fields.\n\n| event | data |\n| --- | --- |\n");
    for (name, data) in EventName::ALL {
        writeln!(page, "| `{name}` | {data} |").unwrap();
    }
    page.push_str("\n## Close codes\n\n| code | meaning |\n| --- | --- |\n");
    for (code, meaning) in close::ALL {
        writeln!(page, "| {code} | {meaning} |").unwrap();
    }
    page
}

#[test]
fn the_committed_pages_and_schemas_are_what_the_types_say() {
    let files = files();
    if std::env::var_os("KITH_BLESS").is_some() {
        // What no type says any more goes.
        drop(fs::remove_dir_all(docs().join("schemas")));
        fs::create_dir_all(docs().join("schemas")).unwrap();
        for (name, text) in &files {
            fs::write(docs().join(name), text).unwrap();
        }
    }
    let mut wrong: Vec<String> = Vec::new();
    for (name, text) in &files {
        if fs::read_to_string(docs().join(name)).ok().as_ref() != Some(text) {
            wrong.push(format!("docs/{name} differs"));
        }
    }
    for entry in fs::read_dir(docs().join("schemas")).unwrap() {
        let name = format!("schemas/{}", entry.unwrap().file_name().to_string_lossy());
        if !files.contains_key(&name) {
            wrong.push(format!("docs/{name} is of no type"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}: `{COMMAND}` writes them anew");
}

#[test]
fn every_field_of_every_example_is_described_and_what_is_always_there_is_in_it() {
    let mut shown: Vec<(String, Value, Value)> = Vec::new();
    for kind in Kind::ALL {
        let example = serde_json::from_str(events::example::of(*kind)).unwrap();
        shown.push((kind.to_string(), events::schema(*kind), example));
    }
    let (client, server) =
        (json::schema::<ClientFrame<SendMessage<Value>>>(), json::schema::<ServerFrame<'_, Value>>());
    for (schema, examples) in [(&client, &example::CLIENT[..]), (&server, &example::SERVER[..])] {
        let all = schema["oneOf"].as_array().unwrap();
        assert_eq!(all.len(), examples.len());
        for (name, text) in examples {
            shown.push(((*name).to_owned(), variant(schema, name).clone(), serde_json::from_str(text).unwrap()));
        }
    }
    for (name, schema, example) in shown {
        let described = schema["properties"].as_object().unwrap();
        for (field, value) in described {
            assert!(value["const"].is_string() || !text(value, "description").is_empty(), "{name} {field}");
        }
        for field in example.as_object().unwrap().keys() {
            assert!(described.contains_key(field), "{name} {field}");
        }
        for field in schema["required"].as_array().into_iter().flatten() {
            assert!(example.get(field.as_str().unwrap()).is_some(), "{name} {field}");
        }
    }
}
