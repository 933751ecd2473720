//! What one operator costs that looks after many ChatClusters: the real binary against a real API server, with imitated pods and engines.
//!
//! Not a part of the check: `make bench-operator`. `KITH_BENCH_CLUSTERS` sets another number of ChatClusters, `KITH_BENCH_OPERATOR` another
//! binary.

mod brokers;
mod engine;
mod platform;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::server::ApiServer;
use kube::{Client, Config};
use platform::Platform;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SHARDS: usize = 3;
const MEMBERS: usize = 3;
const MEASURED: Duration = Duration::from_secs(60);
/// Nothing is written for so long: settled.
const CALM: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(1_800);
const MIB: f64 = 1_048_576.0;
/// Per cent of a core that a settled operator may use over 300 ChatClusters of three shards.
const CPU_BOUND: f64 = 20.0;
/// Its memory.
const MIB_BOUND: f64 = 250.0;
/// From the lease until every ChatCluster has failover.
const FAILOVER_BACK: Duration = Duration::from_secs(3);

#[test]
#[ignore = "takes many minutes: make bench-operator"]
fn bench_300_clusters() {
    let clusters = std::env::var("KITH_BENCH_CLUSTERS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    raise_file_limit();
    let server = ApiServer::start();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(bench(&server, clusters));
}

/// Each engine has a listener and a connection.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("a higher limit of open files");
}

async fn bench(server: &ApiServer, clusters: usize) {
    kith_kit::tls::install_provider();
    let mut config = Config::new(server.url().parse().expect("a URL"));
    config.accept_invalid_certs = true;
    config.auth_info.token = Some("admin".to_owned().into());
    let client = Client::try_from(config).expect("a client");
    crate::support::crds::install(&client).await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut platform = Platform::new(client, clusters, SHARDS, MEMBERS, dir.path());
    platform.create().await;
    let operator = Operator::start(server, dir.path(), "first");
    let took = settle(&operator, &mut platform).await;
    println!("{clusters} ChatClusters settled after {} s", took.as_secs());
    let cost = measure(&operator).await;
    cost.print(clusters * SHARDS);
    drop(operator);
    platform.forget_asked();
    let operator = Operator::start(server, dir.path(), "second");
    let (led, failover) = succession(&operator, &platform).await;
    println!(
        "change of leader: lease taken {} ms after the start, all primaries probed {} ms later (bound {})",
        led.as_millis(),
        failover.as_millis(),
        FAILOVER_BACK.as_millis()
    );
    cost.assert_bounds();
    assert!(failover <= FAILOVER_BACK, "failover is back after {failover:?}");
}

