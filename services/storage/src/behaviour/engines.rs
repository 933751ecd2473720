//! The functions of lists and of hashes that are read in pages: the same calls in memory and in a real Valkey give the same answers.

use kith_kit::valkey::Connector;
use kith_testing::{ValkeyCluster, ValkeyOptions};
use proptest::prelude::*;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Real, config, engine_of};
use crate::engine::{
    Condition, Engine, EngineError, Entry, Expect, Field, Op, Range, Refusal, Spot, Swap, Want, memory::MemoryEngine,
};

const PARTITION: u32 = 3;

/// One call; numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Act {
    Enter { id: u8, activity: i64, any: bool },
    Hint { id: u8, activity: i64 },
    Rescore { id: u8, score: i64 },
    Pin { id: u8 },
    Leave { id: u8 },
    Walk { behind: Option<(i64, u8)>, limit: u32 },
    Put { kind: u8, id: u8, most: Option<u64> },
    Take { kind: u8, id: u8 },
    Page { kind: u8, after: u8, open: bool, limit: u32 },
    Count { kind: u8 },
}

const KINDS: [(&str, &str, &str); 4] = [("f", "f", "g"), ("f", "i", "j"), ("f", "o", "p"), ("b", "", "")];

fn acts() -> impl Strategy<Value = Vec<Act>> {
    // Few activities, so that many entries share one.
    let (id, activity, kind) = (0..14_u8, 0..5_i64, 0..4_u8);
    let act = prop_oneof![
        8 => (id.clone(), activity.clone(), any::<bool>()).prop_map(|(id, activity, any)| Act::Enter { id, activity, any }),
        2 => (id.clone(), activity.clone()).prop_map(|(id, activity)| Act::Hint { id, activity }),
        1 => (id.clone(), activity.clone()).prop_map(|(id, score)| Act::Rescore { id, score }),
        1 => id.clone().prop_map(|id| Act::Pin { id }),
        1 => id.clone().prop_map(|id| Act::Leave { id }),
        6 => (proptest::option::of((activity, id.clone())), 1..6_u32).prop_map(|(behind, limit)| Act::Walk { behind, limit }),
        6 => (kind.clone(), id.clone(), proptest::option::of(0..6_u64)).prop_map(|(kind, id, most)| Act::Put { kind, id, most }),
        2 => (kind.clone(), id.clone()).prop_map(|(kind, id)| Act::Take { kind, id }),
        4 => (kind.clone(), id, any::<bool>(), 1..5_u32).prop_map(|(kind, after, open, limit)| Act::Page { kind, after, open, limit }),
        1 => kind.prop_map(|kind| Act::Count { kind }),
    ];
    proptest::collection::vec(act, 1..60)
}

fn talk(id: u8) -> String {
    // An upper-case letter, whose place among the lower-case ones depends on who compares.
    format!("d:{}{id}:me", if id.is_multiple_of(3) { "B" } else { "a" })
}

/// What a call answers, in words; what cannot be told apart is refused alike.
async fn call(engine: &dyn Engine, user: &str, act: &Act) -> String {
    let end = Instant::now() + std::time::Duration::from_secs(10);
    let (list, settings) = (format!("l:{user}"), format!("s:{user}"));
    let kind = |kind: u8| {
        let (hash, prefix, end) = KINDS[usize::from(kind)];
        (format!("{hash}:{user}"), prefix, end)
    };
    let swap = |conditions, ops| engine.swap(PARTITION, Swap { conditions, ops }, end);
    match act.clone() {
        Act::Enter { id, activity, any } => {
            let (entered, left) = ("jin\nk\n1\n{}".into(), "jout\nk\n1\n\u{1}".into());
            let (user_id, conversation_id) = (user.to_owned(), talk(id));
            let entry = Entry { user_id, conversation_id, activity, most: 6, gives_way: any, entered, left };
            format!("{:?}", engine.enter(PARTITION, entry, end).await)
        }
        Act::Hint { id, activity } => {
            format!("{:?}", engine.hints(PARTITION, user, vec![(talk(id), activity)], end).await)
        }
        Act::Rescore { id, score } => {
            let op = Op::Rescore { key: list, score, member: talk(id) };
            format!("{:?}", swap(Vec::new(), vec![op]).await)
        }
        Act::Pin { id } => {
            let op = Op::Set(Field::new(settings, talk(id)), "1|0|0".into());
            format!("{:?}", swap(Vec::new(), vec![op]).await)
        }
        Act::Leave { id } => {
            let op = Op::Unscore { key: list, member: talk(id) };
            format!("{:?}", swap(Vec::new(), vec![op]).await)
        }
        Act::Walk { behind, limit } => {
            let behind = behind.map(|(activity, id)| Spot(activity, talk(id)));
            format!("{:?}", engine.list(PARTITION, user, behind.as_ref(), limit, end).await)
        }
        Act::Put { kind: of, id, most } => {
            let (key, prefix, _) = kind(of);
            let op = Op::Set(Field::new(key.clone(), format!("{prefix}{}", talk(id))), "1".into());
            let fewer = |most| Condition { field: Field::new(key, prefix), expect: Expect::Fewer(most) };
            format!("{:?}", swap(most.map(fewer).into_iter().collect(), vec![op]).await)
        }
        Act::Take { kind: of, id } => {
            let (key, prefix, _) = kind(of);
            let op = Op::Delete(Field::new(key, format!("{prefix}{}", talk(id))));
            format!("{:?}", swap(Vec::new(), vec![op]).await)
        }
        Act::Page { kind: of, after, open, limit } => {
            let (key, prefix, to) = kind(of);
            let after = if open { prefix.to_owned() } else { format!("{prefix}{}", talk(after)) };
            format!("{:?}", engine.field_page(PARTITION, Range { key, after, end: to, limit }, end).await)
        }
        Act::Count { kind: of } => {
            let (key, prefix, _) = kind(of);
            format!("{:?}", engine.get(PARTITION, vec![Want::Count { key, prefix }], end).await)
        }
    }
}

