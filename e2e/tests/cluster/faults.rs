//! One loaded run in which everything that may die dies once, one after the other: pods of every service, a broker, engines and
//! operators. After each the platform is well again before the next; one ledger holds every promise of the whole run at the end.

use kith_crds::{StorageShard, storageshard::FailoverReason};
use kith_e2e::{
    client::{DeviceOptions, frame::close},
    cluster::{Cluster, OPERATOR_NAMESPACE, is_ready},
    load::Load,
    target::Target,
    wait::await_until,
};
use kith_platform::Service;
use kube::ResourceExt;

use crate::{
    HEAL, alone,
    behaviour::{Failure, Proof, SOON, say, two},
    fault, kept, steady_load,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_loses_nothing() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let load = steady_load(&target).await?;
    let run = Run { cluster: &cluster, target: &target, shard: cluster.first_shard().await?, load: &load };
    for component in Service::ALL.iter().map(|service| service.name()).chain(["kafka"]) {
        run.fault(&format!("a pod of {component} killed"), Box::pin(run.kill_one(component))).await?;
    }
    run.fault("the Valkey primary killed", Box::pin(run.kill_primary())).await?;
    run.fault("the Valkey primary killed and its node closed", Box::pin(run.kill_primary_for_good())).await?;
    run.fault("the Valkey primary's pod ended in order", Box::pin(run.end_primary())).await?;
    run.fault("a Valkey replica killed", Box::pin(run.kill_replica())).await?;
    run.fault("both operators killed", Box::pin(run.kill_operators())).await?;
    run.fault("the leading operator and the primary killed", Box::pin(run.kill_leader_and_primary())).await?;
    run.fault("every gateway ended in order", Box::pin(run.end_gateways())).await?;
    kept("everything killed once", load).await?;
    Ok(())
}

struct Run<'a> {
    cluster: &'a Cluster,
    target: &'a Target,
    shard: String,
    load: &'a Load,
}

impl Run<'_> {
    /// Lets a fault happen and tells how long it took; a failure names the fault.
    async fn fault(&self, name: &str, happens: impl Future<Output = Proof>) -> Proof {
        let begun = std::time::Instant::now();
        let healed = fault(self.cluster, self.load, name, happens);
        Box::pin(healed).await.map_err(|failure| format!("{name}: {failure}"))?;
        println!("{name}: well after {:.1} s", begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Deletes one pod of a component without grace and waits until the component has another.
    async fn kill_one(&self, component: &str) -> Proof {
        let pods = self.cluster.pods(component).await?;
        let victim = pods.first().ok_or_else(|| format!("no pod of {component}"))?;
        self.cluster.delete_pod(&victim.name_any(), 0).await?;
        let (uid, count) = (victim.uid(), pods.len());
        await_until(&format!("another pod of {component}"), HEAL, || async {
            let now = self.cluster.pods(component).await.map_err(|e| e.to_string())?;
            let ready = now.iter().filter(|p| p.uid() != uid && is_ready(p)).count();
            if ready >= count { Ok(()) } else { Err(format!("{ready} of {count}")) }
        })
        .await?;
        Ok(())
    }

    /// Whether it comes back before the operator gives it up or another takes over: both are right, and nothing is lost.
    async fn kill_primary(&self) -> Proof {
        let primary = self.cluster.primary_of(&self.shard).await?;
        self.cluster.delete_pod(&primary, 0).await?;
        Ok(())
    }

    /// It cannot come back: another takes over.
    async fn kill_primary_for_good(&self) -> Proof {
        let primary = self.cluster.primary_of(&self.shard).await?;
        let pods = self.cluster.pods("valkey").await?;
        let pod = pods.iter().find(|p| p.name_any() == primary).ok_or("the primary has no pod")?;
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).ok_or("the primary's pod has no node")?;
        self.kubectl(&["cordon", &node]).await?;
        let replaced = async {
            self.cluster.delete_pod(&primary, 0).await?;
            self.cluster.await_another_primary(&self.shard, &primary, HEAL).await?;
            Ok::<_, Failure>(())
        }
        .await;
        self.kubectl(&["uncordon", &node]).await?;
        replaced
    }

    /// It is handed over before its pod ends, not taken.
    async fn end_primary(&self) -> Proof {
        let primary = self.cluster.primary_of(&self.shard).await?;
        self.cluster.delete_pod(&primary, 60).await?;
        self.cluster.await_another_primary(&self.shard, &primary, HEAL).await?;
        let last = self.cluster.api::<StorageShard>().get(&self.shard).await?.status.and_then(|s| s.last_failover);
        match last.map(|failover| failover.reason) {
            Some(FailoverReason::Switchover) => Ok(()),
            other => Err(format!("it was to be handed over, but the last failover is {other:?}").into()),
        }
    }

    async fn kill_replica(&self) -> Proof {
        let primary = self.cluster.primary_of(&self.shard).await?;
        let pods = self.cluster.pods("valkey").await?;
        let replica = pods.iter().map(ResourceExt::name_any).find(|name| *name != primary).ok_or("no replica")?;
        self.cluster.delete_pod(&replica, 0).await?;
        Ok(())
    }

    /// The platform serves on without them, and they touch no pod when they are back.
    async fn kill_operators(&self) -> Proof {
        let before = self.cluster.pod_uids().await?;
        for pod in self.cluster.operator_pods().await? {
            self.cluster.delete_pod_in(OPERATOR_NAMESPACE, &pod.name_any(), 0).await?;
        }
        self.load.progress(100, HEAL).await?;
        self.cluster.await_operator(HEAL).await?;
        self.cluster.await_healthy(HEAL).await?;
        if before == self.cluster.pod_uids().await? { Ok(()) } else { Err("a pod of the platform was touched".into()) }
    }

    async fn kill_leader_and_primary(&self) -> Proof {
        let (leader, primary) = (self.cluster.operator_leader().await?, self.cluster.primary_of(&self.shard).await?);
        self.cluster.delete_pod_in(OPERATOR_NAMESPACE, &leader, 0).await?;
        self.cluster.delete_pod(&primary, 0).await?;
        self.cluster.await_operator(HEAL).await?;
        Ok(())
    }

    /// Each tells its clients when to come back, and they find another.
    async fn end_gateways(&self) -> Proof {
        let (alice, bob) = two(self.target).await?;
        let device = self.target.device(&bob, DeviceOptions { pull: false, ..DeviceOptions::default() }).await?;
        let id = say(&alice, &bob, &["before"]).await?[0].conversation_id.clone();
        for pod in self.cluster.pods("gateway").await? {
            self.cluster.delete_pod(&pod.name_any(), 60).await?;
        }
        device.until("a second hello", HEAL, |inbox| (inbox.hellos.len() > 1).then_some(())).await?;
        say(&alice, &bob, &["after"]).await?;
        device.until("both messages", SOON, |inbox| (inbox.contiguous(&id) == 2).then_some(())).await?;
        device.inbox(|inbox| {
            if !inbox.closes.iter().any(|c| c.code == Some(close::DRAINED)) {
                return Err(format!("not closed as drained: {:?}", inbox.closes).into());
            }
            if inbox.reconnect_hints.is_empty() {
                return Err("not told when to come back before the close".into());
            }
            Ok(())
        })
    }

    async fn kubectl(&self, arguments: &[&str]) -> Proof {
        let output = self.cluster.kubectl(arguments).await?;
        if output.success { Ok(()) } else { Err(output.stderr.into()) }
    }
}
