//! Connections of HTTP/1.1, with or without TLS.
//!
//! Arrives: a bound listener and the resources behind it. Leaves: answers. Always holds: connections are
//! bounded in number and for each address; a head, a handshake or a silence has an end, so that nobody's half
//! request costs others a connection; a panic ends one connection.

use super::reply::Problem;
use crate::seats::{Seat, Seats};
use crate::sparse::Sparse;
use crate::tls::Shown;
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// How long a request's head may take, and a connection be silent between two requests.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// How long a request that brings a body may take, its answer included.
const CHANGE_PATIENCE: Duration = Duration::from_secs(120);
/// How long a handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// How long what was sent may stay unread by the other side.
const UNREAD_PATIENCE: Duration = Duration::from_secs(60);
/// After an error of the operating system, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 64 << 10;

/// The certificates that a client has shown.
#[derive(Debug, Clone)]
pub struct Certificates(pub Arc<[CertificateDer<'static>]>);

/// Serves until `stop`, then finishes the requests under way. A request bears [`ConnectInfo`] and, if its
/// client showed any, [`Certificates`].
pub async fn serve(listener: TcpListener, tls: Option<Shown>, app: Router, seats: Arc<Seats>, stop: CancellationToken) {
    static FULL: Sparse = Sparse::new();
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => match seats.take(from.ip()) {
                Some(seat) => {
                    let served = connection(stream, from, tls.clone(), app.clone(), seat, stop.clone());
                    drop(connections.spawn(served.instrument(tracing::info_span!("http", peer = %from))));
                }
                None => {
                    if let Some(unsaid) = FULL.may_say() {
                        tracing::warn!(%from, unsaid, "a connection was refused: http.max_connections, or half of what is free for one address");
                    }
                }
            },
            Err(e) => {
                tracing::warn!("a connection could not be accepted: {e}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// Answers; what brings a body has an end, whatever becomes of it.
pub async fn within_patience(request: Request, next: Next) -> Result<Response, Problem> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(next.run(request).await);
    }
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the request took more than two minutes");
    tokio::time::timeout(CHANGE_PATIENCE, next.run(request)).await.map_err(late)
}

async fn connection(
    stream: TcpStream,
    from: SocketAddr,
    tls: Option<Shown>,
    app: Router,
    _seat: Seat,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_PATIENCE));
    match tls {
        None => requests(stream, from, None, app, stop).await,
        Some(shown) => {
            let handshake = TlsAcceptor::from(shown.now()).accept(stream);
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_PATIENCE, handshake).await else { return };
            let chain = stream.get_ref().1.peer_certificates().map(|chain| {
                let owned: Vec<_> = chain.iter().map(|own| own.clone().into_owned()).collect();
                Certificates(owned.into())
            });
            requests(stream, from, chain, app, stop).await;
        }
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: SocketAddr,
    chain: Option<Certificates>,
    app: Router,
    stop: CancellationToken,
) {
    let app = app.layer(axum::middleware::from_fn(move |mut request: Request, next: Next| {
        request.extensions_mut().insert(ConnectInfo(from));
        if let Some(chain) = &chain {
            request.extensions_mut().insert(chain.clone());
        }
        // Without what follows the path: there may be passwords.
        let span = tracing::info_span!("request", method = %request.method(), path = request.uri().path());
        next.run(request).instrument(span)
    }));
    let service = TowerToHyperService::new(app.into_service::<Incoming>());
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // However it ends, it is this connection that does.
        _ = served.as_mut() => return,
        () = stop.cancelled() => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}
