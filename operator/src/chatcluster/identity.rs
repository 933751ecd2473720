//! What a ChatCluster is known by, kept twice: its certificate authority, the keys of its tokens, the passwords of its engine.
//!
//! With another authority nobody trusts anybody, with other keys everyone is logged out, with other passwords the engine lets nobody in. So a
//! copy outlives the Secrets that are in use, and the ChatCluster itself where its volumes do: a Secret that was deleted is put back.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kith_crds::{names, shared::ReclaimPolicy};
use kube::{
    Api, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams},
};

use crate::{
    apply::{ApplyError, Live},
    diff,
    plan::Plan,
    render::meta,
    stores::Stores,
};

/// The Secrets that are copied: the prefix of their files in the copy, and their names.
fn parts(cluster: &str) -> [(&'static str, String); 3] {
    [
        ("authority.", meta::ca_secret(cluster)),
        ("tokens.", meta::token_keys_secret(cluster)),
        ("engine.", meta::engine_users_secret(cluster)),
    ]
}

/// The name of the copy; of the data's UID, so that whoever adopts the volumes finds it.
pub(super) fn name(data_uid: &str) -> String {
    format!("kith-identity-{data_uid}")
}

/// The copy, and whether it is this ChatCluster's: names anyone can take.
fn is_of(copy: &Secret, data_uid: &str) -> bool {
    copy.annotations().get(names::ANNOTATION_CLUSTER_UID).is_some_and(|uid| uid == data_uid)
}

/// Secrets as they are, with those that are missing from the copy; and what was put back, for Events.
pub(super) fn put_back<'a>(
    plan: &Plan,
    live: &'a Live<Secret>,
    copy: Option<&Secret>,
) -> (Cow<'a, Live<Secret>>, Vec<String>) {
    let (mut all, mut told) = (Cow::Borrowed(live), Vec::new());
    let Some(files) = copy.filter(|c| is_of(c, &plan.data_uid)).and_then(|c| c.data.as_ref()) else {
        return (all, told);
    };
    for (prefix, secret) in parts(&plan.name) {
        let of_part =
            |(file, text): (&String, &ByteString)| Some((file.strip_prefix(prefix)?.to_owned(), text.clone()));
        let data: BTreeMap<String, ByteString> = files.iter().filter_map(of_part).collect();
        if all.contains_key(&secret) || data.is_empty() {
            continue;
        }
        told.push(format!("put Secret {secret} back from its copy in Secret {}", name(&plan.data_uid)));
        let metadata = ObjectMeta { name: Some(secret.clone()), ..ObjectMeta::default() };
        all.to_mut().insert(secret, Secret { metadata, data: Some(data), ..Secret::default() });
    }
    (all, told)
}

