//! What a rollout through the layers has come to: when Gateways may follow, and what is said meanwhile. Pure.

use kith_crds::{
    Gateway,
    conditions::{self, Finding, reason},
};

use super::status::{Facts, Workload};
use crate::render::meta::Component;

/// The hash of the templates by which Gateways are let through: `wanted` when all pods of `below` are of these templates and served
/// together once, and for as long as they are of them; a pod that fails later holds up nobody. None while others are on their way; as it
/// was where a pass did not come far enough to tell.
pub(super) fn rolled_out(
    wanted: &str,
    before: Option<&str>,
    workloads: &[Workload],
    below: &[Component],
) -> Option<String> {
    if below.iter().any(|c| !workloads.iter().any(|w| w.component == *c)) {
        return before.map(str::to_owned);
    }
    let all = |holds: &dyn Fn(&Workload) -> bool| {
        below.iter().all(|c| workloads.iter().any(|w| w.component == *c && !w.waiting && holds(w)))
    };
    let done = all(&|w| w.rollout.is_some_and(|r| r.done));
    let kept = before == Some(wanted) && all(&|w| w.rollout.is_some_and(|r| r.newest));
    (done || kept).then(|| wanted.to_owned())
}

/// A layer that serves, and what is under way in it: a rollout is no reason not to be ready, and not to be kept quiet about.
pub(super) fn serving(kind: &'static str, words: String, under_way: Option<(&'static str, String)>) -> Finding {
    match under_way {
        Some((word, sentence)) => Finding::holds(kind, word, format!("{words}; {sentence}")),
        None => Finding::holds(kind, reason::ALL_READY, words),
    }
}

/// What is under way among `components`, in words: the reason and a sentence. The one that rolls before those that wait for it.
pub(super) fn under_way(workloads: &[Workload], components: &[Component]) -> Option<(&'static str, String)> {
    let mine = || workloads.iter().filter(|w| components.contains(&w.component));
    if let Some(rolling) = mine().find(|w| !w.waiting && w.rollout.is_none_or(|r| !r.done)) {
        return Some((reason::ROLLING_OUT, rolling_words(rolling)));
    }
    let waiting: Vec<&str> = mine().filter(|w| w.waiting).map(|w| w.component.name()).collect();
    if waiting.is_empty() {
        return None;
    }
    let verb = if waiting.len() == 1 { "waits" } else { "wait" };
    let words = format!("{} {verb} for the layer below", waiting.join(", "));
    Some((reason::WAITING_FOR_LAYER_BELOW, words))
}

fn rolling_words(workload: &Workload) -> String {
    let name = workload.component.name();
    match &workload.trouble {
        Some((_, sentence)) => format!("{name} is being rolled out, and cannot go on: {sentence}"),
        None => format!("{name} is being rolled out"),
    }
}

/// The same for the platform as a whole: what rolls, and who waits for it.
pub(super) fn progress(facts: &Facts) -> Option<Finding> {
    let kind = conditions::PROGRESSING;
    let all: Vec<Component> = facts.workloads.iter().map(|w| w.component).collect();
    if let Some((word, mut sentence)) = under_way(&facts.workloads, &all) {
        let waiting: Vec<&str> = facts.workloads.iter().filter(|w| w.waiting).map(|w| w.component.name()).collect();
        if word == reason::ROLLING_OUT && !waiting.is_empty() {
            sentence = format!("{sentence}; {} and what is above wait for it", waiting.join(", "));
        }
        return Some(Finding::holds(kind, word, sentence));
    }
    let (name, why) =
        facts.gateways.iter().flatten().find_map(|(name, gateway)| Some((name, gateway_moves(gateway)?)))?;
    Some(Finding::holds(kind, reason::ROLLING_OUT, format!("Gateway {name}: {why}")))
}

