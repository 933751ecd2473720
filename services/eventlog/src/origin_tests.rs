//! What passes for a record of this ChatCluster, header by header.

use kith_contract::events::Kind;

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
        (header::SPEC_VERSION, "1.0"),
        (header::ID, &format!("{}-7", stream())),
        (header::TYPE, Kind::MessageCreated.ce_type()),
        (header::SOURCE, "kith://demo/storage"),
        (header::PARTITION_KEY, KEY),
        (header::CLUSTER, "u-1"),
        (header::PARTITION, &stream().to_string()),
        (header::VERSION, "7"),
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
    assert_eq!(check(&origin, &[(header::SOURCE, "kith://demo"), (header::CLUSTER, "")], KEY, home()), Ok(()));
    // What could not be read says nothing about its entity.
    let corrupt = [(header::TYPE, CORRUPT), (header::PARTITION_KEY, ""), (header::PARTITION, "5"), (header::ID, "5-7")];
    assert_eq!(check(&origin, &corrupt, "", 1), Ok(()));
    assert_eq!(check(&origin, &corrupt[1..], "", 1), Err(Foreign::Partition));

    let sessions = Origin::uncounted(&cluster());
    let older = [
        (header::SOURCE, "/kith/demo/sessions"),
        (header::CLUSTER, ""),
        (header::PARTITION, ""),
        (header::VERSION, ""),
    ];
    assert_eq!(check(&sessions, &older, KEY, 3), Ok(()));
}

#[test]
fn what_is_missing_or_foreign_in_a_record_is_named() {
    let origin = Origin::counted(&cluster());
    for name in [
        header::TYPE,
        header::ID,
        header::SPEC_VERSION,
        header::PARTITION_KEY,
        header::SOURCE,
        header::PARTITION,
        header::VERSION,
    ] {
        let found = check(&origin, &[(name, "")], KEY, home()).unwrap_err();
        assert_eq!((found.reason(), &found), ("headers", &Foreign::Header(name)));
    }
    for ver in ["0", "-1", "+7", "07", "seven", "18446744073709551616", "7.0", " 7"] {
        assert_eq!(
            check(&origin, &[(header::VERSION, ver)], KEY, home()),
            Err(Foreign::Header(header::VERSION)),
            "{ver}"
        );
    }
    // Another's id.
    assert_eq!(check(&origin, &[(header::ID, "1-1")], KEY, home()), Err(Foreign::Header(header::ID)));
    for (source, uid) in [
        ("kith://demo/storage", ""),
        ("kith://demo/storage", "u-2"),
        ("kith://demo", "u-2"),
        ("kith://demo2/storage", "u-1"),
        ("kith://demo2", ""),
        ("kith://other/storage", "u-1"),
        ("https://example.org", ""),
    ] {
        let found = check(&origin, &[(header::SOURCE, source), (header::CLUSTER, uid)], KEY, home()).unwrap_err();
        assert_eq!(found.reason(), "cluster", "{source} {uid}");
    }
}

#[test]
fn a_record_stands_where_its_key_belongs() {
    let origin = Origin::counted(&cluster());
    assert_eq!(check(&origin, &[], KEY, (home() + 1) % 4), Err(Foreign::Partition));
    assert_eq!(check(&origin, &[], KEY, -1), Err(Foreign::Partition));
    // The same Kafka partition, another kith partition.
    let (neighbour, key) = ((stream() + 4) % 8, (header::PARTITION_KEY, KEY));
    let (id, number) = (format!("{neighbour}-7"), neighbour.to_string());
    assert_eq!(
        check(&origin, &[(header::ID, &id), (header::PARTITION, &number), key], KEY, home()),
        Err(Foreign::Partition)
    );
    for number in ["8", "4294967296", "18446744073709551615"] {
        assert_eq!(check(&origin, &[(header::PARTITION, number)], KEY, home()), Err(Foreign::Partition), "{number}");
    }
    // A repair's mark.
    let marker = [
        (header::TYPE, REPAIR_MARKER),
        (header::PARTITION_KEY, "repair:6"),
        (header::PARTITION, ""),
        (header::VERSION, ""),
    ];
    assert_eq!(check(&origin, &marker, "repair:6", 2), Ok(()));
    assert_eq!(check(&origin, &marker, "repair:6", 3), Err(Foreign::Partition));
}