/// The copy as it should be, from Secrets that are sound.
fn copy(plan: &Plan, secrets: &[Secret]) -> Secret {
    let mut data = BTreeMap::new();
    for (prefix, name) in parts(&plan.name) {
        let files = secrets.iter().find(|s| s.name_any() == name).and_then(|s| s.data.clone()).unwrap_or_default();
        data.extend(files.into_iter().map(|(file, text)| (format!("{prefix}{file}"), text)));
    }
    // Where the volumes go with the ChatCluster, so does this.
    let goes = plan.valkey.volume.reclaim_policy == ReclaimPolicy::Delete;
    Secret {
        metadata: ObjectMeta {
            name: Some(name(&plan.data_uid)),
            namespace: Some(plan.namespace.clone()),
            labels: Some(meta::cluster_labels(&plan.name)),
            annotations: Some([(names::ANNOTATION_CLUSTER_UID.to_owned(), plan.data_uid.clone())].into()),
            owner_references: goes.then(|| vec![plan.owner.clone()]),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

/// The copy that stands.
pub(super) async fn find(stores: &Stores, plan: &Plan, live: &Live<Secret>) -> Result<Option<Secret>, ApplyError> {
    let name = name(&plan.data_uid);
    if let Some(copy) = live.get(&name) {
        return Ok(Some(copy.clone()));
    }
    stores.ask(&plan.namespace, &name).await
}

/// Writes the copy when it is another.
pub(super) async fn keep(
    stores: &Stores,
    plan: &Plan,
    secrets: &[Secret],
    standing: Option<&Secret>,
) -> Result<(), ApplyError> {
    let wanted = copy(plan, secrets);
    let name = wanted.name_any();
    if let Some(standing) = standing {
        if !is_of(standing, &plan.data_uid) {
            let owner = format!("ChatCluster {}", plan.name);
            return Err(ApplyError::NameTaken { kind: "Secret".to_owned(), name, owner });
        }
        let json = |secret: &Secret| {
            serde_json::to_value(secret).map_err(|source| ApplyError::Json {
                kind: "Secret".to_owned(),
                name: name.clone(),
                source,
            })
        };
        let owned = standing.owner_references().is_empty() == wanted.owner_references().is_empty();
        if owned && standing.data == wanted.data && diff::contains(&json(standing)?, &json(&wanted)?) {
            return Ok(());
        }
    }
    let api: Api<Secret> = Api::namespaced(stores.client().clone(), &plan.namespace);
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    let standing =
        api.patch(&name, &params, &Patch::Apply(&wanted)).await.map_err(|e| ApplyError::kube::<Secret>(&name, e))?;
    stores.wrote(&standing);
    Ok(())
}

#[cfg(test)]
mod tests {
    use kith_crds::ChatCluster;
    use serde_json::json;

    use super::*;
    use crate::{
        chatcluster::{Situation, build_secrets},
        plan::tests::release,
    };

    fn plan(spec: &serde_json::Value) -> Plan {
        let cluster: ChatCluster = serde_json::from_value(json!({
            "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster",
            "metadata": {"name": "demo", "namespace": "ns", "uid": "u-1"}, "spec": spec
        }))
        .expect("a ChatCluster");
        Plan::resolve(&cluster, &release("0.1.0")).expect("a plan")
    }

    #[test]
    fn what_was_deleted_comes_back_as_it_was_and_is_never_made_anew_while_something_runs() {
        let plan = plan(&json!({}));
        let now = k8s_openapi::jiff::Timestamp::now();
        let running = Situation { runs: true, ..Situation::default() };
        let made = build_secrets(&plan, &Live::new(), &Situation::default(), now).expect("secrets").objects;
        let copy = copy(&plan, &made);
        let all: Live<Secret> = made.into_iter().map(|s| (s.name_any(), s)).collect();
        for (_, gone) in parts("demo") {
            let mut live = all.clone();
            let before = live.remove(&gone).expect("it was made");
            let (back, told) = put_back(&plan, &live, Some(&copy));
            assert_eq!(back[&gone].data, before.data, "{gone}");
            assert!(told.len() == 1 && told[0].contains(&gone), "{told:?}");
            let again = build_secrets(&plan, &back, &running, now).expect("secrets");
            let kept = again.objects.iter().find(|s| s.name_any() == gone).expect("it is applied");
            assert_eq!(kept.data, before.data);
            // Without a copy, or with somebody else's, nothing takes its place while pods run on it.
            let mut theirs = copy.clone();
            theirs.annotations_mut().insert(names::ANNOTATION_CLUSTER_UID.to_owned(), "u-2".to_owned());
            for copy in [None, Some(&theirs)] {
                let (bare, told) = put_back(&plan, &live, copy);
                assert!(told.is_empty());
                let refused = build_secrets(&plan, &bare, &running, now).err().expect("a refusal");
                assert!(refused.message.contains(&gone), "{}", refused.message);
            }
        }
    }

    #[test]
    fn the_copy_lives_as_long_as_the_volumes() {
        assert!(copy(&plan(&json!({})), &[]).owner_references().is_empty());
        let goes = plan(&json!({"storage": {"volume": {"reclaimPolicy": "Delete"}}}));
        assert_eq!(copy(&goes, &[]).owner_references().len(), 1);
    }
}
