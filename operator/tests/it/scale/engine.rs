//! The engines of one ChatCluster in memory: formed from the first, healthy, and always the same. They answer what the operator asks.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use kith_operator::dataplane::{mark, settings, slots::SlotSet, wanted};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

/// The default of `spec.storage.partitions`.
const PARTITIONS: u32 = 1024;
/// What an engine answers to `INFO memory persistence`, so that reading it costs what it costs.
const INFO: &str = include_str!("info.txt");

/// All nodes; the first member of each shard leads.
pub(crate) struct Engines {
    shards: usize,
    members: usize,
    ids: Vec<String>,
    nodes: Vec<String>,
    /// `INFO replication`.
    replication: Vec<String>,
    /// `INFO memory persistence`.
    rest: String,
    shards_answer: Vec<u8>,
    /// Which nodes were asked for their role since somebody wanted to know.
    asked: Vec<AtomicBool>,
    state: Mutex<State>,
}

/// What the operator may change.
struct State {
    /// Name and text, by shard.
    libraries: Vec<Vec<(String, String)>>,
    settings: HashMap<String, String>,
}

impl Engines {
    /// `number` tells ChatClusters apart; `addresses` are those of all members, shard by shard.
    pub(crate) fn new(number: usize, uid: &str, shards: usize, addresses: &[SocketAddr]) -> Self {
        let members = addresses.len() / shards;
        let ids: Vec<String> = (0..addresses.len()).map(|n| format!("{:032x}{n:08x}", number + 1)).collect();
        let slots: Vec<SlotSet> = (0..shards as u32)
            .map(|n| {
                let of = |n: u32| n * PARTITIONS / shards as u32;
                SlotSet::of_partitions(of(n)..of(n + 1), PARTITIONS)
            })
            .collect();
        let leader = |n: usize| n - n % members;
        let line = |n: usize, myself: usize| {
            let (flags, of, ranges) = if leader(n) == n {
                ("master", "-".to_owned(), slots[n / members].to_string().replace(',', " "))
            } else {
                ("slave", ids[leader(n)].clone(), String::new())
            };
            let me = if n == myself { "myself," } else { "" };
            let (epoch, address) = (n / members + 1, addresses[n]);
            let bus = address.port() + 10_000;
            format!("{} {address}@{bus} {me}{flags} {of} 0 1795492878113 {epoch} connected {ranges}\n", ids[n])
        };
        let nodes = (0..ids.len()).map(|me| (0..ids.len()).map(|n| line(n, me)).collect()).collect();
        let replication = |n: usize| {
            let replid = &ids[leader(n)];
            let role = if leader(n) == n {
                let replicas = (1..members).map(|i| {
                    let at = addresses[n + i];
                    let (ip, port) = (at.ip(), at.port());
                    format!("slave{}:ip={ip},port={port},state=online,offset=1000,lag=0,type=replica\r\n", i - 1)
                });
                format!("role:master\r\nconnected_slaves:{}\r\n{}", members - 1, replicas.collect::<String>())
            } else {
                let at = addresses[leader(n)];
                format!(
                    "role:slave\r\nmaster_host:{}\r\nmaster_port:{}\r\nmaster_link_status:up\r\nmaster_last_io_seconds_ago:0\r\nmaster_sync_in_progress:0\r\nslave_read_repl_offset:1000\r\nslave_repl_offset:1000\r\nslave_priority:100\r\nslave_read_only:1\r\nreplica_announced:1\r\nconnected_slaves:0\r\n",
                    at.ip(),
                    at.port()
                )
            };
            format!(
                "# Replication\r\n{role}replicas_waiting_psync:0\r\nmaster_failover_state:no-failover\r\nmaster_replid:{replid}\r\nmaster_replid2:{}\r\nmaster_repl_offset:1000\r\nsecond_repl_offset:-1\r\nrepl_backlog_active:1\r\nrepl_backlog_size:10485760\r\nrepl_backlog_first_byte_offset:1\r\nrepl_backlog_histlen:1000\r\n",
                "0".repeat(40)
            )
        };
        let mut settings: HashMap<String, String> =
            settings::FIXED.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        settings.insert("appendfsync".to_owned(), "always".to_owned());
        settings.insert("min-replicas-to-write".to_owned(), "1".to_owned());
        let libraries = vec![(mark::name(uid), mark::code(uid)), (wanted::NAME.to_owned(), wanted::code(1))];
        Self {
            shards,
            members,
            nodes,
            replication: (0..ids.len()).map(replication).collect(),
            rest: INFO.replace('\n', "\r\n"),
            asked: ids.iter().map(|_| AtomicBool::default()).collect(),
            shards_answer: shards_answer(&ids, addresses, members, &slots),
            state: Mutex::new(State { libraries: vec![libraries; shards], settings }),
            ids,
        }
    }

