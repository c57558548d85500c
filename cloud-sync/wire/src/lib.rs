//! The one contract between the two daemons.
//!
//! Arrives: windows of devices with the summaries of all their metrics. Leaves: bytes, and from
//! bytes the same windows. `proto/uplink.proto` is the reference: columns of Protocol Buffers
//! in a zstd frame. Always holds: what comes back says the same, minimum, maximum, first, last
//! and counts to the bit; bytes from outside are an error or windows, within stated bounds.

/// Windows to columns and back.
mod columns;

/// How much memory a message takes, before it is decoded.
mod size;

use model::{Micros, NameError, Summary, check_name};
use prost::Message;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

/// The messages, generated from `proto/uplink.proto`.
#[allow(missing_docs, reason = "generated; the comments stand in the .proto")]
pub mod proto {
    tonic::include_proto!("tidegate.v1");
}

/// Windows in one batch, at most.
pub const WINDOWS_MAX: usize = 100_000;
/// Summaries in one batch, at most.
pub const SUMMARIES_MAX: usize = 1_000_000;
/// A batch that is larger unpacked is refused.
const UNPACKED_MAX: u64 = 32 << 20;
/// What is unpacked before its memory is taken.
const UNPACKED_AT_ONCE: usize = 256 << 10;
/// A batch that takes more memory is refused.
pub const DECODED_MAX: usize = 160 << 20;
/// A batch that is larger on the wire is refused.
const PACKED_MAX: usize = 8 << 20;
/// A push that is larger is refused: a batch with what stands around it.
pub const MESSAGE_MAX: usize = PACKED_MAX + (1 << 20);
/// The type of a push as a body over HTTP, and of its reply.
pub const MESSAGE_TYPE: &str = "application/x-protobuf";
/// Beside INVALID_ARGUMENT, in the metadata: it is the batch that cannot be read, as 422 says over HTTP.
pub const UNREADABLE: &str = "tidegate-batch-unreadable";
/// Where it goes.
pub const PUSH_PATH: &str = "/v1/push";
/// Devices, and entries for metrics, in one batch, at most.
const NAMES_MAX: usize = 110_000;
/// Lengths of windows in one batch, at most.
const LENGTHS_MAX: usize = 8;
const LEVEL: i32 = 5;

/// A batch of windows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Whose windows these are, each once.
    pub devices: Vec<Device>,
    /// The windows.
    pub windows: Vec<Window>,
    /// What is no more.
    pub removed: Vec<Removed>,
}

/// A device that is no more, or a metric of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The device.
    pub device: Arc<str>,
    /// The metric; `None` is the whole device.
    pub metric: Option<Arc<str>>,
    /// Windows of earlier revisions have lost it.
    pub revision: u64,
}

/// A device.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Its id.
    pub id: Arc<str>,
    /// Its labels, if they are to be set.
    pub labels: Option<BTreeMap<String, String>>,
}

/// A window of a device, with all its metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Index into [`Batch::devices`].
    pub device: u32,
    /// Its start, a whole second.
    pub start_us: Micros,
    /// Its length, whole seconds.
    pub length_us: Micros,
    /// Rises with every change of any metric.
    pub revision: u64,
    /// By name.
    pub metrics: BTreeMap<Arc<str>, Summary>,
}

/// A window that the cloud holds, for comparing with its gateway (`GET /v1/summaries`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldWindow {
    /// The device.
    pub device: String,
    /// How long the window is.
    pub length_us: Micros,
    /// Its start.
    pub start_us: Micros,
    /// Its version.
    pub incarnation: u64,
    /// Its version.
    pub revision: u64,
    /// Numbers and texts in it.
    pub readings: u64,
    /// It stands for shorter windows that have been retired.
    #[serde(default)]
    pub sealed: bool,
}

/// Why bytes are no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not a zstd frame, or one that holds too much.
    #[error("the batch is no zstd frame of at most {UNPACKED_MAX} bytes: {0}")]
    Frame(String),
    /// Not the message.
    #[error("the batch is no tidegate.v1.Summaries: {0}")]
    Message(String),
    /// More than one batch may hold.
    #[error(
        "the batch has {0} windows or summaries, at most {WINDOWS_MAX} and {SUMMARIES_MAX} are allowed: send less at once"
    )]
    TooMany(usize),
    /// Its summaries take more memory than one batch may.
    #[error("the batch takes more than {DECODED_MAX} bytes of memory: send less at once")]
    TooLarge,
    /// There is no memory for it now.
    #[error("too many batches at once")]
    Busy,
    /// A column ends too early, or points nowhere.
    #[error("the batch contradicts itself: {0}")]
    Inconsistent(&'static str),
    /// A device or metric that cannot be called so.
    #[error("{name:?} is no name: {error}")]
    Name {
        /// What it is called.
        name: String,
        /// Why not.
        error: NameError,
    },
}

impl Batch {
    /// How many summaries there are.
    pub fn summaries(&self) -> usize {
        self.windows.iter().map(|window| window.metrics.len()).sum()
    }

    /// True if there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty() && self.removed.is_empty() && self.devices.iter().all(|device| device.labels.is_none())
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let plain = columns::encode(self).encode_to_vec();
        zstd::encode_all(&plain[..], LEVEL).expect("memory takes what is written to it")
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        Batch::decode_within(bytes, &mut |_| true)
    }

    /// From bytes, with as much memory as `take` gives: it is asked before anything is unpacked or decoded, since
    /// a few bytes may become a hundred thousand times as many.
    pub fn decode_within(bytes: &[u8], take: &mut dyn FnMut(usize) -> bool) -> Result<Self, WireError> {
        let frame = |e: std::io::Error| WireError::Frame(e.to_string());
        let mut room = |bytes: usize| if take(bytes) { Ok(()) } else { Err(WireError::Busy) };
        let mut plain = Vec::new();
        let mut unpacked = zstd::Decoder::new(bytes).map_err(frame)?;
        loop {
            room(UNPACKED_AT_ONCE)?;
            let read = unpacked.by_ref().take(UNPACKED_AT_ONCE as u64).read_to_end(&mut plain).map_err(frame)?;
            if plain.len() as u64 > UNPACKED_MAX {
                return Err(WireError::Frame("it is larger".into()));
            }
            if read == 0 {
                break;
            }
        }
        let size = size::of(&plain).map_err(|e| WireError::Message(e.to_string()))?;
        if size.names > NAMES_MAX {
            return Err(WireError::TooMany(size.names));
        }
        if size.bytes > DECODED_MAX {
            return Err(WireError::TooLarge);
        }
        room(size.bytes)?;
        let message = proto::Summaries::decode(&plain[..]).map_err(|e| WireError::Message(e.to_string()))?;
        columns::decode(message)
    }
}

fn named(name: &str) -> Result<Arc<str>, WireError> {
    check_name(name).map_err(|error| WireError::Name { name: name.into(), error })?;
    Ok(name.into())
}

#[cfg(test)]
mod tests;
