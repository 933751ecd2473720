//! Reads the engine's answers. Pure; what is malformed is an error that names the command and the part.

use std::{collections::HashMap, net::SocketAddr};

use redis::Value;
use thiserror::Error;

use super::{
    slots::SlotSet,
    types::{AttachedReplica, Disk, History, KnownNode, NodeId, Role},
};

/// An answer that is not what its command promises.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{command}: {part} is malformed")]
pub struct ParseError {
    /// The command that was answered.
    pub command: &'static str,
    /// The part that could not be read.
    pub part: String,
}

fn bad(command: &'static str, part: impl Into<String>) -> ParseError {
    let mut part = part.into();
    part.truncate(part.char_indices().nth(80).map_or(part.len(), |(i, _)| i));
    ParseError { command, part }
}

/// The text of a string answer.
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.clone()),
        Value::Okay => Some("OK".to_owned()),
        _ => None,
    }
}

/// A whole number, however it is written.
pub fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(n) => Some(*n),
        other => text(other)?.parse().ok(),
    }
}

/// The elements of an array answer.
pub fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(items) | Value::Set(items) => Some(items),
        _ => None,
    }
}

/// A flat list of names and values as pairs.
pub fn pairs(value: &Value) -> Vec<(String, &Value)> {
    match value {
        Value::Map(map) => map.iter().filter_map(|(k, v)| Some((text(k)?, v))).collect(),
        other => array(other)
            .unwrap_or_default()
            .chunks_exact(2)
            .filter_map(|pair| Some((text(&pair[0])?, &pair[1])))
            .collect(),
    }
}

/// `CLUSTER NODES`.
pub fn cluster_nodes(answer: &str) -> Result<Vec<KnownNode>, ParseError> {
    answer.lines().filter(|l| !l.trim().is_empty()).map(node_line).collect()
}

fn node_line(line: &str) -> Result<KnownNode, ParseError> {
    let fail = || bad("CLUSTER NODES", line);
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [id, address, flags, primary, _ping, pong, epoch, link, slots @ ..] = fields.as_slice() else {
        return Err(fail());
    };
    let flags: Vec<&str> = flags.split(',').collect();
    let mut ranges = Vec::new();
    // `[slot->-id]` and `[slot-<-id]` are marks of a migration under way, not of ownership.
    for range in slots.iter().filter(|s| !s.starts_with('[')) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        ranges.push((first.parse().map_err(|_| fail())?, last.parse().map_err(|_| fail())?));
    }
    Ok(KnownNode {
        id: NodeId::parse(id).ok_or_else(fail)?,
        address: listed_address(address),
        myself: flags.contains(&"myself"),
        primary: flags.contains(&"master"),
        replicates: NodeId::parse(primary),
        failed: flags.contains(&"fail"),
        suspected: flags.contains(&"fail?"),
        handshake: flags.contains(&"handshake"),
        epoch: epoch.parse().map_err(|_| fail())?,
        connected: *link == "connected",
        heard: *pong != "0",
        slots: SlotSet::from_ranges(ranges),
    })
}

/// `ip:port@bus[,hostname]`; IPv6 addresses come without brackets.
fn listed_address(text: &str) -> Option<SocketAddr> {
    let (client, _) = text.split_once('@')?;
    let (ip, port) = client.rsplit_once(':')?;
    let address = SocketAddr::new(ip.parse().ok()?, port.parse().ok()?);
    (address.port() != 0).then_some(address)
}

