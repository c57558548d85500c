//! Bodies with readings, and the memory that they take.
//!
//! Arrives: a request. Leaves: its body, unpacked, and a hold on as much of `http.ingest_memory`. Always holds:
//! memory is taken as bytes come, not as they are announced; one client takes at most half of it; a body that
//! stops coming, or comes too slowly, ends.

use super::{Client, Site};
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use daemon::http::reply::Problem;
use daemon::memory::Hold;
use flate2::write::MultiGzDecoder;
use futures_util::StreamExt;
use std::io::Write;
use std::time::Duration;

/// How long a body may take to come: it takes room that others wait for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing of it may come.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a body waits for room.
const WAIT: Duration = Duration::from_secs(30);

/// A body and its hold, until its readings are committed.
pub(super) struct Taken {
    pub(super) bytes: Bytes,
    _hold: Hold,
}

/// Takes memory for bytes that have come.
async fn grow(hold: &mut Hold, more: usize) -> Result<(), Problem> {
    let taken = tokio::time::timeout(WAIT, hold.take_when_free(more)).await;
    taken.map_err(|_| {
        let detail = "http.ingest_memory is in use, or this client's half of it: try again";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    })
}

/// Reads a body whole.
pub(super) async fn read(site: &Site, client: &Client, request: Request) -> Result<Taken, Problem> {
    let gzip = match text_of(request.headers(), header::CONTENT_ENCODING) {
        None | Some("identity") => false,
        Some("gzip" | "x-gzip") => true,
        Some(other) => {
            let detail = format!("content encoding {other:?} is not taken here: send gzip or none");
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
    };
    let announced = text_of(request.headers(), header::CONTENT_LENGTH).and_then(|value| value.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > site.body_max) {
        return Err(too_large(site.body_max));
    }
    let hold = site.ingest_memory.hold(&client.0);
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took more than a minute: send smaller ones");
    tokio::time::timeout(PATIENCE, collect(request.into_body(), gzip, site.body_max, hold)).await.map_err(late)?
}

fn text_of(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

pub(super) async fn collect(body: Body, gzip: bool, most: usize, mut hold: Hold) -> Result<Taken, Problem> {
    let mut stream = body.into_data_stream();
    let mut plain = Vec::new();
    let mut unpacker = gzip.then(|| MultiGzDecoder::new(Bounded { bytes: Vec::new(), most }));
    loop {
        let silent = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "nothing of the body came for ten seconds");
        let Some(part) = tokio::time::timeout(SILENCE, stream.next()).await.map_err(silent)? else { break };
        let part = part.map_err(|_| Problem::bad_request("the body ended too early"))?;
        match &mut unpacker {
            None if plain.len() + part.len() > most => return Err(too_large(most)),
            None => {
                grow(&mut hold, part.len()).await?;
                plain.extend_from_slice(&part);
            }
            Some(unpacker) => {
                // Piece by piece: a few bytes may unpack to a thousand times as many.
                for piece in part.chunks(PACKED_AT_ONCE) {
                    let before = unpacker.get_ref().bytes.len();
                    unpacker.write_all(piece).map_err(|e| unpack_problem(&e, most))?;
                    grow(&mut hold, unpacker.get_ref().bytes.len() - before).await?;
                }
            }
        }
    }
    if let Some(unpacker) = unpacker {
        let before = hold.bytes();
        plain = unpacker.finish().map_err(|e| unpack_problem(&e, most))?.bytes;
        grow(&mut hold, plain.len().saturating_sub(before)).await?;
    }
    Ok(Taken { bytes: plain.into(), _hold: hold })
}

/// What is unpacked before its memory is counted.
const PACKED_AT_ONCE: usize = 256;

/// A place for unpacked bytes that has an end.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.most {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn unpack_problem(error: &std::io::Error, most: usize) -> Problem {
    match error.kind() {
        std::io::ErrorKind::FileTooLarge => too_large(most),
        _ => Problem::bad_request(format!("the body is not gzip: {error}")),
    }
}

fn too_large(most: usize) -> Problem {
    let detail = format!("the body is larger than http.max_body ({most} bytes): send it in parts");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}
