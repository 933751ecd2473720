//! Answers that hold pages are held in the budget of the process until their line has taken them: see [`kith_rpc::budget`].

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};
use kith_clients::storage::PAGE_BYTES;
use kith_rpc::{
    budget::{Budget, Held},
    error::Error,
    server::{Identity, Peer},
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Bytes, Service, http},
    server::NamedService,
};

/// Calls whose answers hold messages.
const PAGES: [&str; 2] = ["/ListMessages", "/ListConversations"];
/// What one line may hold: sixteen pages that are asked for or not taken yet. It is a back end of many processes, and there are few lines.
const LINE: usize = 16 * PAGE_BYTES;
/// A page is made within this time, its request included: storage answers within five seconds or says that it cannot.
const MADE: Duration = Duration::from_secs(15);

/// A service whose pages are weighed.
#[derive(Clone)]
pub(crate) struct Weighed<S> {
    inner: S,
    budget: Budget,
}

impl<S> Weighed<S> {
    /// Weighs the pages of `inner`.
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, budget: Budget::with_share("kith_business_over_budget_total", LINE) }
    }
}

impl<S: NamedService> NamedService for Weighed<S> {
    const NAME: &'static str = S::NAME;
}

/// Who asks, by certificate; one and the same where there are no certificates.
fn caller<B>(request: &http::Request<B>) -> String {
    match request.extensions().get::<Peer>().map(|peer| &peer.identity) {
        Some(Identity::Line(line)) => line.clone(),
        _ => String::new(),
    }
}

impl<S, B> Service<http::Request<B>> for Weighed<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<S::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        // `clone` and swap: the instance that was polled ready is the one to call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        if !PAGES.iter().any(|page| request.uri().path().ends_with(page)) {
            return Box::pin(async move { inner.call(request).await });
        }
        let budget = self.budget.clone();
        Box::pin(async move {
            let held = match budget.hold(&caller(&request), PAGE_BYTES).await {
                Ok(held) => held,
                Err(error) => return Ok(Status::from(error).into_http()),
            };
            let Ok(answer) = tokio::time::timeout(MADE, inner.call(request)).await else {
                return Ok(Status::from(Error::new(
                    Code::DeadlineExceeded,
                    "the page was not asked for and made in time",
                ))
                .into_http());
            };
            Ok(answer?.map(|body| Body::new(Taken { body, held, bytes: 0 })))
        })
    }
}

/// An answer and what is held for it.
struct Taken {
    body: Body,
    held: Held,
    bytes: usize,
}

impl http_body::Body for Taken {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            this.bytes += frame.data_ref().map_or(0, Bytes::len);
            // It is made: what waits from here on waits for its own line alone.
            this.held.made(this.bytes);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};

    use http_body::Body as _;

    use super::*;

    /// Answers with a small page.
    #[derive(Clone)]
    struct Pages;

    impl Service<http::Request<()>> for Pages {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: http::Request<()>) -> Self::Future {
            ready(Ok(http::Response::new(Body::new(String::from("page")))))
        }
    }

    async fn ask(service: &mut Weighed<Pages>, line: &str, call: &str) -> http::Response<Body> {
        let identity = Identity::Line(line.to_owned());
        let path = format!("/kith.business.v1.ImBusiness/{call}");
        let request = http::Request::builder().uri(path).extension(Peer { identity, address: None }).body(()).unwrap();
        service.call(request).await.unwrap()
    }

    fn code(answer: &http::Response<Body>) -> Code {
        Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code())
    }

    #[tokio::test]
    async fn a_line_that_does_not_take_its_pages_is_refused_more_and_others_are_served() {
        let mut service = Weighed::new(Pages);
        let mut untaken = Vec::new();
        let refused = loop {
            let answer = ask(&mut service, "slow", "ListMessages").await;
            if code(&answer) != Code::Ok {
                break answer;
            }
            untaken.push(answer);
            assert!(untaken.len() < 100, "never refused");
        };
        assert_eq!(code(&refused), Code::ResourceExhausted);
        assert_eq!(code(&ask(&mut service, "slow", "SendMessage").await), Code::Ok, "sends are no pages");
        assert_eq!(code(&ask(&mut service, "other", "ListMessages").await), Code::Ok);
        // Once an answer is made it weighs what it is.
        for answer in &mut untaken {
            let frame = std::future::poll_fn(|cx| Pin::new(answer.body_mut()).poll_frame(cx)).await;
            assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "page");
        }
        assert_eq!(code(&ask(&mut service, "slow", "ListMessages").await), Code::Ok);
    }
}