/// `CLUSTER SHARDS`: each primary with its slots. Shards without slots are left out, so that views compare by ownership alone.
pub fn cluster_shards(answer: &Value) -> Result<Vec<(NodeId, SlotSet)>, ParseError> {
    let fail = |part: &str| bad("CLUSTER SHARDS", part);
    let mut owners = Vec::new();
    for shard in array(answer).ok_or_else(|| fail("the answer"))? {
        let fields: HashMap<String, &Value> = pairs(shard).into_iter().collect();
        let bounds: Option<Vec<u16>> = fields
            .get("slots")
            .and_then(|v| array(v))
            .ok_or_else(|| fail("slots"))?
            .iter()
            .map(|n| u16::try_from(number(n)?).ok())
            .collect();
        let slots = SlotSet::from_ranges(bounds.ok_or_else(|| fail("slots"))?.chunks_exact(2).map(|c| (c[0], c[1])));
        if slots.is_empty() {
            continue;
        }
        let nodes = fields.get("nodes").and_then(|v| array(v)).ok_or_else(|| fail("nodes"))?;
        for node in nodes {
            let node: HashMap<String, &Value> = pairs(node).into_iter().collect();
            let field = |name: &str| node.get(name).and_then(|v| text(v));
            if field("role").as_deref() == Some("master") {
                let id = field("id").and_then(|id| NodeId::parse(&id)).ok_or_else(|| fail("id"))?;
                owners.push((id, slots.clone()));
            }
        }
    }
    owners.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(owners)
}

/// An `INFO` answer: name and value of each line.
pub struct Info {
    text: String,
    /// Where each line begins, has its colon, and ends. Every full look reads some hundreds of lines of each node, of which it needs a dozen.
    lines: Vec<[usize; 3]>,
}

impl Info {
    /// Reads it.
    pub fn parse(text: String) -> Self {
        let mut lines = Vec::with_capacity(256);
        let mut begin = 0;
        for line in text.split_inclusive('\n') {
            let whole = line.trim_end();
            if !whole.starts_with('#')
                && let Some(colon) = whole.find(':')
            {
                lines.push([begin, begin + colon, begin + whole.len()]);
            }
            begin += line.len();
        }
        Self { text, lines }
    }

    /// One value.
    pub fn get(&self, name: &str) -> Option<&str> {
        let line = self.lines.iter().find(|[begin, colon, _]| &self.text[*begin..*colon] == name);
        line.map(|[_, colon, end]| &self.text[colon + 1..*end])
    }

    /// One number that must be there.
    pub fn number(&self, name: &str) -> Result<u64, ParseError> {
        self.get(name).and_then(|v| v.parse().ok()).ok_or_else(|| bad("INFO", name))
    }

    fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| v != "0")
    }

    fn seconds(&self, name: &str) -> Option<u64> {
        // -1 says "never" or "not now".
        self.get(name).and_then(|v| v.parse::<i64>().ok()).and_then(|v| u64::try_from(v).ok())
    }

    /// Whether it still reads its files.
    pub fn loading(&self) -> bool {
        self.flag("loading") || self.flag("async_loading")
    }

    /// Whether a child process runs: no migration may start beside it.
    pub fn child(&self) -> bool {
        [
            "rdb_bgsave_in_progress",
            "aof_rewrite_in_progress",
            "slot_migration_fork_in_progress",
            "module_fork_in_progress",
        ]
        .iter()
        .any(|name| self.flag(name))
    }

    /// What it says of its files; a node without an append-only file says nothing.
    pub fn disk(&self) -> Disk {
        let bytes = |name| self.number(name).unwrap_or(0);
        Disk {
            used: bytes("aof_current_size"),
            rewrite: bytes("aof_base_size"),
            failed: self.get("aof_last_write_status").is_some_and(|s| s != "ok"),
        }
    }

    /// Role and offset.
    pub fn role(&self) -> Result<(Role, u64), ParseError> {
        match self.get("role") {
            Some("master") => Ok((Role::Primary { replicas: self.replicas() }, self.number("master_repl_offset")?)),
            Some("slave") => {
                let link_up = self.get("master_link_status") == Some("up");
                let role = Role::Replica {
                    link_up,
                    last_io_s: if link_up { self.seconds("master_last_io_seconds_ago") } else { None },
                    down_s: self.seconds("master_link_down_since_seconds"),
                    syncing: self.flag("master_sync_in_progress"),
                };
                Ok((role, self.number("slave_repl_offset")?))
            }
            _ => Err(bad("INFO", "role")),
        }
    }

    fn replicas(&self) -> Vec<AttachedReplica> {
        let mut found = Vec::new();
        for i in 0.. {
            let Some(line) = self.get(&format!("slave{i}")) else { break };
            found.push(attached_replica(line));
        }
        found
    }

    /// The replication history.
    pub fn history(&self) -> History {
        let text = |name| self.get(name).unwrap_or_default().to_owned();
        History { id: text("master_replid"), previous: text("master_replid2") }
    }
}

