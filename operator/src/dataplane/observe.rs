//! Looks at every member of every shard, all at once, each within a second.

use std::net::SocketAddr;

use futures::future::join_all;
use redis::{Pipeline, Value};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    link::{LinkError, Links, READ_DEADLINE},
    mark,
    parse::{self, Info, ParseError},
    settings,
    types::{Desired, DesiredShard, Library, LibraryState, Member, NodeId, NodeState, NodeView, Observation, Seen},
    wanted,
};

/// Matches the names of marks and of what primaries are told, and not that of the function library.
const SMALL_LIBRARIES: &str = "kith_*";

/// How much is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What promotion and moves of slots need. Library, marks and settings are left unlooked at and reported as fine.
    Roles,
    /// Everything.
    Full,
}

/// One look.
pub async fn observe(links: &Links, desired: &Desired, depth: Depth) -> Observation {
    let looks = desired.members().map(|(shard, member)| look(links, desired, shard, member, depth));
    Observation { nodes: join_all(looks).await }
}

async fn look(links: &Links, desired: &Desired, shard: &DesiredShard, member: &Member, depth: Depth) -> NodeView {
    let seen = match member.address {
        None => Seen::Down("its pod has no address".to_owned()),
        Some(address) => match ask(links, desired, shard, address, depth).await {
            Ok(state) => Seen::Up(Box::new(state)),
            Err(error) if error.is_loading() => Seen::Loading,
            Err(error) if error.is_connection_refused() => Seen::Ended,
            Err(error) => Seen::Down(error.to_string()),
        },
    };
    NodeView { shard: shard.name.clone(), pod: member.pod.clone(), seen }
}

async fn ask(
    links: &Links,
    desired: &Desired,
    shard: &DesiredShard,
    address: SocketAddr,
    depth: Depth,
) -> Result<NodeState, LinkError> {
    let required = settings::required(desired, shard);
    let mut commands = Pipeline::new();
    commands.cmd("CLUSTER").arg("MYID");
    commands.cmd("INFO").arg("replication").arg("persistence").arg("memory");
    commands.cmd("CLUSTER").arg("NODES");
    commands.cmd("CLUSTER").arg("SHARDS");
    commands.cmd("CLUSTER").arg("INFO");
    commands.cmd("DBSIZE");
    if depth == Depth::Full {
        list(&mut commands, SMALL_LIBRARIES).arg("WITHCODE");
        if let Some(library) = &desired.library {
            // Its text is large, and asked for once.
            list(&mut commands, &library.name);
        }
        let get = commands.cmd("CONFIG").arg("GET");
        for (name, _) in &required {
            get.arg(name);
        }
    }
    let answers = links.ask(address, &commands, READ_DEADLINE).await?;
    let mut answers = answers.into_iter().map(|answer| refused(address, answer));
    let mut next = || answers.next().unwrap_or(Err(LinkError::Deadline(address)));

    let id = next()?;
    let info = next()?;
    let view = next()?;
    let shards = next()?;
    let cluster = next()?;
    let keys = next()?;
    let mut state = base(&id, &info, &view, &shards, &cluster, &keys)?;
    if depth == Depth::Full {
        let libraries = parse::function_list(&next()?)?;
        if let Some(library) = &desired.library {
            let there = parse::function_list(&next()?)?.iter().any(|(name, _)| *name == library.name);
            state.library = if there { text_state(links, library, address).await? } else { LibraryState::Missing };
        }
        state.wanted = wanted::told(&libraries);
        state.owners = libraries.iter().filter_map(|(name, _)| mark::owner(name)).collect();
        state.settings = wrong_settings(&required, &next()?);
    }
    Ok(state)
}

/// A refusal of one command of the pipeline as an error.
fn refused(address: SocketAddr, answer: Value) -> Result<Value, LinkError> {
    match answer {
        Value::ServerError(error) => {
            let source = error.into();
            Err(kith_kit::valkey::ValkeyError::Redis { address: address.to_string(), source }.into())
        }
        value => Ok(value),
    }
}

fn base(
    id: &Value,
    info: &Value,
    view: &Value,
    shards: &Value,
    cluster: &Value,
    keys: &Value,
) -> Result<NodeState, ParseError> {
    let malformed = |command, part: &str| ParseError { command, part: part.to_owned() };
    let text = |value, command| parse::text(value).ok_or_else(|| malformed(command, "the answer"));
    let info = Info::parse(text(info, "INFO")?);
    let cluster = Info::parse(text(cluster, "CLUSTER INFO")?);
    let (role, offset) = info.role()?;
    Ok(NodeState {
        id: NodeId::parse(&text(id, "CLUSTER MYID")?).ok_or_else(|| malformed("CLUSTER MYID", "the answer"))?,
        role,
        offset,
        history: info.history(),
        loading: info.loading(),
        child: info.child(),
        current_epoch: cluster.number("cluster_current_epoch")?,
        keys: parse::number(keys)
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| malformed("DBSIZE", "the answer"))?,
        // Buffers towards replicas and the append-only file do not count against the bound.
        memory: info.number("used_memory")?.saturating_sub(info.number("mem_not_counted_for_evict").unwrap_or(0)),
        max_memory: info.number("maxmemory")?,
        disk: info.disk(),
        view: parse::cluster_nodes(&text(view, "CLUSTER NODES")?)?,
        shards: parse::cluster_shards(shards)?,
        library: LibraryState::Present,
        wanted: None,
        owners: Vec::new(),
        settings: Vec::new(),
    })
}

/// Asks for libraries whose names match.
fn list<'a>(commands: &'a mut Pipeline, pattern: &str) -> &'a mut Pipeline {
    commands.cmd("FUNCTION").arg("LIST").arg("LIBRARYNAME").arg(pattern)
}

/// Whether the library that a node holds has the wanted text.
async fn text_state(links: &Links, library: &Library, address: SocketAddr) -> Result<LibraryState, LinkError> {
    let hash = xxh3_64(library.code.as_bytes());
    if links.has_seen_text(address, hash).await {
        return Ok(LibraryState::Present);
    }
    let mut commands = Pipeline::new();
    list(&mut commands, &library.name).arg("WITHCODE");
    let answer = links.ask_apart(address, &commands, READ_DEADLINE).await?.pop();
    let answer = refused(address, answer.ok_or(LinkError::Deadline(address))?)?;
    let found = parse::function_list(&answer)?.into_iter().find(|(name, _)| *name == library.name);
    match found {
        None => Ok(LibraryState::Missing),
        Some((_, Some(code))) if code == library.code => {
            links.saw_text(address, hash).await;
            Ok(LibraryState::Present)
        }
        Some(_) => Ok(LibraryState::Differs),
    }
}

fn wrong_settings(required: &[(String, String)], answer: &Value) -> Vec<(String, String)> {
    let found = parse::pairs(answer);
    required
        .iter()
        .filter_map(|(name, wanted)| {
            let value = found.iter().find(|(n, _)| n == name).and_then(|(_, v)| parse::text(v)).unwrap_or_default();
            (value != *wanted).then(|| (name.clone(), value))
        })
        .collect()
}
