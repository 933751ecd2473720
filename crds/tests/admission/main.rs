//! What a real API server accepts and refuses, with the CRDs and the operator's chart installed in it.
//!
//! One etcd and one kube-apiserver (from the cache that `e2e/local/deps.sh` fills) serve all of it; both run on loopback ports of
//! their own in a temporary folder and end with the test. Every refusal must say in words what is wrong.

mod api;
mod changes;
mod chart;
mod manifests;
mod server;
mod views;

use api::Api;
use server::ApiServer;

/// Collects what went wrong, so that one run shows all of it.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    /// `outcome` must be a refusal whose text has each of the words.
    fn expect_refusal(&mut self, case: &str, outcome: &Result<serde_json::Value, String>, says: &[&str]) {
        match outcome {
            Ok(_) => self.0.push(format!("{case}: was accepted")),
            Err(text) => {
                for word in says.iter().filter(|word| !text.contains(**word)) {
                    self.0.push(format!("{case}: refused without saying {word:?}: {text}"));
                }
            }
        }
    }

    /// `outcome` must be an acceptance; answers the object that the API server made.
    fn expect_acceptance(&mut self, case: &str, outcome: Result<serde_json::Value, String>) -> serde_json::Value {
        outcome.unwrap_or_else(|text| {
            self.0.push(format!("{case}: was refused: {text}"));
            serde_json::Value::Null
        })
    }

    /// `found` must hold.
    fn expect(&mut self, case: &str, found: bool, seen: impl std::fmt::Display) {
        if !found {
            self.0.push(format!("{case}: {seen}"));
        }
    }
}

#[test]
fn the_api_server_accepts_what_is_right_and_refuses_the_rest_in_words() {
    let server = ApiServer::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut failures = Failures::default();
    runtime.block_on(async {
        let admin = Api::as_user(&server, "admin");
        admin.install_crds().await;
        views::definitions_are_clean(&admin, &mut failures).await;
        manifests::good_ones_are_accepted(&admin, &mut failures).await;
        manifests::bad_ones_are_refused(&admin, &mut failures).await;
        changes::bad_ones_are_refused(&admin, &mut failures).await;
        changes::good_ones_are_accepted(&admin, &mut failures).await;
        views::examples_are_accepted(&server, &mut failures);
        views::people_see_the_state_at_a_glance(&server, &admin, &mut failures).await;
        chart::installs_and_passes_pod_security(&server, &mut failures);
        chart::policies_protect_shards_and_rebalances(&server, &admin, &mut failures).await;
        chart::rights_are_the_least(&server, &admin, &mut failures).await;
    });
    assert!(failures.0.is_empty(), "{} wrong:\n  {}", failures.0.len(), failures.0.join("\n  "));
}
