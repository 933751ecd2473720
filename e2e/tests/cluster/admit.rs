//! Wrong manifests are refused in words, by the API server, before anything happens.

use crate::{behaviour::Proof, shared};

fn chat_cluster(spec: &str) -> String {
    format!("apiVersion: kith.dev/v1alpha1\nkind: ChatCluster\nmetadata: {{name: refused}}\nspec: {spec}\n")
}

#[tokio::test]
async fn a_wrong_manifest_is_refused_in_words() -> Proof {
    let (_guard, cluster, _) = shared().await?;
    let cases = [
        (chat_cluster("{storage: {shards: 0}}"), "spec.storage.shards"),
        (chat_cluster("{storage: {shards: many}}"), "spec.storage.shards"),
        (chat_cluster("{storage: {partitions: 1000}}"), "power of two"),
        (chat_cluster("{storage: {replicas: 9}}"), "spec.storage.replicas"),
        (chat_cluster("{storage: {replicas: 1, durability: {ackReplicas: 2}}}"), "ackReplicas"),
        (chat_cluster("{colour: red}"), "colour"),
        (chat_cluster("{clusterName: Not_A_Name}"), "clusterName"),
        (chat_cluster("{version: newest}"), "version must be three numbers"),
        (chat_cluster("{eventLog: {partitions: 2048}, storage: {partitions: 1024}}"), "eventLog.partitions"),
        (chat_cluster("{auth: {tokenTtl: 1s}}"), "tokenTtl"),
        (
            "apiVersion: kith.dev/v1alpha1\nkind: Gateway\nmetadata: {name: refused}\nspec: {clusterRef: {name: demo}, api: {enabled: false}, websocket: {enabled: false}}\n"
                .to_owned(),
            "at least one of api and websocket",
        ),
        ("apiVersion: kith.dev/v1alpha1\nkind: Gateway\nmetadata: {name: refused}\nspec: {}\n".to_owned(), "clusterRef"),
    ];
    let mut wrong = Vec::new();
    for (manifest, words) in cases {
        let output = cluster.apply(&manifest, &["--dry-run=server"]).await?;
        if output.success || !output.stderr.contains(words) {
            wrong.push(format!("{manifest}wanted a refusal with {words:?}, got: {}{}", output.stdout, output.stderr));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[tokio::test]
async fn what_is_fixed_at_creation_stays() -> Proof {
    let (_guard, cluster, _) = shared().await?;
    let name = cluster.name.clone();
    let changes = [
        (r#"{"spec":{"storage":{"partitions":2048}}}"#, "partitions is fixed at creation"),
        (r#"{"spec":{"clusterName":"other"}}"#, "fixed at creation"),
    ];
    for (patch, words) in changes {
        let output =
            cluster.kubectl(&["patch", "chatcluster", &name, "--type=merge", "--dry-run=server", "-p", patch]).await?;
        assert!(!output.success && output.stderr.contains(words), "{patch}: {}{}", output.stdout, output.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn an_empty_spec_is_a_whole_platform() -> Proof {
    let (_guard, cluster, _) = shared().await?;
    let output = cluster.apply(&chat_cluster("{}"), &["--dry-run=server", "-o", "json"]).await?;
    assert!(output.success, "{}", output.stderr);
    let made: serde_json::Value = serde_json::from_str(&output.stdout)?;
    assert_eq!(made["spec"]["storage"]["shards"], 1);
    assert_eq!(made["spec"]["storage"]["replicas"], 2);
    assert_eq!(made["spec"]["storage"]["partitions"], 1024);
    Ok(())
}
