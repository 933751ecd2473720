//! What the processes of this machine use, by what they are: the parts of the platform, Kubernetes, and everything else.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    time::{Duration, Instant},
};

use crate::local::cpu_of;

/// What Kubernetes itself runs on a node or above it.
const KUBERNETES: [&str; 10] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "etcd",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    "coredns",
];

/// To whom a process belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Platform,
    Operator,
    Kubernetes,
    Client,
    Others,
}

/// CPU time of every process, at one moment.
#[derive(Debug, Clone)]
pub(super) struct Processes {
    at: Instant,
    all: BTreeMap<u32, (Owner, String, Duration)>,
}

impl Processes {
    /// Of all processes that can be seen; those in containers of this machine are among them.
    pub(super) fn now() -> Self {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let all = pids.filter_map(|pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let arguments: Vec<String> =
                command.split(|b| *b == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect();
            let (owner, name) = named(&arguments, pid == std::process::id());
            Some((pid, (owner, name, cpu_of(pid)?)))
        });
        Self { at: Instant::now(), all: all.collect() }
    }

    /// What was used since `earlier`. A process that ended meanwhile is missing.
    pub(super) fn since(&self, earlier: &Self, messages: u64) -> Used {
        let mut parts: BTreeMap<(Owner, String), f64> = BTreeMap::new();
        for (pid, (owner, name, cpu)) in &self.all {
            let before = earlier.all.get(pid).filter(|(_, other, _)| other == name);
            let used = cpu.saturating_sub(before.map_or(Duration::ZERO, |(_, _, cpu)| *cpu));
            *parts.entry((*owner, name.clone())).or_default() += used.as_secs_f64();
        }
        Used { lasted: self.at - earlier.at, messages, parts }
    }
}

/// Who a process is, by its command.
fn named(arguments: &[String], this: bool) -> (Owner, String) {
    let program = |argument: &String| Path::new(argument).file_name().map(|n| n.to_string_lossy().into_owned());
    let Some(name) = arguments.first().and_then(program) else { return (Owner::Others, "kernel".to_owned()) };
    // A title such as `valkey-server 0.0.0.0:6379 [cluster]` is one argument.
    let name = name.split(' ').next().unwrap_or_default().trim_end_matches(':').to_owned();
    match name.as_str() {
        _ if this => (Owner::Client, "this client".to_owned()),
        "kith" => (Owner::Platform, arguments.get(1).cloned().unwrap_or(name)),
        "valkey-server" => (Owner::Platform, "valkey".to_owned()),
        "java" => (Owner::Platform, "kafka".to_owned()),
        "kith-operator" => (Owner::Operator, "operator".to_owned()),
        other if KUBERNETES.contains(&other) => (Owner::Kubernetes, name),
        _ => (Owner::Others, "others".to_owned()),
    }
}

/// CPU seconds by part.
#[derive(Debug, Clone)]
pub(super) struct Used {
    lasted: Duration,
    messages: u64,
    parts: BTreeMap<(Owner, String), f64>,
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |owner: Owner| self.parts.iter().filter(move |((other, _), _)| *other == owner);
        let sum = |owner: Owner| of(owner).map(|(_, seconds)| seconds).sum::<f64>();
        let million = 1e6 / self.messages.max(1) as f64;
        let list: Vec<String> =
            of(Owner::Platform).map(|((_, name), seconds)| format!("{name} {:.0}", seconds * million)).collect();
        writeln!(
            f,
            "  CPU seconds per million messages: {:.0} ({}), this client {:.0}",
            sum(Owner::Platform) * million,
            list.join(", "),
            sum(Owner::Client) * million
        )?;
        let cores = |seconds: f64| seconds / self.lasted.as_secs_f64();
        let list: Vec<String> =
            of(Owner::Kubernetes).map(|((_, name), seconds)| format!("{name} {:.2}", cores(*seconds))).collect();
        write!(
            f,
            "  cores: platform {:.2}, operator {:.2}, Kubernetes {:.2} ({}), others {:.2}",
            cores(sum(Owner::Platform)),
            cores(sum(Owner::Operator)),
            cores(sum(Owner::Kubernetes)),
            list.join(", "),
            cores(sum(Owner::Others))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_counted_where_it_belongs() {
        for (command, owner, name) in [
            ("/usr/local/bin/kith\0storage\0--config", Owner::Platform, "storage"),
            ("valkey-server 0.0.0.0:6379 [cluster]", Owner::Platform, "valkey"),
            ("/opt/java/bin/java\0-Xmx1g", Owner::Platform, "kafka"),
            ("/kith-operator", Owner::Operator, "operator"),
            ("/x/kube-apiserver\0--v=1", Owner::Kubernetes, "kube-apiserver"),
            ("bash", Owner::Others, "others"),
        ] {
            let arguments: Vec<String> = command.split('\0').map(str::to_owned).collect();
            assert_eq!(named(&arguments, false), (owner, name.to_owned()), "{command}");
        }
        assert_eq!(named(&[], false).0, Owner::Others);
    }

    #[test]
    fn what_was_used_is_the_difference_of_two_looks_at_the_same_process() {
        let look = |pid, cpu| Processes {
            at: Instant::now(),
            all: [(pid, (Owner::Platform, "storage".to_owned(), Duration::from_secs(cpu)))].into(),
        };
        let text = look(7, 12).since(&look(7, 10), 1_000_000).to_string();
        assert!(text.contains("per million messages: 2 (storage 2)"), "{text}");
        // Another process under the same number.
        let text = look(8, 3).since(&look(7, 10), 1_000_000).to_string();
        assert!(text.contains("(storage 3)"), "{text}");
    }
}
