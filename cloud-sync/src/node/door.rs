//! Who may send a push, before anything of it is read, and how much is read at once.
//!
//! Arrives: the headers of a push, then its body piece by piece. Leaves: who it is, and the body,
//! or a refusal at once. Always holds: of those who are not known nothing is kept; all pushes that
//! are being read take no more than [`READ_MAX`] bytes, however many connections there are.

use super::intake::{Intake, Refusal};
use axum::body::HttpBody;
use axum::http;
use bytes::{Bytes, BytesMut};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

/// Bytes of pushes that have been read and not been answered, of all gateways.
pub const READ_MAX: usize = 128 << 20;
/// How long a push may take, from its first byte.
pub const PUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// Who sends, as far as it has been shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Whoever: nobody is asked.
    Anybody,
    /// The names in a certificate that was asked for and is good.
    Certified(Vec<String>),
    /// A user.
    User(String),
}

/// What all pushes together may take.
#[derive(Debug)]
pub struct Allowance(Arc<Semaphore>);

impl Allowance {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        Allowance(Arc::new(Semaphore::new(bytes)))
    }

    /// What one push takes of it: nothing yet.
    pub fn share(&self) -> Arc<Share> {
        Arc::new(Share { all: Arc::clone(&self.0), taken: AtomicUsize::new(0) })
    }
}

/// What one push takes, until the last who holds it lets go.
#[derive(Debug)]
pub struct Share {
    all: Arc<Semaphore>,
    taken: AtomicUsize,
}

impl Share {
    /// Takes more, if there is room.
    fn take(&self, bytes: usize) -> Result<(), Refusal> {
        let many = u32::try_from(bytes).map_err(|_| Refusal::busy())?;
        self.all.try_acquire_many(many).map_err(|_| Refusal::busy())?.forget();
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.add_permits(*self.taken.get_mut());
    }
}

/// Reads a body of at most `most` bytes.
pub async fn read(mut body: axum::body::Body, most: usize, share: &Share) -> Result<Bytes, Refusal> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|e| Refusal::Invalid(format!("the body ended early: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > most {
            return Err(Refusal::TooLarge(format!("a push has at most {most} bytes")));
        }
        share.take(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// The gRPC service behind the door.
#[derive(Clone)]
pub struct Door<S> {
    /// What it leads to.
    pub inner: S,
    /// Who knows whom.
    pub intake: Arc<Intake>,
}

impl<S: NamedService> NamedService for Door<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for Door<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        // The one that is ready is the one to call.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let intake = Arc::clone(&self.intake);
        Box::pin(async move {
            let certified = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
            let certified = certified.and_then(TlsConnectInfo::peer_certs);
            let authorization =
                request.headers().get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
            let who = match intake.identify(authorization, certified.as_deref().map(Vec::as_slice)).await {
                Ok(who) => who,
                Err(refusal) => return Ok(Status::from(refusal).into_http()),
            };
            let share = intake.allowance().share();
            let read = Arc::clone(&share);
            let mut request = request.map(|body| Body::new(Counted { body, share: read }));
            request.extensions_mut().insert(who);
            let answer = inner.call(request).await;
            // What was read is in memory until here.
            drop(share);
            answer
        })
    }
}

/// A body whose bytes are taken from the allowance as they come.
struct Counted {
    body: Body,
    share: Arc<Share>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            let frame = frame?;
            match frame.data_ref().map_or(Ok(()), |data| self.share.take(data.len())) {
                Ok(()) => Ok(frame),
                Err(refusal) => Err(Status::from(refusal)),
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_all_pushes_take_is_bounded_and_given_back() {
        let allowance = Allowance::new(1_000);
        let body = |bytes: usize| axum::body::Body::from(vec![7; bytes]);
        let (first, second) = (allowance.share(), allowance.share());
        assert_eq!(read(body(900), 1_000, &first).await.unwrap().len(), 900);
        assert_eq!(read(body(200), 1_000, &second).await, Err(Refusal::busy()));
        assert!(matches!(read(body(101), 100, &second).await, Err(Refusal::TooLarge(_))));
        drop(first);
        assert_eq!(read(body(200), 1_000, &second).await.unwrap().len(), 200);
        let counted = Counted { body: Body::new(body(900)), share: allowance.share() };
        let refused = read(axum::body::Body::new(counted), 1_000, &Allowance::new(1_000).share()).await;
        assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
        drop(second);
        let counted = Counted { body: Body::new(body(900)), share: allowance.share() };
        assert_eq!(
            read(axum::body::Body::new(counted), 1_000, &Allowance::new(1_000).share()).await.unwrap().len(),
            900
        );
    }
}
