//! What a platform team sees: tables, explanations, conditions, pods that pass the strictest policy.

use kube::ResourceExt;

use crate::{behaviour::Proof, shared};

#[tokio::test]
async fn get_kith_shows_readiness_size_and_where_to_connect() -> Proof {
    let (_guard, cluster, _) = shared().await?;
    cluster.await_healthy(crate::HEAL).await?;
    let table = cluster.kubectl(&["get", "kith"]).await?;
    assert!(table.success, "{}", table.stderr);
    for wanted in ["READY", "SHARDS", "REPLICAS", "API", "True", "http://", "PRIMARY", &cluster.name] {
        assert!(table.stdout.contains(wanted), "{wanted} is not in\n{}", table.stdout);
    }
    let wide = cluster.kubectl(&["get", "kith", "-o", "wide"]).await?;
    for wanted in ["WEBSOCKET", "BUSINESS", "MESSAGE"] {
        assert!(wide.stdout.contains(wanted), "{wanted} is not in\n{}", wide.stdout);
    }
    Ok(())
}

#[tokio::test]
async fn explain_reads_like_documentation() -> Proof {
    let (_guard, cluster, _) = shared().await?;
    for (path, wanted) in [
        ("chatcluster.spec", &["storage", "eventLog", "services", "DESCRIPTION"][..]),
        ("chatcluster.spec.storage", &["shards", "replicas", "partitions", "durability"][..]),
        ("storageshard.status", &["primary", "members", "slots"][..]),
        ("gateways.kith.dev.spec", &["clusterRef", "exposure"][..]),
    ] {
        let output = cluster.kubectl(&["explain", path]).await?;
        assert!(output.success, "{path}: {}", output.stderr);
        for word in wanted {
            assert!(output.stdout.contains(word), "{path}: {word} is not in\n{}", output.stdout);
        }
        assert!(!output.stdout.contains("<no description>"), "{path}: a field without a word\n{}", output.stdout);
    }
    Ok(())
}

#[tokio::test]
async fn every_pod_passes_the_restricted_level() -> Proof {
    let (_guard, cluster, _) = shared().await?;
    for namespace in [cluster.namespace.clone(), kith_e2e::cluster::OPERATOR_NAMESPACE.to_owned()] {
        let label = "pod-security.kubernetes.io/enforce=restricted";
        let output =
            cluster.kubectl(&["label", "--dry-run=server", "--overwrite", "namespace", &namespace, label]).await?;
        assert!(output.success, "{}", output.stderr);
        assert!(
            !output.stderr.contains("would violate") && !output.stderr.contains("violate the new"),
            "{namespace}: {}",
            output.stderr
        );
    }
    for pod in cluster.all_pods().await? {
        let spec = pod.spec.clone().unwrap_or_default();
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let context = container.security_context.clone().unwrap_or_default();
            let name = format!("{}/{}", pod.name_any(), container.name);
            assert_eq!(context.read_only_root_filesystem, Some(true), "{name}: the root is read-only");
            assert_eq!(context.allow_privilege_escalation, Some(false), "{name}");
        }
        assert_eq!(
            spec.automount_service_account_token,
            Some(false),
            "{}: no service calls the API server",
            pod.name_any()
        );
    }
    Ok(())
}
