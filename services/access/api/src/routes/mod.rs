//! The routes of the HTTP API, a file for each group of them.

pub(crate) mod blocks;
pub(crate) mod conversations;
pub(crate) mod devices;
pub(crate) mod friends;
pub(crate) mod messages;
pub(crate) mod meta;
pub(crate) mod presence;
pub(crate) mod sync;
pub(crate) mod users;

/// Ids that one request may name.
const MAX_IDS: usize = 100;

/// 1 to 100 valid user ids, each once.
fn unique_users(mut user_ids: Vec<String>) -> Result<Vec<String>, kith_rpc::error::Error> {
    if user_ids.is_empty() || user_ids.len() > MAX_IDS {
        let detail = format!("user_ids: {}, give 1 to {MAX_IDS}", user_ids.len());
        return Err(kith_rpc::error::Error::invalid(detail));
    }
    for user_id in &user_ids {
        kith_contract::ids::check_id("user_ids", user_id)?;
    }
    let mut seen = std::collections::HashSet::new();
    user_ids.retain(|id| seen.insert(id.clone()));
    Ok(user_ids)
}
