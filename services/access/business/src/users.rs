//! Users of a line: made, changed, read. A user's line is written once and never changes.

use kith_clients::storage::Storage;
use kith_contract::ids;
use kith_proto::{
    business::v1::{BusinessUser, UpsertUserResult},
    storage::v1::{User, UserUpdate},
};
use kith_rpc::error::Error;

use crate::line::{Lines, not_own};

/// Users in one call.
pub(crate) const MAX_USERS: usize = 100;

/// Makes or changes users; one result for each, in order.
pub(crate) async fn upsert(
    lines: &Lines,
    storage: &Storage,
    line: &str,
    users: Vec<BusinessUser>,
) -> Result<Vec<UpsertUserResult>, Error> {
    if users.is_empty() || users.len() > MAX_USERS {
        return Err(Error::invalid(format!("users: {}, give 1 to {MAX_USERS}", users.len())));
    }
    let valid: Vec<String> =
        users.iter().filter(|u| ids::check_id("user_id", &u.user_id).is_ok()).map(|u| u.user_id.clone()).collect();
    let owners = lines.of_users(&valid).await?;
    let mut results: Vec<UpsertUserResult> = Vec::with_capacity(users.len());
    let mut updates = Vec::new();
    let mut places = Vec::new();
    for (at, user) in users.into_iter().enumerate() {
        let refused = ids::check_id("user_id", &user.user_id).map_err(Error::from).and_then(|()| {
            match owners.get(&user.user_id) {
                Some(owner) if owner != line => Err(not_own("user_id", &user.user_id)),
                _ => Ok(()),
            }
        });
        results.push(UpsertUserResult { user_id: user.user_id.clone(), ..Default::default() });
        match refused {
            Err(error) => fail(&mut results[at], &error),
            Ok(()) => {
                places.push(at);
                updates.push(update(line, user));
            }
        }
    }
    if updates.is_empty() {
        return Ok(results);
    }
    for (at, result) in places.into_iter().zip(storage.upsert_users(updates).await?) {
        let slot = &mut results[at];
        match (result.error, result.user) {
            (Some(error), _) => fail(slot, &error.into()),
            // Another line made it in the meantime: storage keeps the first line.
            (None, Some(user)) if user.line != line => fail(slot, &not_own("user_id", &user.user_id)),
            (None, user) => {
                slot.created = result.created;
                slot.changed = result.changed;
                slot.version = user.map(|u| u.version).unwrap_or_default();
            }
        }
    }
    Ok(results)
}

fn fail(result: &mut UpsertUserResult, error: &Error) {
    error.code_name().clone_into(&mut result.code);
    error.detail.as_ref().clone_into(&mut result.detail);
}

fn update(line: &str, user: BusinessUser) -> UserUpdate {
    UserUpdate {
        set_attrs: !user.attrs.is_empty(),
        user_id: user.user_id,
        nickname: user.nickname,
        avatar_url: user.avatar_url,
        attrs: user.attrs,
        version: user.version,
        line: line.to_owned(),
    }
}

/// A user as the line sees it.
pub(crate) fn shown(user: User) -> BusinessUser {
    BusinessUser {
        user_id: user.user_id,
        nickname: Some(user.nickname),
        avatar_url: Some(user.avatar_url),
        attrs: user.attrs,
        version: user.source_version,
    }
}

/// Makes the user with an empty profile when it is not there.
pub(crate) async fn ensure(lines: &Lines, storage: &Storage, line: &str, user_id: &str) -> Result<(), Error> {
    ids::check_id("user_id", user_id)?;
    match lines.of_users(&[user_id.to_owned()]).await?.get(user_id) {
        Some(owner) if owner == line => return Ok(()),
        Some(_) => return Err(not_own("user_id", user_id)),
        None => {}
    }
    let update = UserUpdate { user_id: user_id.to_owned(), line: line.to_owned(), ..Default::default() };
    let result = storage.upsert_users(vec![update]).await?.into_iter().next().unwrap_or_default();
    match (result.error, result.user) {
        (Some(error), _) => Err(error.into()),
        (None, Some(user)) if user.line != line => Err(not_own("user_id", user_id)),
        _ => Ok(()),
    }
}
