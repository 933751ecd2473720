//! What passes for a record of this ChatCluster, header by header.

use super::*;

fn cluster() -> Cluster {
    Cluster { name: "demo".to_owned(), uid: "u-1".to_owned(), partitions: 8, event_partitions: 4 }
}

const KEY: &str = "d:alice:bob";

fn stream() -> u32 {
    ids::partition_of(KEY, 8)
}

fn home() -> i32 {
    (stream() % 4) as i32
}

/// A true record's headers with some of them replaced; an empty value takes one away.
fn headers(changes: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = [
        ("ce_specversion", "1.0"),
        ("ce_id", &format!("{}-7", stream())),
        ("ce_type", "dev.kith.message.created.v1"),
        ("ce_source", "kith://demo/storage"),
        ("ce_partitionkey", KEY),
        (CLUSTER_HEADER, "u-1"),
        ("ce_kithpartition", &stream().to_string()),
        ("ce_kithver", "7"),
    ]
    .iter()
    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
    .collect();
    for (name, value) in changes {
        all.retain(|(n, _)| n != name);
        if !value.is_empty() {
            all.push(((*name).to_owned(), (*value).to_owned()));
        }
    }
    all
}

fn check(origin: &Origin, changes: &[(&str, &str)], key: &str, partition: i32) -> Result<(), Foreign> {
    let all = headers(changes);
    let said = Said::read(all.iter().map(|(n, v)| (n.as_str(), Some(v.as_bytes()))))?;
    origin.check(&said, key, partition)
}

#[test]
fn a_true_record_passes_and_so_does_one_of_a_version_before() {
    let origin = Origin::counted(&cluster());
    assert_eq!(check(&origin, &[], KEY, home()), Ok(()));
    assert_eq!(check(&origin, &[("ce_source", "kith://demo"), (CLUSTER_HEADER, "")], KEY, home()), Ok(()));
    // What could not be read says nothing about its entity.
    let corrupt = [("ce_type", CORRUPT), ("ce_partitionkey", ""), ("ce_kithpartition", "5"), ("ce_id", "5-7")];
    assert_eq!(check(&origin, &corrupt, "", 1), Ok(()));
    assert_eq!(check(&origin, &corrupt[1..], "", 1), Err(Foreign::Partition));

    let sessions = Origin::uncounted(&cluster());
    let older =
        [("ce_source", "/kith/demo/sessions"), (CLUSTER_HEADER, ""), ("ce_kithpartition", ""), ("ce_kithver", "")];
    assert_eq!(check(&sessions, &older, KEY, 3), Ok(()));
}

#[test]
fn what_is_missing_or_foreign_in_a_record_is_named() {
    let origin = Origin::counted(&cluster());
    for name in ["ce_type", "ce_id", "ce_specversion", "ce_partitionkey", "ce_source", "ce_kithpartition", "ce_kithver"]
    {
        let found = check(&origin, &[(name, "")], KEY, home()).unwrap_err();
        assert_eq!((found.reason(), &found), ("headers", &Foreign::Header(name)));
    }
    for ver in ["0", "-1", "+7", "07", "seven", "18446744073709551616", "7.0", " 7"] {
        assert_eq!(check(&origin, &[("ce_kithver", ver)], KEY, home()), Err(Foreign::Header("ce_kithver")), "{ver}");
    }
    // Another's id.
    assert_eq!(check(&origin, &[("ce_id", "1-1")], KEY, home()), Err(Foreign::Header("ce_id")));
    for (source, uid) in [
        ("kith://demo/storage", ""),
        ("kith://demo/storage", "u-2"),
        ("kith://demo", "u-2"),
        ("kith://demo2/storage", "u-1"),
        ("kith://demo2", ""),
        ("kith://other/storage", "u-1"),
        ("https://example.org", ""),
    ] {
        let found = check(&origin, &[("ce_source", source), (CLUSTER_HEADER, uid)], KEY, home()).unwrap_err();
        assert_eq!(found.reason(), "cluster", "{source} {uid}");
    }
}

#[test]
fn a_record_stands_where_its_key_belongs() {
    let origin = Origin::counted(&cluster());
    assert_eq!(check(&origin, &[], KEY, (home() + 1) % 4), Err(Foreign::Partition));
    assert_eq!(check(&origin, &[], KEY, -1), Err(Foreign::Partition));
    // The same Kafka partition, another kith partition.
    let (neighbour, key) = ((stream() + 4) % 8, ("ce_partitionkey", KEY));
    let (id, number) = (format!("{neighbour}-7"), neighbour.to_string());
    assert_eq!(
        check(&origin, &[("ce_id", &id), ("ce_kithpartition", &number), key], KEY, home()),
        Err(Foreign::Partition)
    );
    for number in ["8", "4294967296", "18446744073709551615"] {
        assert_eq!(check(&origin, &[("ce_kithpartition", number)], KEY, home()), Err(Foreign::Partition), "{number}");
    }
    // A repair's mark.
    let marker =
        [("ce_type", REPAIR_MARKER), ("ce_partitionkey", "repair:6"), ("ce_kithpartition", ""), ("ce_kithver", "")];
    assert_eq!(check(&origin, &marker, "repair:6", 2), Ok(()));
    assert_eq!(check(&origin, &marker, "repair:6", 3), Err(Foreign::Partition));
}
