//! The step that writes: server-side apply under one field manager, only where something differs, never over somebody else's object.

use std::{borrow::Cow, collections::BTreeMap, fmt::Debug, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kith_crds::names;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PropagationPolicy},
    core::Status,
};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use crate::{diff, stores::Stores, words};

/// Annotation with the hash of what was applied last, so that a field that is no longer wanted is noticed.
pub const ANNOTATION_APPLIED: &str = "kith.dev/applied";

/// What can be applied: a namespaced object of a known kind.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Serialize
    + DeserializeOwned
    + Clone
    + Debug
    + Send
    + Sync
    + 'static
{
}
impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Serialize
        + DeserializeOwned
        + Clone
        + Debug
        + Send
        + Sync
        + 'static
{
}

/// Why an object could not be brought to its wanted state.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The API server refused or did not answer.
    #[error("{}: {}", object(.kind, .name), words::of(.kind, .source))]
    Kube {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The name belongs to somebody else's object.
    #[error("{kind} {name} exists and does not belong to {owner}: rename or delete it")]
    NameTaken {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Who wanted it.
        owner: String,
    },
    /// The object could not be written as JSON.
    #[error("{kind} {name} cannot be written as JSON: {source}")]
    Json {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The previous object of that name is still being deleted.
    #[error("{kind} {name} is being deleted; it is made again when it is gone")]
    Terminating {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
}

impl ApplyError {
    /// What the API server or the way to it said about an object.
    pub fn kube<K: Resource<DynamicType = ()>>(name: &str, source: kube::Error) -> Self {
        Self::Kube { kind: kind::<K>(), name: name.to_owned(), source: Box::new(source) }
    }

    /// The API server's answer, when it gave one.
    pub fn response(&self) -> Option<&Status> {
        match self {
            Self::Kube { source, .. } => match source.as_ref() {
                kube::Error::Api(response) => Some(response),
                _ => None,
            },
            _ => None,
        }
    }
}

/// An object, or all of a kind where they were listed.
fn object(kind: &str, name: &str) -> String {
    if name == "*" { format!("objects of the kind {kind}") } else { format!("{kind} {name}") }
}

fn kind<K: Resource<DynamicType = ()>>() -> String {
    K::kind(&()).into_owned()
}

fn same<K: Object>(wanted: &K, live: &K) -> Result<bool, serde_json::Error> {
    let hash = |object: &K| object.annotations().get(ANNOTATION_APPLIED).cloned();
    Ok(hash(wanted) == hash(live) && diff::contains(&serde_json::to_value(live)?, &serde_json::to_value(wanted)?))
}

/// Objects of one kind by name, as observed.
pub type Live<K> = BTreeMap<String, K>;

/// Writes objects of one owner.
pub struct Applier {
    /// The client.
    pub client: Client,
    /// What is known of objects, and learns what is written.
    pub stores: Arc<Stores>,
    /// The namespace of the owner and all its objects.
    pub namespace: String,
    /// The owner.
    pub owner: OwnerReference,
}

impl Applier {
    /// Whether the owner controls `object`.
    pub fn owns<K: Resource>(&self, object: &K) -> bool {
        object.owner_references().iter().any(|o| o.controller == Some(true) && o.uid == self.owner.uid)
    }

    /// The object with namespace, owner and the hash of what is wanted; and that hash.
    fn complete<K: Object>(&self, mut wanted: K) -> Result<(K, u64), serde_json::Error> {
        wanted.meta_mut().namespace = Some(self.namespace.clone());
        wanted.meta_mut().owner_references = Some(vec![self.owner.clone()]);
        let hash = xxh3_64(&serde_json::to_vec(&wanted)?);
        wanted.annotations_mut().insert(ANNOTATION_APPLIED.to_owned(), format!("{hash:016x}"));
        Ok((wanted, hash))
    }

    /// Whether nothing would be written.
    pub fn is_current<K: Object>(&self, wanted: &K, live: &K) -> bool {
        self.complete(wanted.clone())
            .is_ok_and(|(wanted, hash)| self.stores.is_current(live, hash) || same(&wanted, live).unwrap_or(false))
    }

    /// Brings one object to what is wanted; answers the object as it stands. Writes only when something differs.
    pub async fn apply<'a, K: Object>(&self, wanted: K, live: Option<&'a K>) -> Result<Cow<'a, K>, ApplyError> {
        let name = wanted.name_any();
        let json = |source| ApplyError::Json { kind: kind::<K>(), name: name.clone(), source };
        let (wanted, hash) = self.complete(wanted).map_err(json)?;
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let live = match live {
            Some(live) => Some(Cow::Borrowed(live)),
            None => api.get_opt(&name).await.map_err(|e| ApplyError::kube::<K>(&name, e))?.map(Cow::Owned),
        };
        let new = live.is_none();
        if let Some(live) = live {
            self.may_write(live.as_ref(), &name)?;
            // Found before, or now.
            if self.stores.is_current(live.as_ref(), hash) {
                return Ok(live);
            }
            if same(&wanted, live.as_ref()).map_err(json)? {
                self.stores.found_current(live.as_ref(), hash);
                return Ok(live);
            }
        }
        tracing::info!(kind = %K::kind(&()), %name, namespace = %self.namespace, new, "applying");
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        let standing =
            api.patch(&name, &params, &Patch::Apply(&wanted)).await.map_err(|e| ApplyError::kube::<K>(&name, e))?;
        self.stores.wrote(&standing);
        Ok(Cow::Owned(standing))
    }

    fn may_write<K: Object>(&self, live: &K, name: &str) -> Result<(), ApplyError> {
        let former =
            |o: &OwnerReference| o.kind == self.owner.kind && o.name == self.owner.name && o.uid != self.owner.uid;
        if live.owner_references().iter().any(former) {
            // The garbage collector has not come to the objects of a deleted owner of the same name yet.
            return Err(ApplyError::Terminating { kind: kind::<K>(), name: name.to_owned() });
        }
        if !self.owns(live) {
            let owner = format!("{} {}", self.owner.kind, self.owner.name);
            return Err(ApplyError::NameTaken { kind: kind::<K>(), name: name.to_owned(), owner });
        }
        if live.meta().deletion_timestamp.is_some() {
            return Err(ApplyError::Terminating { kind: kind::<K>(), name: name.to_owned() });
        }
        Ok(())
    }

    /// Brings all objects of one kind to what is wanted; the first failure ends it.
    pub async fn apply_all<'a, K: Object>(
        &self,
        wanted: Vec<K>,
        live: &'a Live<K>,
    ) -> Result<Vec<Cow<'a, K>>, ApplyError> {
        let mut standing = Vec::with_capacity(wanted.len());
        for object in wanted {
            let live = live.get(&object.name_any());
            standing.push(self.apply(object, live).await?);
        }
        Ok(standing)
    }

    /// Deletes what the owner controls and `keep` does not name.
    pub async fn prune<K: Object>(&self, keep: &[String], live: &Live<K>) -> Result<(), ApplyError> {
        for (name, object) in live {
            if keep.contains(name) || !self.owns(object) || object.meta().deletion_timestamp.is_some() {
                continue;
            }
            self.delete(object).await?;
        }
        Ok(())
    }

    /// Deletes exactly this object, never a later one of its name, and only if it is the owner's still.
    pub async fn delete<K: Object>(&self, object: &K) -> Result<(), ApplyError> {
        let name = object.name_any();
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = api.get_opt(&name).await.map_err(|e| ApplyError::kube::<K>(&name, e))?;
        // What was observed may be of the past by now.
        if found.is_none_or(|now| now.uid() != object.uid() || !self.owns(&now)) {
            return Ok(());
        }
        let mut params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        params.preconditions = Some(kube::api::Preconditions { uid: object.uid(), resource_version: None });
        tracing::info!(kind = %K::kind(&()), %name, namespace = %self.namespace, "deleting");
        match api.delete(&name, &params).await {
            Ok(_) => {
                self.stores.deleted(object);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(error) => Err(ApplyError::kube::<K>(&name, error)),
        }
    }
}

/// Writes the status of `object` when it is not `wanted` already; answers whether it wrote.
pub async fn status<K, S>(stores: &Stores, object: &K, current: Option<&S>, wanted: &S) -> Result<bool, ApplyError>
where
    K: Object,
    S: Serialize + PartialEq,
{
    if current == Some(wanted) {
        return Ok(false);
    }
    let name = object.name_any();
    let api: Api<K> = Api::namespaced(stores.client().clone(), &object.namespace().unwrap_or_default());
    let patch = serde_json::json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        // The UID makes sure that a later object of the same name is not meant.
        "metadata": {"name": name, "uid": object.uid()},
        "status": wanted,
    });
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    match api.patch_status(&name, &params, &Patch::Apply(&patch)).await {
        Ok(standing) => {
            stores.wrote::<K>(&standing);
            Ok(true)
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
        Err(error) => Err(ApplyError::kube::<K>(&name, error)),
    }
}