/// The value of a line `slave0` of `INFO replication`.
pub fn attached_replica(line: &str) -> AttachedReplica {
    let (mut ip, mut port, mut online, mut offset) = (None, None, false, 0);
    for (name, value) in line.split(',').filter_map(|field| field.split_once('=')) {
        match name {
            "ip" => ip = value.parse().ok(),
            "port" => port = value.parse().ok(),
            "state" => online = value == "online",
            "offset" => offset = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    AttachedReplica { address: ip.zip(port).map(|(ip, port)| SocketAddr::new(ip, port)), online, offset }
}

/// `FUNCTION LIST`: name and, if asked for, text of each library.
pub fn function_list(answer: &Value) -> Result<Vec<(String, Option<String>)>, ParseError> {
    let libraries = array(answer).ok_or_else(|| bad("FUNCTION LIST", "the answer"))?;
    libraries
        .iter()
        .map(|library| {
            let fields: HashMap<String, &Value> = pairs(library).into_iter().collect();
            let name =
                fields.get("library_name").and_then(|v| text(v)).ok_or_else(|| bad("FUNCTION LIST", "library_name"))?;
            Ok((name, fields.get("library_code").and_then(|v| text(v))))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = "\
944f73aab6a047aab67c4d37aa3598e95c3aa152 127.0.0.1:21001@22001 myself,slave,nofailover 0e64467f01c957257c68660c59c7f9a469590531 0 0 3 connected
0e64467f01c957257c68660c59c7f9a469590531 127.0.0.1:21003@22003,host master,nofailover - 0 1795492878113 3 connected 101-8191 9000 [93->-6f92b6de4bf114510229aa6fc0b8d5d4663768f5]
6f92b6de4bf114510229aa6fc0b8d5d4663768f5 :0@0 master,fail,noaddr - 0 1795492878000 2 disconnected 0-100 8192-8999
";

    #[test]
    fn a_node_list_is_read() {
        let nodes = cluster_nodes(NODES).unwrap();
        assert!(nodes[0].myself && !nodes[0].primary && nodes[0].slots.is_empty());
        assert_eq!(nodes[0].replicates.as_ref(), Some(&nodes[1].id));
        assert_eq!(nodes[1].slots.to_string(), "101-8191,9000");
        assert!(nodes[2].failed && !nodes[2].connected && nodes[2].address.is_none());
    }

    #[test]
    fn a_damaged_node_list_is_an_error_and_no_panic() {
        for line in
            ["x", "944f 1 2 3 4 5 6 7", &NODES.replace("101-", "x-"), &NODES.replace(" 3 connected", " z connected")]
        {
            assert!(cluster_nodes(line).is_err(), "{line}");
        }
    }

    #[test]
    fn replication_of_both_roles_is_read() {
        let primary = Info::parse(
            "role:master\r\nslave0:ip=10.0.0.1,port=6379,state=online,offset=7,lag=0,type=replica\r\nmaster_repl_offset:9\r\n".to_owned(),
        );
        let (Role::Primary { replicas }, 9) = primary.role().unwrap() else { panic!("a primary") };
        assert!(replicas[0].online && replicas[0].offset == 7);
        let replica = Info::parse(
            "role:slave\nmaster_link_status:down\nmaster_last_io_seconds_ago:-1\nmaster_sync_in_progress:1\nslave_repl_offset:5\nmaster_link_down_since_seconds:4\n".to_owned(),
        );
        let expected = Role::Replica { link_up: false, last_io_s: None, down_s: Some(4), syncing: true };
        assert_eq!(replica.role().unwrap(), (expected, 5));
        assert!(Info::parse("role:sentinel".to_owned()).role().is_err());
    }
}
