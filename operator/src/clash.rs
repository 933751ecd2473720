//! Gateways whose objects would have the same names: refused before anything is made.
//!
//! Objects of a Gateway are named `<cluster>-<gateway>-<part>`, so a Gateway `b-c` of `a` and a Gateway `c` of `a-b` would both have a Deployment
//! `a-b-c-api`. The younger one is refused, in words; what runs already is never judged again. What a ChatCluster has by itself is named so
//! that nobody else has it: the rendered objects are compared in a test (`golden`).

use k8s_openapi::jiff::Timestamp;
use kith_crds::{
    Gateway,
    conditions::{self, Finding, reason},
};
use kube::{Api, Client, ResourceExt, api::ListParams};

use crate::{
    apply::{ApplyError, Live},
    chatcluster::PassError,
};

/// What the names of its objects begin with.
fn prefix(gateway: &Gateway) -> String {
    format!("{}-{}", gateway.spec.cluster_ref.name, gateway.name_any())
}

/// When it was made, and what decides between two of the same second.
fn age(gateway: &Gateway) -> (Option<Timestamp>, String) {
    (gateway.metadata.creation_timestamp.as_ref().map(|t| t.0), gateway.name_any())
}

fn words(gateway: &Gateway) -> String {
    format!("Gateway {} of ChatCluster {}", gateway.name_any(), gateway.spec.cluster_ref.name)
}

/// Why a Gateway cannot be made, given all of its namespace: an older one has objects of the same names.
fn clash(new: &Gateway, gateways: &Live<Gateway>) -> Option<Finding> {
    let has_them =
        |other: &&Gateway| other.name_any() != new.name_any() && prefix(other) == prefix(new) && age(other) < age(new);
    let other = gateways.values().find(has_them)?;
    let message = format!(
        "{} would have objects of the same names ({}-…) as {}, which was there before: create it under another name",
        words(new),
        prefix(new),
        words(other)
    );
    Some(Finding::fails(conditions::READY, reason::INVALID_SPEC, message))
}

/// Refuses a Gateway of which nothing was made yet, when the names of its objects are taken.
pub async fn refuse_gateway(client: &Client, gateway: &Gateway) -> Result<(), PassError> {
    if gateway.status.as_ref().is_some_and(|status| status.api.is_some() || status.websocket.is_some()) {
        return Ok(());
    }
    let api: Api<Gateway> = Api::namespaced(client.clone(), &gateway.namespace().unwrap_or_default());
    // From the API server's cache: what it does not know yet, the step that writes refuses.
    let found = api.list(&ListParams::default().match_any()).await.map_err(|e| ApplyError::kube::<Gateway>("*", e))?;
    let gateways = found.items.into_iter().map(|other| (other.name_any(), other)).collect();
    clash(gateway, &gateways).map_or(Ok(()), |finding| Err(finding.into()))
}

#[cfg(test)]
mod tests {
    use kith_crds::names;
    use kube::CustomResourceExt;
    use serde_json::json;

    use super::*;
    use crate::render::meta::Component;

    fn gateway(cluster: &str, name: &str, second: i64) -> Gateway {
        let made = Timestamp::from_second(second).unwrap().to_string();
        let metadata = json!({"name": name, "creationTimestamp": made});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"clusterRef": {"name": cluster}}})).unwrap()
    }

    fn live(gateways: &[&Gateway]) -> Live<Gateway> {
        gateways.iter().map(|gateway| (gateway.name_any(), (*gateway).clone())).collect()
    }

    #[test]
    fn names_that_contain_each_other_are_refused_to_the_younger_one() {
        let (old, young) = (gateway("a", "b-c", 3), gateway("a-b", "c", 4));
        let gateways = live(&[&old, &young]);
        assert_eq!(clash(&old, &gateways), None);
        let refused = clash(&young, &gateways).expect("a refusal");
        assert_eq!(refused.reason, reason::INVALID_SPEC);
        for words in ["Gateway c of ChatCluster a-b", "(a-b-c-…)", "Gateway b-c of ChatCluster a,"] {
            assert!(refused.message.contains(words), "{}", refused.message);
        }
        // Of two of one second, one and the same gives way whoever asks.
        let (first, second) = (gateway("a", "b-c", 3), gateway("a-b", "c", 3));
        let gateways = live(&[&first, &second]);
        assert_eq!(clash(&first, &gateways), None);
        assert!(clash(&second, &gateways).is_some());
    }

    #[test]
    fn names_that_contain_others_are_let_in_where_no_object_is_shared() {
        let (one, other) = (gateway("a", "b", 1), gateway("a-b", "c", 2));
        assert_eq!(clash(&other, &live(&[&one, &other])), None);
        assert_eq!(clash(&one, &live(&[&one, &other])), None);
    }

    #[test]
    fn gateways_whose_names_would_take_a_parts_objects_cannot_be_created() {
        let reserved: Vec<&str> = names::reserved_for_parts().collect();
        assert!(Component::all().map(Component::name).eq(reserved.iter().copied()), "{reserved:?}");
        let quoted: Vec<String> = reserved.iter().map(|name| format!("'{name}'")).collect();
        let definition = serde_json::to_string(&Gateway::crd()).unwrap();
        assert!(definition.contains(&format!("in [{}]", quoted.join(", "))), "the definition has another list");
    }
}
