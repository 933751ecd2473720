//! Looks at every member of every shard, all at once, each within a second.

use std::net::SocketAddr;

use futures::future::join_all;
use redis::{Pipeline, Value};

use super::{
    link::{LinkError, Links, READ_DEADLINE},
    mark,
    parse::{self, Info, ParseError},
    settings,
    types::{Desired, DesiredShard, LibraryState, Member, NodeId, NodeState, NodeView, Observation, Seen},
    wanted,
};

/// How much is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What promotion needs; asked every second. Library, marks and settings are left unlooked at and reported as fine.
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
        commands.cmd("FUNCTION").arg("LIST").arg("WITHCODE");
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
        state.library = library_state(desired, &libraries);
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
    let info = Info::parse(&text(info, "INFO")?);
    let cluster = Info::parse(&text(cluster, "CLUSTER INFO")?);
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

fn library_state(desired: &Desired, found: &[(String, Option<String>)]) -> LibraryState {
    let Some(library) = &desired.library else { return LibraryState::Present };
    match found.iter().find(|(name, _)| *name == library.name) {
        None => LibraryState::Missing,
        Some((_, Some(code))) if *code == library.code => LibraryState::Present,
        Some(_) => LibraryState::Differs,
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
