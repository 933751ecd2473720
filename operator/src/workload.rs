//! How pods and Deployments are, in words for conditions. Pure.

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod},
    },
    jiff::Timestamp,
};
use kith_crds::{
    conditions::reason,
    names::{LABEL_COMPONENT, LABEL_GATEWAY},
};
use kith_platform::Service;
use kube::ResourceExt;

use crate::{apply::Live, words};

/// The exit code of a process that was ended by SIGKILL.
const SIGKILLED: i32 = 137;
/// How long a container that was ended for memory and serves again is told of: it will happen again, and somebody should see it.
const RECENT_S: i64 = 600;

/// How far a Deployment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Pods wanted.
    pub wanted: u32,
    /// Pods that serve.
    pub ready: u32,
    /// Whether no pod of an older template is left, and as many of the newest are there as are wanted, serving or not.
    pub newest: bool,
    /// Whether all pods are of the newest template and serve, and no older one is left.
    pub done: bool,
}

/// Reads a Deployment's status; one whose controller has not seen the newest spec is not done.
pub fn rollout(deployment: &Deployment) -> Rollout {
    let number = |n: Option<i32>| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).map_or(1, |n| number(Some(n)));
    let Some(status) = &deployment.status else { return Rollout { wanted, ..Rollout::default() } };
    let ready = number(status.available_replicas);
    let seen = status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0);
    let updated = number(status.updated_replicas);
    let newest = seen && updated >= wanted && number(status.replicas) == updated;
    Rollout { wanted, ready, newest, done: newest && ready >= wanted }
}

/// What keeps pods from running, as a reason and a sentence; the first that is found.
pub fn trouble(pods: &Live<Pod>, component: &str, gateway: Option<&str>) -> Option<(&'static str, String)> {
    pods.iter()
        .filter(|(_, pod)| pod.labels().get(LABEL_COMPONENT).is_some_and(|c| c == component))
        .filter(|(_, pod)| gateway.is_none_or(|g| pod.labels().get(LABEL_GATEWAY).is_some_and(|l| l == g)))
        .find_map(|(name, pod)| trouble_of(name, pod))
}

fn trouble_of(name: &str, pod: &Pod) -> Option<(&'static str, String)> {
    let status = pod.status.as_ref()?;
    let scheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled");
    if let Some(condition) = scheduled.filter(|c| c.status == "False") {
        let why = condition.message.clone().unwrap_or_default();
        let reason = if why.contains("PersistentVolumeClaim") { reason::VOLUME_PENDING } else { reason::UNSCHEDULABLE };
        return Some((reason, format!("pod {name} cannot be scheduled: {why}")));
    }
    for container in status.container_statuses.iter().flatten() {
        if let Some(sentence) = out_of_memory(name, pod, container).filter(|_| !container.ready) {
            return Some((reason::OUT_OF_MEMORY, sentence));
        }
        let Some(waiting) = container.state.as_ref().and_then(|s| s.waiting.as_ref()) else { continue };
        let word = waiting.reason.as_deref().unwrap_or_default();
        let why = waiting.message.as_deref().unwrap_or_default();
        match word {
            "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" | "ErrImageNeverPull" => {
                return Some((
                    reason::IMAGE_PULL_FAILED,
                    format!("pod {name}: image {} cannot be pulled: {why}", container.image),
                ));
            }
            "CrashLoopBackOff" => {
                let last = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
                let code = last.map_or(0, |t| t.exit_code);
                let killed = if code == SIGKILLED { ", killed by its node or for a failing probe" } else { "" };
                let said = last.and_then(|t| t.message.as_deref()).map(|m| format!(": {}", words::plain(m)));
                let said = said.unwrap_or_default();
                return Some((
                    reason::PODS_NOT_READY,
                    format!(
                        "pod {name} ends again and again (exit code {code}{killed}{said}): see its log with kubectl logs {name} --previous"
                    ),
                ));
            }
            "CreateContainerConfigError" | "CreateContainerError" => {
                return Some((reason::PODS_NOT_READY, format!("pod {name} cannot start: {why}")));
            }
            _ => {}
        }
    }
    None
}

/// A container that serves again and was ended for memory a short while ago, as a reason and a sentence.
pub fn killed(pods: &Live<Pod>, now: Timestamp) -> Option<(&'static str, String)> {
    pods.iter().find_map(|(name, pod)| {
        let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
        containers.iter().find_map(|container| {
            let sentence = out_of_memory(name, pod, container)?;
            let ended = ended(container)?.finished_at.as_ref()?;
            let recent = now.as_second().saturating_sub(ended.0.as_second()) <= RECENT_S;
            recent.then_some((reason::OUT_OF_MEMORY, sentence))
        })
    })
}

