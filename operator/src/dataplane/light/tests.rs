//! When a round is light, and what a light answer confirms.

use redis::ServerErrorKind;

use super::*;
use crate::dataplane::{
    fake::{Fake, desired},
    types::{HandOver, Problem, Reason, Seen},
    watch::Order,
};

const REST: Duration = Duration::from_secs(20);

struct Stage {
    wish: Desired,
    fake: Fake,
    watch: Watch,
    now: Instant,
}

impl Stage {
    fn new() -> Self {
        let wish = Desired { formed: true, ..desired(2) };
        let fake = Fake::formed(&desired(2));
        Self { wish, fake, watch: Watch::default(), now: Instant::now() }
    }

    fn look(&mut self) -> Result<Baseline, Cause> {
        self.look_and(|_| {})
    }

    fn look_and(&mut self, change: impl FnOnce(&mut Findings)) -> Result<Baseline, Cause> {
        let (wish, seen) = (Arc::new(self.wish.clone()), self.fake.observe(&self.wish));
        let mut findings = self.watch.look(self.now, &wish, &seen);
        change(&mut findings);
        Baseline::of(self.now, REST, &wish, &seen, &self.watch, &findings)
    }

    fn primary(&mut self) -> usize {
        self.fake.nodes.iter().position(|n| n.replicates.is_none()).expect("a primary")
    }
}

type Change = Box<dyn Fn(&mut Stage) -> Result<Baseline, Cause>>;