    /// From now on it is of interest which primaries are asked.
    pub(crate) fn forget_asked(&self) {
        self.asked.iter().for_each(|asked| asked.store(false, Ordering::Relaxed));
    }

    /// Whether all primaries were.
    pub(crate) fn were_asked(&self) -> bool {
        self.asked.iter().step_by(self.members).all(|asked| asked.load(Ordering::Relaxed))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the node `n` answers.
    fn answer(&self, n: usize, words: &[String], out: &mut Vec<u8>) {
        let word = |i: usize| words.get(i).map(|w| w.to_ascii_uppercase()).unwrap_or_default();
        match (word(0).as_str(), word(1).as_str()) {
            ("CLUSTER", "MYID") => bulk(out, &self.ids[n]),
            ("CLUSTER", "NODES") => bulk(out, &self.nodes[n]),
            ("CLUSTER", "SHARDS") => out.extend_from_slice(&self.shards_answer),
            ("CLUSTER", "INFO") => {
                bulk(out, &format!("cluster_state:ok\r\ncluster_current_epoch:{}\r\n", self.shards));
            }
            ("CLUSTER", "GETSLOTMIGRATIONS") => array(out, 0),
            ("INFO", _) => {
                self.asked[n].store(true, Ordering::Relaxed);
                let rest = if words.len() > 2 { self.rest.as_str() } else { "" };
                bulk(out, &format!("{}{rest}", self.replication[n]));
            }
            ("DBSIZE", _) => out.extend_from_slice(b":0\r\n"),
            ("FUNCTION", "LIST") => {
                let (pattern, with_code) = (words.get(3).map_or("*", String::as_str), words.len() > 4);
                let named = |name: &str| {
                    name == pattern || pattern.strip_suffix('*').is_some_and(|start| name.starts_with(start))
                };
                let state = self.state();
                let libraries = state.libraries[n / self.members].iter().filter(|(name, _)| named(name));
                array(out, libraries.clone().count());
                for (name, code) in libraries {
                    array(out, if with_code { 6 } else { 4 });
                    bulk(out, "library_name");
                    bulk(out, name);
                    functions(code, out);
                    if with_code {
                        bulk(out, "library_code");
                        bulk(out, code);
                    }
                }
            }
            ("FUNCTION", "LOAD") => self.load(n, words.last().map(String::as_str).unwrap_or_default(), out),
            ("CONFIG", "GET") => {
                let state = self.state();
                let found: Vec<_> =
                    words[2..].iter().filter_map(|name| Some((name, state.settings.get(name)?))).collect();
                array(out, found.len() * 2);
                for (name, value) in found {
                    bulk(out, name);
                    bulk(out, value);
                }
            }
            ("CONFIG", "SET") => {
                let mut state = self.state();
                state.settings.extend(words[2..].chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())));
                out.extend_from_slice(b"+OK\r\n");
            }
            ("AUTH" | "CLIENT" | "PING" | "SELECT", _) => out.extend_from_slice(b"+OK\r\n"),
            (command, sub) => {
                println!("not imitated: {command} {sub}");
                out.extend_from_slice(b"-ERR not imitated\r\n");
            }
        }
    }

    fn load(&self, n: usize, code: &str, out: &mut Vec<u8>) {
        let name =
            code.lines().next().and_then(|line| line.split("name=").nth(1)).unwrap_or("unnamed").trim().to_owned();
        let mut state = self.state();
        let libraries = &mut state.libraries[n / self.members];
        libraries.retain(|(known, _)| *known != name);
        libraries.push((name.clone(), code.to_owned()));
        bulk(out, &name);
    }

    /// Serves the node `n`.
    pub(crate) async fn serve(self: Arc<Self>, n: usize, listener: TcpListener, tls: TlsAcceptor) {
        while let Ok((socket, _)) = listener.accept().await {
            let (engines, tls) = (self.clone(), tls.clone());
            tokio::spawn(async move {
                // A client that leaves is no trouble of the engine's.
                let _ = engines.talk(n, socket, &tls).await;
            });
        }
    }

    async fn talk(&self, n: usize, socket: TcpStream, tls: &TlsAcceptor) -> std::io::Result<()> {
        socket.set_nodelay(true)?;
        let mut stream = tls.accept(socket).await?;
        let (mut input, mut output) = (Vec::new(), Vec::new());
        loop {
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            while let Some((words, length)) = command(&input) {
                self.answer(n, &words, &mut output);
                input.drain(..length);
            }
            stream.write_all(&output).await?;
            stream.flush().await?;
            output.clear();
        }
    }
}

