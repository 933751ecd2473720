//! `kith.storage.v1.Peer`: between storage instances.

use std::sync::Arc;

use futures::future::join_all;
use kith_proto::storage::v1::{
    ApplyRequest, ApplyResponse, LeavingRequest, LeavingResponse, PartitionsRequest, PartitionsResponse, RepairRequest,
    RepairResponse, StepResult, peer_server::Peer, step_result,
};
use kith_rpc::error::Error;
use tonic::{Request, Response, Status};

use super::respond;
use crate::{
    core::Core,
    engine::valkey::{Hub, View},
    repair::Repairs,
};

const MOST_STEPS: usize = 1_000;

pub(super) struct Service {
    pub(super) core: Core,
    pub(super) hub: Arc<Hub>,
    pub(super) view: Arc<View>,
    pub(super) repairs: Arc<Repairs>,
}

#[tonic::async_trait]
impl Peer for Service {
    async fn leaving(&self, request: Request<LeavingRequest>) -> Result<Response<LeavingResponse>, Status> {
        let address = request.into_inner().address;
        if address != self.view.me() {
            tracing::info!(%address, "a storage instance leaves: its partitions are claimed");
            self.view.leaves(&address);
        }
        respond("leaving", Ok(LeavingResponse {}))
    }

    async fn partitions(&self, request: Request<PartitionsRequest>) -> Result<Response<PartitionsResponse>, Status> {
        let asked = request.into_inner().partitions;
        let partitions = self.hub.report(&asked);
        respond("partitions", Ok(PartitionsResponse { partitions, address: self.view.me().to_owned() }))
    }

    async fn repair(&self, request: Request<RepairRequest>) -> Result<Response<RepairResponse>, Status> {
        let repairs = self.repairs.clone();
        // In a task of its own: a repair goes on to its end when its caller has gone.
        let repair = tokio::spawn(async move { repairs.repair(request.into_inner()).await });
        let report = repair.await.unwrap_or_else(|e| Err(Error::internal(format!("the repair ended by itself: {e}"))));
        respond("repair", report)
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let steps = request.into_inner().steps;
        if steps.len() > MOST_STEPS {
            return respond(
                "apply",
                Err(Error::invalid(format!("steps: {} items, at most {MOST_STEPS}", steps.len()))),
            );
        }
        let outcomes = join_all(steps.into_iter().map(|step| self.core.step(step))).await;
        let results = outcomes.into_iter().map(|outcome| StepResult {
            result: Some(outcome.unwrap_or_else(|error| step_result::Result::Error(error.into()))),
        });
        respond("apply", Ok(ApplyResponse { results: results.collect() }))
    }
}