/// Waits until all storage is ready and nothing is written any more.
async fn settle(operator: &Operator, platform: &mut Platform<'_>) -> Duration {
    let begun = Instant::now();
    let (mut writes, mut since) = (0, Instant::now());
    loop {
        if begun.elapsed() >= LIMIT {
            let ready = platform.ready().await;
            panic!("not settled: {ready} of {} are ready:\n{}", platform.clusters, operator.log_tail());
        }
        let running = platform.tend().await;
        let now = operator.metrics().await.iter().filter(|(name, _)| is_write(name)).map(|(_, n)| *n as u64).sum();
        if writes != now {
            (writes, since) = (now, Instant::now());
        }
        let calm = since.elapsed() >= CALM && running == platform.clusters;
        if calm && platform.ready().await == platform.clusters {
            return begun.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// From the start of an operator to its lease, and from there until it has asked all primaries.
async fn succession(operator: &Operator, platform: &Platform<'_>) -> (Duration, Duration) {
    let begun = Instant::now();
    let mut led = None;
    loop {
        assert!(begun.elapsed() < Duration::from_secs(120), "no failover after a change of leader");
        if led.is_none() {
            let metrics = operator.try_metrics().await.unwrap_or_default();
            led = (metrics.get("kith_operator_leader") == Some(&1.0)).then(|| begun.elapsed());
        }
        if let Some(led) = led
            && platform.asked() >= platform.clusters
        {
            return (led, begun.elapsed().saturating_sub(led));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What was used in the time measured.
struct Cost {
    cpu: f64,
    rss: f64,
    peak: f64,
    /// Whatever was counted.
    counted: BTreeMap<String, f64>,
}

async fn measure(operator: &Operator) -> Cost {
    let (before, cpu, begun) = (operator.metrics().await, operator.cpu_seconds(), Instant::now());
    tokio::time::sleep(MEASURED).await;
    let used = (operator.cpu_seconds() - cpu) / begun.elapsed().as_secs_f64();
    let counted = operator.metrics().await.into_iter().map(|(name, value)| {
        let more = value - before.get(&name).copied().unwrap_or(0.0);
        (name, more)
    });
    Cost {
        cpu: used,
        rss: operator.memory("VmRSS:"),
        peak: operator.memory("VmHWM:"),
        counted: counted.filter(|(_, more)| *more > 0.0).collect(),
    }
}

const REQUESTS: &str = "kith_operator_api_requests_total";
const PROBES: &str = "kith_operator_probes_total";
const PASSES: &str = "kith_operator_reconciles_total";
const PASS_SECONDS: &str = "kith_operator_reconcile_seconds_sum";

/// Leases are written all the time.
fn is_write(metric: &str) -> bool {
    let reads = ["verb=\"get\"", "verb=\"list\"", "verb=\"watch\"", "resource=\"leases\""];
    metric.starts_with(REQUESTS) && !reads.iter().any(|read| metric.contains(read))
}

impl Cost {
    fn all<'a>(&'a self, metric: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let of = move |(name, n): (&'a String, &f64)| Some((name.strip_prefix(metric)?, *n));
        self.counted.iter().filter_map(of)
    }

    fn writes(&self) -> u64 {
        self.counted.iter().filter(|(name, _)| is_write(name)).map(|(_, n)| *n as u64).sum()
    }

    fn print(&self, primaries: usize) {
        let each = |whole: f64| whole / primaries as f64;
        let seconds = MEASURED.as_secs_f64();
        let rate = |metric: &str| self.all(metric).map(|(_, n)| n).sum::<f64>() / seconds;
        println!("settled, over {seconds} s            total    per primary ({primaries})    bound");
        println!(
            "CPU, % of a core         {:>12.1} {:>18.4}       {CPU_BOUND}",
            self.cpu * 100.0,
            each(self.cpu * 100.0)
        );
        println!("memory, MiB (now)        {:>12.1} {:>18.3}      {MIB_BOUND}", self.rss / MIB, each(self.rss / MIB));
        println!("memory, MiB (peak)       {:>12.1} {:>18.3}", self.peak / MIB, each(self.peak / MIB));
        println!("API requests per s       {:>12.2} {:>18.5}", rate(REQUESTS), each(rate(REQUESTS)));
        println!("probes of clusters per s {:>12.2} {:>18.5}", rate(PROBES), each(rate(PROBES)));
        println!("passes per s             {:>12.2} {:>18.5}", rate(PASSES), each(rate(PASSES)));
        println!("seconds in passes per s  {:>12.4} {:>18.6}", rate(PASS_SECONDS), each(rate(PASS_SECONDS)));
        println!("writes                   {:>12} {:>18}        0", self.writes(), "");
        for metric in [REQUESTS, PROBES, PASSES, PASS_SECONDS] {
            self.all(metric).for_each(|(labels, more)| println!("  {metric}{labels} {more:.4}"));
        }
    }

    /// Fails where it is more than may be.
    fn assert_bounds(&self) {
        let requests: Vec<_> = self.all(REQUESTS).collect();
        assert_eq!(self.writes(), 0, "a settled platform is written to: {requests:?}");
        assert!(self.cpu * 100.0 <= CPU_BOUND, "{:.1} % of a core", self.cpu * 100.0);
        assert!(self.rss / MIB <= MIB_BOUND, "{:.1} MiB", self.rss / MIB);
    }
}

/// The operator's process.
struct Operator {
    child: Child,
    admin: u16,
    ticks: f64,
    log: PathBuf,
}

impl Operator {
    fn start(server: &ApiServer, dir: &Path, name: &str) -> Self {
        let kubeconfig = server.file(
            "operator.kubeconfig",
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
                 clusters: [{{name: a, cluster: {{server: \"{}\", insecure-skip-tls-verify: true}}}}]\n\
                 users: [{{name: a, user: {{token: admin}}}}]\n\
                 contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n",
                server.url()
            ),
        );
        let admin = kith_testing::free_port();
        let path = dir.join(format!("{name}.log"));
        let log = fs::File::create(&path).expect("a log");
        let built = env!("CARGO_BIN_EXE_kith-operator");
        let child = Command::new(std::env::var_os("KITH_BENCH_OPERATOR").unwrap_or_else(|| built.into()))
            .arg("run")
            .env("KUBECONFIG", kubeconfig)
            .envs([
                ("KITH_IMAGE", "kith:bench"),
                ("KITH_VALKEY_IMAGE", "valkey:bench"),
                ("KITH_KAFKA_IMAGE", "kafka:bench"),
            ])
            .envs([("POD_NAME", name), ("POD_NAMESPACE", "default")])
            .env("KITH_ADMIN", format!("127.0.0.1:{admin}"))
            .env("KITH_RUN_DIR", dir.join(name))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("the operator starts");
        let ticks = Command::new("getconf").arg("CLK_TCK").output().expect("getconf");
        let ticks = String::from_utf8_lossy(&ticks.stdout).trim().parse().expect("a number");
        Self { child, admin, ticks, log: path }
    }

    /// User and system time so far.
    fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the operator runs");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        // The 14th and 15th of all; the first two are cut off.
        let ticks: f64 = fields[11..13].iter().map(|n| n.parse::<f64>().expect("a number")).sum();
        ticks / self.ticks
    }

    /// A line of its status, bytes.
    fn memory(&self, line: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the operator runs");
        let found = status.lines().find_map(|l| l.strip_prefix(line)).expect("the line");
        found.trim().trim_end_matches(" kB").trim().parse::<f64>().expect("a number") * 1024.0
    }

    /// All metrics; waits until it answers.
    async fn metrics(&self) -> BTreeMap<String, f64> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(metrics) = self.try_metrics().await {
                return metrics;
            }
            assert!(Instant::now() < end, "the operator does not answer:\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    async fn try_metrics(&self) -> Option<BTreeMap<String, f64>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).await.ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: operator\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let lines = text.lines().filter(|line| line.starts_with("kith_"));
        Some(
            lines
                .filter_map(|line| line.rsplit_once(' '))
                .filter_map(|(n, v)| Some((n.to_owned(), v.parse().ok()?)))
                .collect(),
        )
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
