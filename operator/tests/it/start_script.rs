//! The script that starts a Valkey pod: what it lets start, and when.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

const SCRIPT: &str = include_str!("../../src/render/scripts/valkey-start.sh");

const ME: &str = "18e23775f9bfcc0aac59f1457505832f1e24ba07";
const OTHER: &str = "bdabc68ed4b7c791c28ec0190a60206c2ac61300";

/// A data folder with this list of nodes, and the script with stand-ins that write down what is run.
fn start(nodes: &str, has_data: bool) -> (Output, String) {
    let dir = TempDir::new().expect("a folder");
    let (data, bin) = (dir.path().join("data"), dir.path().join("bin"));
    fs::create_dir_all(&data).expect("a folder");
    fs::create_dir_all(&bin).expect("a folder");
    if has_data {
        fs::create_dir(data.join("appendonlydir")).expect("a folder");
    }
    fs::write(data.join("nodes.conf"), nodes).expect("written");
    let ran = dir.path().join("ran");
    for name in ["sleep", "valkey-server"] {
        stand_in(&bin.join(name), &format!("#!/bin/sh\necho {name} \"$1\" >>{}\n", ran.display()));
    }
    let script = SCRIPT.replace("cd /data", &format!("cd {}", data.display()));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh")
        .args(["-c", &script])
        .env("PATH", path)
        .env("POD_IP", "10.0.0.1")
        .env("POD_NAME", "demo-0-valkey-0")
        .output()
        .expect("a shell");
    (output, fs::read_to_string(ran).unwrap_or_default())
}

fn stand_in(path: &Path, text: &str) {
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("executable");
}

fn node(id: &str, flags: &str, primary: &str, slots: &str) -> String {
    format!("{id} 10.0.0.1:0@16379,,tls-port=6379,nodename=x {flags} {primary} 0 1795719183072 7 connected{slots}\n")
}

#[test]
fn a_primary_that_ended_lets_its_replicas_go_first() {
    let me = node(ME, "myself,master,nofailover", "-", " 0-16383");
    for flags in ["slave", "slave,nofailover"] {
        let (output, ran) = start(&format!("{}{me}", node(OTHER, flags, ME, "")), true);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(ran, "sleep 2\nvalkey-server /etc/valkey/valkey.conf\n", "{flags}");
    }
}

#[test]
fn who_leaves_nobody_waiting_starts_at_once() {
    let replica = node(ME, "myself,slave,nofailover", OTHER, "");
    let alone = node(ME, "myself,master,nofailover", "-", " 0-16383");
    let dead = format!("{}{alone}", node(OTHER, "slave,fail,nofailover", ME, ""));
    let elsewhere = format!("{}{alone}", node(OTHER, "slave,nofailover", OTHER, ""));
    for nodes in ["", &replica, &alone, &dead, &elsewhere] {
        let (output, ran) = start(nodes, true);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(ran, "valkey-server /etc/valkey/valkey.conf\n", "{nodes}");
    }
}

#[test]
fn a_node_that_lost_its_data_does_not_start() {
    let (output, ran) = start(&node(ME, "myself,master", "-", " 0-16383"), false);
    assert!(!output.status.success() && ran.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("refusing to start"), "{output:?}");
}
