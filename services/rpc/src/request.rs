//! The request id that follows a call across hops, in logs and in the metadata `x-request-id`.

use std::{future::Future, sync::Arc};

use tonic::{Request, Status, metadata::MetadataValue, service::Interceptor};
use ulid::Ulid;

/// The header and metadata key.
pub const HEADER: &str = "x-request-id";

tokio::task_local! {
    static ID: Arc<str>;
}

/// Runs `f` under the request id `given`, or a new one when it is absent or not printable ASCII of at most 64 bytes.
pub async fn scope<F: Future>(given: Option<&str>, f: F) -> F::Output {
    ID.scope(accept(given), f).await
}

/// The id that a call arrives with, or a new one.
pub fn accept(given: Option<&str>) -> Arc<str> {
    match given {
        Some(id) if !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_graphic()) => id.into(),
        _ => Ulid::generate().to_string().into(),
    }
}

/// The id of the request that this task serves.
pub fn current() -> Option<Arc<str>> {
    ID.try_with(Clone::clone).ok()
}

/// Puts the current request id on outgoing calls.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inject;

impl Interceptor for Inject {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(id) = current()
            && let Ok(value) = MetadataValue::try_from(&*id)
        {
            request.metadata_mut().insert(HEADER, value);
        }
        Ok(request)
    }
}