/// `CLUSTER SHARDS`, which is the same from every node.
fn shards_answer(ids: &[String], addresses: &[SocketAddr], members: usize, slots: &[SlotSet]) -> Vec<u8> {
    let mut out = Vec::new();
    array(&mut out, slots.len());
    for (shard, slots) in slots.iter().enumerate() {
        array(&mut out, 4);
        bulk(&mut out, "slots");
        array(&mut out, slots.ranges().len() * 2);
        for (first, last) in slots.ranges() {
            out.extend_from_slice(format!(":{first}\r\n:{last}\r\n").as_bytes());
        }
        bulk(&mut out, "nodes");
        array(&mut out, members);
        for n in shard * members..(shard + 1) * members {
            let role = if n % members == 0 { "master" } else { "replica" };
            let ip = addresses[n].ip().to_string();
            array(&mut out, 8);
            for text in ["id", &ids[n], "ip", &ip, "role", role, "health", "online"] {
                bulk(&mut out, text);
            }
        }
    }
    out
}

/// The part of `FUNCTION LIST` that tells the functions of a library.
fn functions(code: &str, out: &mut Vec<u8>) {
    let names = code.split("function_name").skip(1).filter_map(|rest| rest.split('\'').nth(1));
    bulk(out, "functions");
    array(out, names.clone().count());
    for name in names {
        array(out, 6);
        bulk(out, "name");
        bulk(out, name);
        bulk(out, "description");
        out.extend_from_slice(b"$-1\r\n");
        bulk(out, "flags");
        array(out, 0);
    }
}

fn bulk(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(format!("${}\r\n{text}\r\n", text.len()).as_bytes());
}

fn array(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(format!("*{length}\r\n").as_bytes());
}

/// The first whole command and its length.
fn command(input: &[u8]) -> Option<(Vec<String>, usize)> {
    let mut at = 0;
    let count = header(input, &mut at, b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length = header(input, &mut at, b'$')?;
        let word = input.get(at..at + length)?;
        input.get(at + length..at + length + 2)?;
        words.push(String::from_utf8_lossy(word).into_owned());
        at += length + 2;
    }
    Some((words, at))
}

fn header(input: &[u8], at: &mut usize, kind: u8) -> Option<usize> {
    let rest = input.get(*at..)?;
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    assert_eq!(rest[0], kind, "not a command");
    let number = std::str::from_utf8(&rest[1..end]).ok()?.parse().ok()?;
    *at += end + 2;
    Some(number)
}
