//! Users: profiles.

use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use futures::future::join_all;
use kith_contract::{events::ProfileUpdated, json::U64};
use kith_proto::storage::v1::{
    GetUsersRequest, GetUsersResponse, UpsertResult, UpsertUsersRequest, UpsertUsersResponse, User, UserUpdate,
};
use kith_rpc::error::Error;

use super::{
    Core, Plan, check,
    model::{self, key, number, text},
};
use crate::{
    engine::{Field, Op},
    event::{self, Plain},
};

const USERS: usize = 100;
const ATTRS: usize = 64;
const ATTRS_BYTES: usize = 4_096;
const PROFILE: [&str; 7] = ["v", "nn", "av", "at", "ln", "ls", "sv"];

fn user_of(user_id: &str, values: &[Option<Bytes>]) -> Result<Option<User>, Error> {
    let mut values = values.iter().map(Option::as_ref);
    let mut next = || values.next().flatten();
    let Some(version) = next() else { return Ok(None) };
    let bad = |what| model::corrupt(&key::profile(user_id), what);
    let version = number(version).ok_or_else(|| bad("a version that is no number"))?;
    let (nickname, avatar_url) = (next().map(text).unwrap_or_default(), next().map(text).unwrap_or_default());
    let attrs = match next() {
        None => BTreeMap::new(),
        Some(bytes) => serde_json::from_slice(bytes).map_err(|_| bad("attributes that cannot be read"))?,
    };
    let (line, last_seen) = (next().map(text).unwrap_or_default(), next().and_then(number).unwrap_or(0));
    // Not there before a line gave a version: rows of older versions of storage do not have it.
    let source_version = match next() {
        None => 0,
        Some(bytes) => number(bytes).ok_or_else(|| bad("a source version that is no number"))?,
    };
    Ok(Some(User {
        user_id: user_id.to_owned(),
        nickname,
        avatar_url,
        attrs,
        version,
        line,
        last_seen,
        source_version,
    }))
}

fn profile_fields(user_id: &str) -> Vec<Field> {
    PROFILE.iter().map(|name| Field::new(key::profile(user_id), *name)).collect()
}

impl Core {
    /// A user's profile.
    pub(super) async fn profile(&self, user_id: &str) -> Result<Option<User>, Error> {
        let fields = self.hash(self.partition(user_id), key::profile(user_id)).await?;
        let values: Vec<Option<Bytes>> =
            PROFILE.iter().map(|name| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())).collect();
        user_of(user_id, &values)
    }

    pub(crate) async fn upsert_users(&self, request: UpsertUsersRequest) -> Result<UpsertUsersResponse, Error> {
        check::count("users", request.users.len(), USERS)?;
        let results = join_all(request.users.into_iter().map(|update| async {
            self.upsert_user(update)
                .await
                .unwrap_or_else(|error| UpsertResult { error: Some(error.into()), ..Default::default() })
        }))
        .await;
        Ok(UpsertUsersResponse { results })
    }

    async fn upsert_user(&self, update: UserUpdate) -> Result<UpsertResult, Error> {
        check::user("user_id", &update.user_id)?;
        check::text("nickname", update.nickname.as_deref().unwrap_or_default())?;
        check::text("avatar_url", update.avatar_url.as_deref().unwrap_or_default())?;
        check::text("line", &update.line)?;
        let id = &update.user_id;
        self.update(self.partition(id), profile_fields(id), |values| {
            let stored = user_of(id, values)?;
            let created = stored.is_none();
            let mut user = stored.clone().unwrap_or_else(|| User { user_id: id.clone(), ..User::default() });
            // A record of the line's own source, which comes again or too late. A user's own edit leaves the source's version alone.
            if update.version != 0 && update.version <= user.source_version {
                return Ok(Plan::nothing(UpsertResult {
                    user: Some(user),
                    created: false,
                    changed: false,
                    error: None,
                }));
            }
            if let Some(nickname) = &update.nickname {
                user.nickname.clone_from(nickname);
            }
            if let Some(avatar_url) = &update.avatar_url {
                user.avatar_url.clone_from(avatar_url);
            }
            if update.set_attrs {
                user.attrs.clone_from(&update.attrs);
            } else {
                user.attrs.extend(update.attrs.clone());
            }
            if !update.line.is_empty() && user.line.is_empty() {
                user.line.clone_from(&update.line);
            }
            check::count("attrs", user.attrs.len(), ATTRS)?;
            if user.attrs.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > ATTRS_BYTES {
                return Err(Error::invalid(format!("attrs: at most {ATTRS_BYTES} bytes in all")));
            }
            if update.version == 0 && stored.as_ref() == Some(&user) {
                return Ok(Plan::nothing(UpsertResult {
                    user: Some(user),
                    created: false,
                    changed: false,
                    error: None,
                }));
            }
            if update.version != 0 {
                user.source_version = update.version;
            }
            user.version = user.version.saturating_add(1);
            let ops = write_profile(&user)?;
            Ok(Plan::new(ops, UpsertResult { user: Some(user), created, changed: true, error: None }))
        })
        .await
    }

    pub(crate) async fn get_users(&self, request: GetUsersRequest) -> Result<GetUsersResponse, Error> {
        check::count("user_ids", request.user_ids.len(), USERS)?;
        for id in &request.user_ids {
            check::user("user_ids", id)?;
        }
        let found = join_all(request.user_ids.iter().map(|id| self.profile(id))).await;
        let users = found.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?;
        Ok(GetUsersResponse { users })
    }
}

fn write_profile(user: &User) -> Result<Vec<Op>, Error> {
    let mut ops = profile_ops(user).map_err(|e| Error::internal(e.to_string()))?;
    let updated = Plain::ProfileUpdated(ProfileUpdated {
        attrs: Cow::Borrowed(&user.attrs),
        avatar_url: (&user.avatar_url).into(),
        line: (&user.line).into(),
        nickname: (&user.nickname).into(),
        source_version: Some(U64(user.source_version)),
        user_id: (&user.user_id).into(),
        version: user.version,
    });
    ops.push(Op::Emit(event::body(&updated, Core::now())));
    Ok(ops)
}

/// Writes a profile, all but when its user was seen last.
pub(crate) fn profile_ops(user: &User) -> Result<Vec<Op>, serde_json::Error> {
    let attrs = serde_json::to_vec(&user.attrs)?;
    let set = |name: &str, value: Bytes| Op::Set(Field::new(key::profile(&user.user_id), name), value);
    let mut ops = vec![
        set("v", user.version.to_string().into()),
        set("nn", user.nickname.clone().into()),
        set("av", user.avatar_url.clone().into()),
        set("at", attrs.into()),
        set("ln", user.line.clone().into()),
    ];
    if user.source_version != 0 {
        ops.push(set("sv", user.source_version.to_string().into()));
    }
    Ok(ops)
}
