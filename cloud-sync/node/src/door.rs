//! Who may send a push, before anything of it is read, and how much is read at once.
//!
//! Arrives: the headers of a push, then its body piece by piece. Leaves: who it is, and the body,
//! or a refusal at once. Always holds: of those who are not known nothing is kept; all pushes that
//! are being read take no more than [`READ_MAX`] bytes, however many connections there are.

use super::incoming::Peer;
use super::intake::Refusal;
use super::metrics::Metrics;
use axum::body::HttpBody;
use axum::http;
use bytes::{Bytes, BytesMut};
use daemon::auth::{Auth, Denied};
use daemon::seats::address_name;
use rustls::pki_types::CertificateDer;
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

/// Bytes of pushes that have been read and not been answered, of all gateways.
pub(crate) const READ_MAX: usize = 128 << 20;
/// How long a push may take, from its first byte.
pub(crate) const PUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// What is to be done by whoever is not known.
pub(super) const REMEDY: &str =
    "make one with `tidegate-cloud user add GATEWAY_ID --token` and give it to the gateway as uplink.token_file";

/// Who sends, as far as it has been shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// Whoever: nobody is asked.
    Anybody,
    /// The names in a certificate that was asked for and is good.
    Certified(Vec<String>),
    /// A user.
    User(String),
}

/// Who is known, and what all pushes together may take.
pub(crate) struct Door {
    auth: Arc<Auth>,
    anonymous: bool,
    /// Certificates are asked for: whoever shows none shows a token.
    certifies: bool,
    room: Semaphore,
    metrics: Arc<Metrics>,
}

impl Door {
    /// A door for so many bytes at once.
    pub(crate) fn new(auth: Arc<Auth>, anonymous: bool, certifies: bool, bytes: usize, metrics: Arc<Metrics>) -> Self {
        Door { auth, anonymous, certifies, room: Semaphore::new(bytes), metrics }
    }

    /// Who sends, by the `Authorization` header or a certificate that was asked for and is good.
    pub(crate) async fn identify(
        &self,
        headers: &http::HeaderMap,
        chain: Option<&[CertificateDer<'static>]>,
        from: &str,
    ) -> Result<Who, Refusal> {
        if let Some(chain) = chain {
            return Ok(Who::Certified(names(chain.first().map_or(&[], |own| own.as_ref()))));
        }
        if self.anonymous || !(self.auth.asks() || self.certifies) {
            return Ok(Who::Anybody);
        }
        let known = match headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok()) {
            Some(header) => self.auth.who(header, from).await,
            None => Err(Denied::Wrong),
        };
        known.map(Who::User).map_err(|denied| match denied {
            Denied::Wrong => Refusal::Unauthenticated(format!("no token, or not a right one: {REMEDY}")),
            Denied::Later => Refusal::busy(),
        })
    }

    /// What one push takes of the room: nothing yet.
    pub(crate) fn share(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share { door: Arc::clone(self), taken: AtomicUsize::new(0) })
    }
}

/// The common name and the DNS names of a certificate.
fn names(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return Vec::new() };
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(str::to_owned);
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let dns = alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    common.chain(dns).collect()
}

/// What one push takes, until the last who holds it lets go.
pub(crate) struct Share {
    door: Arc<Door>,
    taken: AtomicUsize,
}

impl Share {
    /// Takes more, if there is room.
    fn take(&self, bytes: usize) -> Result<(), Refusal> {
        let many = u32::try_from(bytes).map_err(|_| Refusal::busy())?;
        self.door.room.try_acquire_many(many).map_err(|_| Refusal::busy())?.forget();
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.door.room.add_permits(*self.taken.get_mut());
    }
}

/// Reads a body of at most `most` bytes.
pub(crate) async fn read(mut body: axum::body::Body, most: usize, share: &Share) -> Result<Bytes, Refusal> {
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
pub(crate) struct Guarded<S> {
    /// What it leads to.
    pub inner: S,
    /// Who knows whom.
    pub door: Arc<Door>,
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for Guarded<S>
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
        let door = Arc::clone(&self.door);
        Box::pin(async move {
            let peer = request.extensions().get::<Peer>().cloned();
            let chain = peer.as_ref().and_then(|peer| peer.chain.as_deref());
            let from = peer.as_ref().map_or_else(String::new, |peer| address_name(peer.address.ip()));
            let who = match door.identify(request.headers(), chain, &from).await {
                Ok(who) => who,
                Err(refusal) => return Ok(Status::from(refusal.counted(&door.metrics)).into_http()),
            };
            let share = door.share();
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
                Err(refusal) => Err(Status::from(refusal.counted(&self.share.door.metrics))),
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
    use daemon::auth::Users;

    #[tokio::test]
    async fn what_all_pushes_take_is_bounded_and_given_back() {
        let door =
            |bytes| Arc::new(Door::new(Arc::new(Auth::new(Users::default())), true, false, bytes, Arc::default()));
        let (all, ample) = (door(1_000), door(1_000_000));
        let body = |bytes: usize| axum::body::Body::from(vec![7; bytes]);
        let counted = || axum::body::Body::new(Counted { body: Body::new(body(900)), share: all.share() });
        let (first, second) = (all.share(), all.share());
        assert_eq!(read(body(900), 1_000, &first).await.unwrap().len(), 900);
        assert_eq!(read(body(200), 1_000, &second).await, Err(Refusal::busy()));
        assert!(matches!(read(body(101), 100, &second).await, Err(Refusal::TooLarge(_))));
        drop(first);
        assert_eq!(read(body(200), 1_000, &second).await.unwrap().len(), 200);
        let refused = read(counted(), 1_000, &ample.share()).await;
        assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
        assert!(all.metrics.text().contains("refused_pushes_total{reason=\"busy\"} 1"));
        drop(second);
        assert_eq!(read(counted(), 1_000, &ample.share()).await.unwrap().len(), 900);
    }
}
