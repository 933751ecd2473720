//! The rules of the chart's roles, read from its templates.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde::Deserialize;

/// API group, resource and verb.
pub(crate) type Right = (String, String, String);

/// What the chart grants.
pub(crate) struct Granted {
    /// Where ChatClusters live.
    pub(crate) namespaced: BTreeSet<Right>,
    /// Of what belongs to no namespace, and in the operator's own.
    pub(crate) cluster: BTreeSet<Right>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
}

/// Every combination.
pub(crate) fn rights(groups: &[String], resources: &[String], verbs: &[String]) -> Vec<Right> {
    let mut all = Vec::new();
    for group in groups {
        for resource in resources {
            all.extend(verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
        }
    }
    all
}

fn template(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/kith-operator/templates").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read(yaml: &str) -> BTreeSet<Right> {
    let rules: Vec<Rule> = serde_yaml_ng::from_str(yaml).unwrap_or_else(|error| panic!("{error} in\n{yaml}"));
    rules.iter().flat_map(|rule| rights(&rule.api_groups, &rule.resources, &rule.verbs)).collect()
}

/// The rules of the operator's roles. What the templates put into them by a variable, the Lease's name, is left out.
pub(crate) fn granted() -> Granted {
    let helpers = template("_helpers.tpl");
    let (_, rest) = helpers.split_once("{{- define \"kith-operator.rules\" -}}\n").expect("the rules");
    let (namespaced, _) = rest.split_once("{{- end -}}").expect("their end");
    let roles = template("rbac.yaml");
    let mut cluster = BTreeSet::new();
    for section in roles.split("\nrules:\n").skip(1) {
        let lines = section.lines().take_while(|line| *line != "---");
        let plain: Vec<&str> = lines.filter(|line| !line.contains("{{")).collect();
        if plain.iter().any(|line| line.contains("verbs:")) {
            cluster.extend(read(&plain.join("\n")));
        }
    }
    Granted { namespaced: read(namespaced), cluster }
}