/// How a container's last process ended, if one has.
fn ended(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let of = |state: &'_ Option<ContainerState>| state.as_ref().is_some_and(|s| s.terminated.is_some());
    let state = if of(&container.state) { &container.state } else { &container.last_state };
    state.as_ref()?.terminated.as_ref()
}

/// That a container was ended for taking more memory than its limit.
fn out_of_memory(name: &str, pod: &Pod, container: &ContainerStatus) -> Option<String> {
    ended(container).filter(|ended| ended.reason.as_deref() == Some("OOMKilled"))?;
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    let limits = containers.filter(|c| c.name == container.name).find_map(|c| c.resources.as_ref()?.limits.as_ref());
    let limit = match limits.and_then(|l| l.get("memory")) {
        Some(limit) => format!("its limit of {}", limit.0),
        None => "its node had left".to_owned(),
    };
    let component = pod.labels().get(LABEL_COMPONENT).map_or("", String::as_str);
    let field = match (component, Service::called(component)) {
        ("valkey", _) => "spec.storage.pod".to_owned(),
        ("kafka", _) => "spec.eventLog.managed.pod".to_owned(),
        (_, Some(Service::Api)) => "spec.api.pod of the Gateway".to_owned(),
        (_, Some(Service::Gateway)) => "spec.websocket.pod of the Gateway".to_owned(),
        (_, Some(service)) => format!("spec.services.{}.pod", service.field()),
        (name, None) => format!("spec.services.{name}.pod"),
    };
    Some(format!(
        "pod {name} was ended because it took more memory than {limit}: raise resources.limits.memory of {field}, or give it less to do"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(status: &serde_json::Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "generation": 2}, "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status
        }))
        .unwrap()
    }

    #[test]
    fn a_rollout_is_done_when_only_new_pods_are_left_and_serve() {
        let whole = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        assert_eq!(rollout(&deployment(&whole)), Rollout { wanted: 2, ready: 2, newest: true, done: true });
        for partial in [
            json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}),
            json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3}),
            json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 2}),
            json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1}),
            json!({}),
        ] {
            assert!(!rollout(&deployment(&partial)).done, "{partial}");
        }
        let one_down = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1});
        assert!(rollout(&deployment(&one_down)).newest, "no older pod is left");
        let mixed = json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3});
        assert!(!rollout(&deployment(&mixed)).newest);
    }

    /// A pod of the engine whose process ended for memory, and what became of it.
    fn killed_pod(ready: bool, state: &serde_json::Value) -> Live<Pod> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {LABEL_COMPONENT: "valkey"}},
            "spec": {"containers": [{"name": "valkey", "resources": {"limits": {"memory": "512Mi"}}}]},
            "status": {"containerStatuses": [{"name": "valkey", "image": "x:1", "imageID": "", "ready": ready, "restartCount": 3,
                "state": state, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled",
                    "finishedAt": "2026-09-21T13:30:00Z"}}}]}
        }))
        .unwrap();
        [("p".to_owned(), pod)].into()
    }

    #[test]
    fn a_pod_that_was_ended_for_memory_is_told_with_its_limit_and_what_to_raise() {
        let wanted = "pod p was ended because it took more memory than its limit of 512Mi: raise resources.limits.memory of spec.storage.pod, or give it less to do";
        for state in [json!({"waiting": {"reason": "CrashLoopBackOff"}}), json!({"running": {}})] {
            let (word, sentence) = trouble(&killed_pod(false, &state), "valkey", None).unwrap();
            assert_eq!((word, sentence.as_str()), (reason::OUT_OF_MEMORY, wanted));
        }
    }

    #[test]
    fn a_pod_that_serves_again_is_told_of_for_ten_minutes() {
        let pods = killed_pod(true, &json!({"running": {}}));
        assert_eq!(trouble(&pods, "valkey", None), None);
        let at = |text: &str| killed(&pods, text.parse().unwrap());
        assert_eq!(at("2026-09-21T13:39:00Z").unwrap().0, reason::OUT_OF_MEMORY);
        assert_eq!(at("2026-09-21T13:41:00Z"), None);
    }

    #[test]
    fn what_keeps_a_pod_from_running_is_said() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {LABEL_COMPONENT: "valkey"}},
            "status": {"containerStatuses": [{"name": "c", "image": "x:1", "imageID": "", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}]}
        }))
        .unwrap();
        let pods: Live<Pod> = [("p".to_owned(), pod)].into();
        let (word, sentence) = trouble(&pods, "valkey", None).unwrap();
        assert_eq!(word, reason::IMAGE_PULL_FAILED);
        assert!(sentence.contains("x:1") && sentence.contains("not found"));
        assert_eq!(trouble(&pods, "storage", None), None);
    }
}