#[test]
fn only_a_look_that_found_all_well_is_compared_with() {
    let problem = Problem::new(Reason::PrimaryDown, "it is silent");
    let order = Order::Switchover { shard: "demo-0".to_owned(), from: "a".to_owned(), to: "b".to_owned() };
    let cases: Vec<(&str, Change, Result<usize, Cause>)> = vec![
        ("all well", Box::new(Stage::look), Ok(2)),
        (
            "something is told",
            Box::new(move |s| s.look_and(|f| f.problems.push(problem.clone()))),
            Err(Cause::Unsettled),
        ),
        ("something is done", Box::new(move |s| s.look_and(|f| f.orders.push(order.clone()))), Err(Cause::Unsettled)),
        (
            "a primary has just fallen silent",
            Box::new(|s| {
                s.look().expect("all well");
                let primary = s.primary();
                s.fake.nodes[primary].up = false;
                s.look()
            }),
            Err(Cause::Unsettled),
        ),
        (
            "a primary was never seen",
            Box::new(|s| {
                for node in s.fake.nodes.iter_mut().filter(|n| n.shard == "demo-1") {
                    node.up = false;
                    node.down = Seen::Loading;
                }
                s.look()
            }),
            Err(Cause::Unsettled),
        ),
        (
            "a replica does not answer",
            Box::new(|s| {
                let replica = s.fake.nodes.iter().position(|n| n.replicates.is_some()).expect("a replica");
                s.fake.nodes[replica].up = false;
                s.look()
            }),
            Ok(2),
        ),
        (
            "a pod is being deleted",
            Box::new(|s| {
                s.wish.shards[1].members[2].presence = Presence::Terminating;
                s.look()
            }),
            Err(Cause::Leaving),
        ),
        (
            "a hand-over is asked for that cannot be made yet",
            Box::new(|s| {
                s.wish.shards[1].hand_over = Some(HandOver { from: "another".to_owned(), to: None });
                s.look()
            }),
            Err(Cause::Leaving),
        ),
    ];
    for (what, look, expected) in cases {
        let found = look(&mut Stage::new()).map(|baseline| baseline.vitals.len());
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn each_cause_makes_a_round_look_at_everything() {
    let mut stage = Stage::new();
    let baseline = stage.look().expect("all well");
    let same = baseline.desired.clone();
    let mut other = stage.wish.clone();
    other.shards[0].members[0].uid = "another pod of this name".to_owned();
    let (equal, other) = (Arc::new(stage.wish.clone()), Arc::new(other));
    let now = stage.now;
    let quiet = Round { now, desired: &same, moving: false, stranded: false };
    let known = Ok(baseline);
    for (what, round, expected) in [
        ("nothing has changed", quiet, Ok(())),
        ("the same is desired", Round { desired: &equal, ..quiet }, Ok(())),
        ("a moment before its age", Round { now: now + REST.mul_f64(0.99), ..quiet }, Ok(())),
        ("its age", Round { now: now + REST, ..quiet }, Err(Cause::Age)),
        ("another pod", Round { desired: &other, ..quiet }, Err(Cause::Desired)),
        ("slots move", Round { moving: true, ..quiet }, Err(Cause::Moving)),
        ("a claim of a dead primary", Round { stranded: true, ..quiet }, Err(Cause::Stranded)),
    ] {
        assert_eq!(may_be_light(&known, &round).map(drop), expected, "{what}");
    }
    for cause in [Cause::Unsettled, Cause::Leaving] {
        assert_eq!(may_be_light(&Err(cause), &quiet).map(drop), Err(cause));
    }
}

const INFO: &str = "# Replication\r\nrole:master\r\nconnected_slaves:2\r\n\
    slave0:ip=10.0.0.1,port=6379,state=online,offset=7,lag=0,type=replica\r\n\
    slave1:ip=10.0.0.2,port=6379,state=online,offset=7,lag=1,type=replica\r\n\
    master_failover_state:no-failover\r\nmaster_replid:new\r\nmaster_replid2:old\r\nmaster_repl_offset:9\r\n\
    second_repl_offset:-1\r\nrepl_backlog_active:1\r\n";

fn vital() -> Vital {
    let replica =
        |last| AttachedReplica { address: Some(SocketAddr::from(([10, 0, 0, last], 6379))), online: true, offset: 1 };
    Vital {
        shard: "demo-0".to_owned(),
        address: SocketAddr::from(([10, 0, 0, 9], 6379)),
        id: crate::dataplane::fake::id(1),
        history: History { id: "new".to_owned(), previous: "old".to_owned() },
        replicas: vec![replica(1), replica(2)],
    }
}

#[test]
fn a_light_answer_confirms_a_primary_only_if_it_is_as_it_was() {
    let without_first = INFO.replace("slave0:ip=10.0.0.1", "slave0:ip=10.0.0.2").replacen("slave1:", "other:", 1);
    for (what, info, expected) in [
        ("the same", INFO.to_owned(), Ok(())),
        ("replicas acknowledge more", INFO.replace("offset=7,lag=0", "offset=900,lag=1"), Ok(())),
        ("it became a replica", INFO.replace("role:master", "role:slave"), Err(Cause::Role)),
        ("it began anew, empty or not", INFO.replace("replid:new", "replid:newer"), Err(Cause::History)),
        ("it continues another history", INFO.replace("replid2:old", "replid2:new"), Err(Cause::History)),
        ("a replica takes a full copy", INFO.replacen("online", "send_bulk", 1), Err(Cause::Replicas)),
        ("another replica", INFO.replace("10.0.0.2", "10.0.0.3"), Err(Cause::Replicas)),
        ("a replica less, the last", INFO.replacen("slave1:", "other:", 1), Err(Cause::Replicas)),
        ("a replica less, the first", without_first, Err(Cause::Replicas)),
        ("a replica more", INFO.replace("master_failover_state:", "slave2:"), Err(Cause::Replicas)),
        ("no answer to the question", String::new(), Err(Cause::Silent)),
    ] {
        let answer = vec![text(vital().id.as_str()), text(&info)];
        assert_eq!(compare(&vital(), &Ok(answer)), expected, "{what}");
    }
}

fn text(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

#[test]
fn a_light_answer_of_another_node_or_none_confirms_nothing() {
    let id = || text(vital().id.as_str());
    let loading = redis::parse_redis_value(b"-LOADING data is being read\r\n").expect("an answer");
    assert!(matches!(&loading, Value::ServerError(e) if e.kind() == Some(ServerErrorKind::BusyLoading)));
    let silence = LinkError::Deadline(vital().address);
    for (what, answer, expected) in [
        ("another node", Ok(vec![text(crate::dataplane::fake::id(2).as_str()), text(INFO)]), Err(Cause::Stranger)),
        ("it loads its data", Ok(vec![loading, text(INFO)]), Err(Cause::Silent)),
        ("half an answer", Ok(vec![id()]), Err(Cause::Silent)),
        ("no text", Ok(vec![id(), Value::BulkString(vec![0xff])]), Err(Cause::Silent)),
        ("silence", Err(silence), Err(Cause::Silent)),
    ] {
        assert_eq!(compare(&vital(), &answer), expected, "{what}");
    }
}

#[test]
fn what_the_engine_showed_is_a_change_and_what_the_operator_knew_is_none() {
    let changes = [Cause::Silent, Cause::Stranger, Cause::Role, Cause::History, Cause::Replicas];
    let others = [Cause::Unsettled, Cause::Leaving, Cause::Stranded, Cause::Desired, Cause::Moving, Cause::Age];
    assert!(changes.iter().all(|c| c.is_change()) && !others.iter().any(|c| c.is_change()));
    let mut words: Vec<_> = changes.iter().chain(&others).map(|c| c.word()).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), changes.len() + others.len());
}
