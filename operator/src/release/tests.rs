//! Which version a ChatCluster runs, and where the versions are written down.

use std::{fs, path::Path};

use kith_crds::chatcluster::ChatClusterStatus;
use serde_json::json;

use super::*;
use crate::plan::tests::{cluster, release};

const PRESENT: &str = env!("CARGO_PKG_VERSION");

/// A ChatCluster that runs this version already.
fn running(version: &str) -> ChatCluster {
    let mut running = cluster(&json!({}));
    running.status = Some(ChatClusterStatus {
        version: Some(version.to_owned()),
        images: Some(release(version).images),
        ..ChatClusterStatus::default()
    });
    running
}

#[test]
fn a_new_operator_keeps_the_adopted_version_and_images() {
    let mut running = running("0.1.0");
    let adopted = adopt(&running, &release("0.2.0")).unwrap();
    assert_eq!(adopted, ("0.1.0".to_owned(), release("0.1.0").images));
    running.spec.version = Some("0.2.0".to_owned());
    assert_eq!(adopt(&running, &release("0.2.0")).unwrap().1, release("0.2.0").images);
    running.spec.version = Some("0.9.0".to_owned());
    let refused = adopt(&running, &release("0.2.0")).unwrap_err();
    assert_eq!(refused.reason, reason::UNSUPPORTED_VERSION);
    assert!(refused.message.contains("0.9.0") && refused.message.contains("0.2.0"));
}

#[test]
fn images_of_the_same_version_are_adopted_again_only_when_asked() {
    let mut running = running("0.1.0");
    let mut rebuilt = release("0.1.0");
    rebuilt.images.kith = "localhost/kith:rebuilt".to_owned();
    assert_eq!(adopt(&running, &rebuilt).unwrap().1, release("0.1.0").images);
    let now = (names::ANNOTATION_ADOPT_IMAGES.to_owned(), "now".to_owned());
    running.annotations_mut().extend([now]);
    assert_eq!(adopt(&running, &rebuilt).unwrap().1, rebuilt.images);
    // A later operator's version, or its images of the version that the spec names.
    let mut later = release("0.2.0");
    later.previous_images = Some(rebuilt.images.clone());
    assert_eq!(adopt(&running, &later).unwrap(), ("0.2.0".to_owned(), later.images.clone()));
    running.spec.version = Some("0.1.0".to_owned());
    assert_eq!(adopt(&running, &later).unwrap(), ("0.1.0".to_owned(), rebuilt.images));
    later.previous_images = None;
    assert_eq!(adopt(&running, &later).unwrap().1, release("0.1.0").images, "nothing else is known of it");
}

#[test]
fn a_chat_cluster_begins_with_goes_to_and_goes_back_to_the_version_before() {
    let both = release("0.2.0");
    let asking = |mut cluster: ChatCluster, version: &str| {
        cluster.spec.version = Some(version.to_owned());
        cluster
    };
    for (from, to) in [(None, "0.1.0"), (None, "0.2.0"), (Some("0.1.0"), "0.2.0"), (Some("0.2.0"), "0.1.0")] {
        let before = from.map_or_else(|| cluster(&json!({})), running);
        let adopted = adopt(&asking(before, to), &both).unwrap();
        assert_eq!(adopted, (to.to_owned(), release(to).images), "{from:?} to {to}");
    }
    let alone = Release { previous_images: None, ..both };
    for before in [cluster(&json!({})), running("0.2.0")] {
        let refused = adopt(&asking(before, "0.1.0"), &alone).unwrap_err();
        assert_eq!(refused.reason, reason::UNSUPPORTED_VERSION);
        assert!(refused.message.contains("versions 0.2.0 and 0.1.0, but"), "{}", refused.message);
    }
    let kept = adopt(&asking(running("0.1.0"), "0.1.0"), &alone).unwrap();
    assert_eq!(kept.1, release("0.1.0").images, "what runs needs no other images");
}

#[test]
fn no_version_is_left_out_on_the_way() {
    let later = Release { previous_version: "0.2.0".to_owned(), ..release("0.3.0") };
    for (from, to, over) in [("0.1.0", "0.3.0", "0.2.0"), ("0.4.0", "0.2.0", "0.3.0")] {
        let mut cluster = running(from);
        cluster.spec.version = Some(to.to_owned());
        let refused = adopt(&cluster, &later).unwrap_err();
        assert_eq!(refused.reason, reason::UNSUPPORTED_VERSION);
        assert!(refused.message.contains(&format!("set spec.version to {over} first")), "{}", refused.message);
        cluster.spec.version = Some(over.to_owned());
        assert!(adopt(&cluster, &later).is_ok());
    }
}

#[test]
fn images_of_the_version_before_follow_from_those_of_this_one() {
    for (image, previous) in [
        ("kith:0.2.0", "kith:0.1.0"),
        ("registry:5000/chat/kith", "registry:5000/chat/kith:0.1.0"),
        ("registry:5000/chat/kith:0.2.0@sha256:abc", "registry:5000/chat/kith:0.1.0"),
        ("ghcr.io/kith@sha256:abc", "ghcr.io/kith:0.1.0"),
    ] {
        assert_eq!(with_tag(image, "0.1.0"), previous);
    }
    let mut args = ReleaseArgs {
        kith_image: format!("r/kith:{PRESENT}"),
        valkey_image: "r/valkey:9".to_owned(),
        kafka_image: "r/kafka:4".to_owned(),
        previous_version: String::new(),
        previous_kith_image: String::new(),
        previous_valkey_image: "r/valkey:8".to_owned(),
        previous_kafka_image: String::new(),
    };
    assert_eq!(args.release().previous_images, None);
    PREVIOUS.clone_into(&mut args.previous_version);
    let images = args.release().previous_images.unwrap();
    assert_eq!((images.kith, images.valkey.as_str()), (format!("r/kith:{PREVIOUS}"), "r/valkey:8"));
    assert_eq!(images.kafka, "r/kafka:4");
}

/// The values of `key: value` lines of a file of the repository.
fn said(file: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)).unwrap();
    let value = |line: &str| Some(line.trim().strip_prefix(key)?.strip_prefix(": ")?.trim_matches('"').to_owned());
    text.lines().filter_map(value).collect()
}

#[test]
fn wherever_versions_are_written_they_are_these() {
    for chart in ["charts/kith-crds/Chart.yaml", "charts/kith-operator/Chart.yaml"] {
        for key in ["version", "appVersion"] {
            assert_eq!(said(chart, key), [PRESENT], "{chart}");
        }
    }
    let values = "charts/kith-operator/values.yaml";
    assert_eq!(said(values, "operator"), [format!("kith-operator:{PRESENT}")]);
    assert_eq!(said(values, "kith"), [format!("kith:{PRESENT}"), String::new()]);
    assert_eq!(said(values, "version"), [PREVIOUS]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let schema = fs::read_to_string(root.join("charts/kith-operator/values.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let choice = &schema["properties"]["previous"]["properties"]["version"]["enum"];
    assert_eq!(*choice, json!(["", PREVIOUS]));
    let previous = fs::read_to_string(root.join("e2e/local/previous-release")).unwrap();
    let (version, commit) = previous.trim_end().split_once(' ').unwrap();
    assert_eq!(version, PREVIOUS);
    assert!(commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()), "{commit}");
    assert!(versions::numbers(PREVIOUS) < versions::numbers(PRESENT));
}