#[test]
fn lists_and_pages_in_valkey_are_those_of_the_model() {
    let real = Real::start();
    real.all_hold(60, &acts(), async |number, acts| {
        let (user, engine) = (format!("e{number}"), &*real.engine);
        let model = MemoryEngine::default();
        let made =
            || Swap { conditions: Vec::new(), ops: vec![Op::Set(Field::new(format!("u:{user}"), "v"), "1".into())] };
        let until = Instant::now() + std::time::Duration::from_secs(10);
        let nobody = call(engine, &user, &Act::Enter { id: 0, activity: 0, any: true }).await;
        let refused: Result<bool, EngineError> = Err(EngineError::Refused(Refusal::NoUser));
        prop_assert_eq!(nobody, format!("{refused:?}"));
        for engine in [&model as &dyn Engine, engine] {
            engine.swap(PARTITION, made(), until).await.unwrap();
        }
        for act in &acts {
            let expected = call(&model, &user, act).await;
            prop_assert_eq!(expected, call(engine, &user, act).await, "{:?}", act);
        }
        Ok(())
    });
}

#[test]
fn fields_that_the_version_before_wrote_are_paged_and_counted_too() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let options = ValkeyOptions { library: Some(crate::LIBRARY.to_owned()), ..ValkeyOptions::default() };
        let cluster = ValkeyCluster::start(options).await.unwrap();
        let end = CancellationToken::new();
        let config = config(&cluster);
        let real = engine_of(&config, &end).await;
        let until = Instant::now() + std::time::Duration::from_secs(10);
        let range = || Range { key: "f:old".to_owned(), after: "f".to_owned(), end: "g", limit: 2_000 };
        let op = |n: u32| Op::Set(Field::new("f:old", format!("fx{n:04}")), "1|1|".into());
        real.swap(PARTITION, Swap { conditions: Vec::new(), ops: (0..1_500).map(op).collect() }, until).await.unwrap();
        // As it stands when no index was ever written.
        let valkey = config.valkey.clone().unwrap();
        let connector = Connector::new(&config, &valkey).unwrap();
        let key = crate::tags::version_key(PARTITION, super::PARTITIONS);
        let index = format!("{}i:f:old", &key[..key.len() - 1]);
        let mut gone = 0;
        for node in &valkey.seeds {
            let mut connection = connector.connect(node, std::time::Duration::from_secs(5)).await.unwrap();
            let mut delete = redis::cmd("UNLINK");
            // The other nodes answer that the slot is not theirs.
            let answer = connection.command(delete.arg(&index)).await;
            gone += u32::from(matches!(answer, Ok(redis::Value::Int(1))));
        }
        assert_eq!(gone, 1);
        let count = Want::Count { key: "f:old".to_owned(), prefix: "f" };
        let counted = real.get(PARTITION, vec![count], until).await.unwrap();
        assert_eq!(counted, [crate::engine::Got::Count(1_500)]);
        assert_eq!(real.field_page(PARTITION, range(), until).await.unwrap().fields.len(), 1_500);
        end.cancel();
    });
}
