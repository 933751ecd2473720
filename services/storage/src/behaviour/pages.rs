//! The functions that read messages: the same calls in memory and in a real Valkey give the same pages, whatever bounds them.

use bytes::Bytes;
use kith_proto::chat::v1::Draft;
use proptest::prelude::*;
use tokio::time::Instant;
use ulid::Ulid;

use super::Real;
use crate::{
    codec,
    engine::{Append, Engine, Field, Op, Page, Swap, Window, memory::MemoryEngine},
};

const PARTITION: u32 = 5;

/// One read; numbers are taken as they are.
#[derive(Debug, Clone)]
enum Read {
    Page(Page),
    Heads(usize),
}

/// Messages of a conversation: bytes of the content, and of what came upon it.
type Messages = Vec<(usize, Option<usize>)>;

fn messages() -> impl Strategy<Value = Messages> {
    let overlay = prop_oneof![3 => Just(None), 1 => (0..6_000_usize).prop_map(Some)];
    proptest::collection::vec((prop_oneof![0..60_usize, 0..4_000_usize], overlay), 0..45)
}

fn reads() -> impl Strategy<Value = Vec<Read>> {
    let window =
        prop_oneof![Just(Window::Newest), (1..50_u64).prop_map(Window::Before), (0..50_u64).prop_map(Window::After),];
    let page = (window, 1..60_u32, prop_oneof![0..6_000_usize, 0..80_000_usize], any::<bool>())
        .prop_map(|(window, limit, bytes, first)| Read::Page(Page { window, limit, bytes, first }));
    // To the library 1 is no number of bytes.
    let heads = prop_oneof![Just(0), 2..20_000_usize].prop_map(Read::Heads);
    proptest::collection::vec(prop_oneof![4 => page, 1 => heads], 1..12)
}

async fn fill(engine: &dyn Engine, id: &str, messages: &Messages, end: Instant) {
    let set = |key: String, name: &str, value: Bytes| Op::Set(Field::new(key, name), value);
    let head = [("k", "1"), ("s", "0"), ("f", "0")];
    let ops = head.into_iter().map(|(name, value)| set(format!("c:{id}"), name, value.into())).collect();
    engine.swap(PARTITION, Swap { conditions: Vec::new(), ops }, end).await.unwrap();
    for (seq, (content, overlay)) in (1_u64..).zip(messages) {
        let draft = Draft {
            client_msg_id: seq.to_string(),
            sender_id: "a".to_owned(),
            r#type: 1,
            content: vec![b'x'; *content].into(),
            ..Draft::default()
        };
        let append = Append {
            row: codec::pack(Ulid::from_parts(1_790_000_000_000, 1), &draft),
            identity_len: codec::identity_len(&draft),
            conversation_id: id.to_owned(),
            sender_id: "a".to_owned(),
            client_msg_id: seq.to_string(),
            now_ms: 1_790_000_000_000,
            privileged: true,
            hot_limit: 1_000,
            opening: Vec::new(),
        };
        assert_eq!(engine.append(PARTITION, append, end).await.unwrap().seq, seq);
        if let Some(bytes) = overlay {
            let ops = vec![set(format!("x:{id}"), &seq.to_string(), vec![b'y'; *bytes].into())];
            engine.swap(PARTITION, Swap { conditions: Vec::new(), ops }, end).await.unwrap();
        }
    }
}

async fn call(engine: &dyn Engine, ids: &[String], read: &Read, end: Instant) -> String {
    match read {
        Read::Page(page) => format!("{:?}", engine.history(PARTITION, &ids[0], *page, end).await),
        Read::Heads(last) => {
            let mut heads = engine.heads(PARTITION, "a", "", *last, ids.to_vec(), end).await.unwrap();
            for head in &mut heads {
                head.fields.sort();
            }
            format!("{heads:?}")
        }
    }
}

#[test]
fn pages_and_heads_in_valkey_are_those_of_the_model_within_the_same_bytes() {
    let real = Real::start();
    real.all_hold(40, &(messages(), messages(), reads()), async |number, (one, two, reads)| {
        let ids = [format!("d:a:p{number}"), format!("d:a:q{number}"), format!("d:a:none{number}")];
        let model = MemoryEngine::default();
        let until = Instant::now() + std::time::Duration::from_secs(30);
        for engine in [&model as &dyn Engine, &*real.engine] {
            fill(engine, &ids[0], &one, until).await;
            fill(engine, &ids[1], &two, until).await;
        }
        for read in &reads {
            let expected = call(&model, &ids, read, until).await;
            prop_assert_eq!(expected, call(&*real.engine, &ids, read, until).await, "{:?}", read);
        }
        Ok(())
    });
}
