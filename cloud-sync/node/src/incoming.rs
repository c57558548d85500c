//! Connections of gRPC, with or without TLS.
//!
//! Arrives: a bound listener. Leaves: streams whose handshake is done, each with a seat and with what is known
//! of its peer. Always holds: connections are bounded in number and for each address; a client that is slow to
//! shake hands makes nobody else wait.

use daemon::seats::{Seat, Seats};
use daemon::sparse::Sparse;
use daemon::tls::Shown;
use futures_util::stream;
use rustls::pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// The connection preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// After an error of the operating system, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
/// Streams that are ready and not taken yet.
const READY_MAX: usize = 64;

/// What is known of a peer.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// Where it is.
    pub(super) address: SocketAddr,
    /// The certificates that it was asked for, and that are good.
    pub(super) chain: Option<Arc<[CertificateDer<'static>]>>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Stream {
    io: Io,
    peer: Peer,
    /// Until the peer has said that it speaks HTTP/2: how long it may take, and how many bytes are missing.
    opening: Option<(Pin<Box<Sleep>>, usize)>,
    _seat: Seat,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn io(self: Pin<&mut Self>) -> Pin<&mut (dyn Both + Send + Unpin)> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream as &mut (dyn Both + Send + Unpin)),
            Io::Tls(stream) => Pin::new(&mut **stream as &mut (dyn Both + Send + Unpin)),
        }
    }
}

/// Bytes both ways.
trait Both: AsyncRead + AsyncWrite {}
impl<T: AsyncRead + AsyncWrite> Both for T {}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = self.as_mut().io().poll_read(cx, buffer);
        if let Some((deadline, missing)) = &mut self.opening {
            *missing = missing.saturating_sub(buffer.filled().len() - before);
            if *missing == 0 {
                self.opening = None;
            } else if read.is_pending() {
                ready!(deadline.as_mut().poll(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}

impl Connected for Stream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// The connections that come to a listener.
pub(super) fn incoming(
    listener: TcpListener,
    tls: Option<Shown>,
    seats: Arc<Seats>,
) -> impl futures_util::Stream<Item = io::Result<Stream>> {
    let (sender, ready) = mpsc::channel(READY_MAX);
    tokio::spawn(accept(listener, tls, seats, sender));
    stream::unfold(ready, async |mut ready| ready.recv().await.map(|stream| (Ok(stream), ready)))
}

async fn accept(listener: TcpListener, tls: Option<Shown>, seats: Arc<Seats>, ready: mpsc::Sender<Stream>) {
    static FULL: Sparse = Sparse::new();
    loop {
        let accepted = tokio::select! {
            () = ready.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, address)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Some(seat) = seats.take(address.ip()) else {
            if let Some(unsaid) = FULL.may_say() {
                tracing::warn!(%address, unsaid, "a connection was refused: cloud.max_connections, or half of what is free for one address");
            }
            continue;
        };
        let (shown, ready) = (tls.clone(), ready.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let (io, chain) = match shown {
                None => (Io::Plain(stream), None),
                Some(shown) => {
                    let handshake = TlsAcceptor::from(shown.now()).accept(stream);
                    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_PATIENCE, handshake).await else { return };
                    let owned =
                        |chain: &[CertificateDer<'_>]| chain.iter().map(|own| own.clone().into_owned()).collect();
                    let chain = stream.get_ref().1.peer_certificates().map(owned);
                    (Io::Tls(Box::new(stream)), chain)
                }
            };
            let opening = Some((Box::pin(tokio::time::sleep(HANDSHAKE_PATIENCE)), PREFACE_BYTES));
            let _ = ready.send(Stream { io, peer: Peer { address, chain }, opening, _seat: seat }).await;
        });
    }
}