/// What a Gateway says is under way.
pub(super) fn gateway_moves(gateway: &Gateway) -> Option<String> {
    let conditions = &gateway.status.as_ref()?.conditions;
    conditions::get(conditions, conditions::PROGRESSING).filter(|c| c.status == "True").map(|c| c.message.clone())
}

/// A rollout that cannot go on: the pods of before still serve, those of the new template do not.
pub(super) fn stuck(workloads: &[Workload]) -> Option<(&'static str, String)> {
    let stuck = workloads.iter().find(|w| !w.waiting && w.rollout.is_some_and(|r| !r.done) && w.trouble.is_some())?;
    let (word, _) = stuck.trouble.as_ref()?;
    Some((word, rolling_words(stuck)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Rollout;

    const DONE: Rollout = Rollout { wanted: 2, ready: 2, newest: true, done: true };
    const MIXED: Rollout = Rollout { wanted: 2, ready: 2, newest: false, done: false };
    const ONE_DOWN: Rollout = Rollout { wanted: 2, ready: 1, newest: true, done: false };

    fn workloads(storage: Rollout, above_wait: bool) -> Vec<Workload> {
        let of = |component, rollout, waiting| Workload { component, rollout: Some(rollout), waiting, trouble: None };
        vec![
            of(Component::STORAGE, storage, false),
            of(Component::SESSIONS, DONE, above_wait),
            of(Component::TASKS, DONE, above_wait),
            of(Component::BUSINESS, DONE, above_wait),
        ]
    }

    #[test]
    fn gateways_follow_when_all_below_is_of_the_wanted_templates_and_has_served() {
        for (name, before, workloads, open) in [
            ("done", None, workloads(DONE, false), true),
            ("done, after another template", Some("old"), workloads(DONE, false), true),
            ("storage rolls", Some("old"), workloads(MIXED, false), false),
            ("logic waits for storage", Some("old"), workloads(MIXED, true), false),
            ("nothing rolls yet, and logic waits", Some("old"), workloads(DONE, true), false),
            ("new pods that have not served yet", Some("old"), workloads(ONE_DOWN, false), false),
            ("a pod fails after all served", Some("new"), workloads(ONE_DOWN, false), true),
            ("back to a template while pods of the other are left", Some("new"), workloads(MIXED, false), false),
            ("nothing was looked at", Some("new"), Vec::new(), true),
            ("nothing was looked at, and another was rolled out", Some("old"), Vec::new(), false),
        ] {
            let below = [Component::STORAGE, Component::SESSIONS, Component::TASKS];
            assert_eq!(rolled_out("new", before, &workloads, &below).as_deref() == Some("new"), open, "{name}");
        }
    }

    #[test]
    fn what_rolls_and_who_waits_for_it_is_said() {
        let logic = [Component::SESSIONS, Component::TASKS];
        assert_eq!(under_way(&workloads(DONE, false), &logic), None);
        let (word, sentence) = under_way(&workloads(MIXED, true), &logic).unwrap();
        assert_eq!(
            (word, sentence.as_str()),
            (reason::WAITING_FOR_LAYER_BELOW, "sessions, tasks wait for the layer below")
        );
        let facts = Facts { workloads: workloads(MIXED, true), ..Facts::default() };
        let said = progress(&facts).unwrap();
        assert_eq!(said.reason, reason::ROLLING_OUT);
        assert_eq!(
            said.message,
            "storage is being rolled out; sessions, tasks, business and what is above wait for it"
        );
    }

    #[test]
    fn a_rollout_that_cannot_go_on_is_told_although_the_old_pods_serve() {
        let mut broken = workloads(MIXED, true);
        assert_eq!(stuck(&broken), None);
        broken[0].trouble = Some((reason::IMAGE_PULL_FAILED, "pod a: no image".to_owned()));
        let (word, sentence) = stuck(&broken).unwrap();
        assert_eq!(word, reason::IMAGE_PULL_FAILED);
        assert_eq!(sentence, "storage is being rolled out, and cannot go on: pod a: no image");
    }
}
