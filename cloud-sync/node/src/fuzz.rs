//! What the fuzz targets call; docs/fuzzing.md says how they are run.
//!
//! Arrives: bytes, of anybody. Leaves: nothing, or a panic where a promise of a module is broken. In tests every input
//! that is kept in `fuzz/corpus/` is replayed, without a fuzzer.

use crate::door;
use daemon::auth::{Auth, Users};
use model::Summary;
use model::time::{FIRST_US, LAST_US};
use prost::Message;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use uplink::Held;
use wire::proto::PushRequest;
use wire::{Batch, SUMMARIES_MAX, WINDOWS_MAX, Window};

/// A name, and what is called with every input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[("frame", frame), ("summaries", summaries), ("push", push)];

/// What a batch may take: less than in earnest, so that the fuzzer's own bound can be low.
const MEMORY: usize = 32 << 20;
const BODY_MAX: usize = 1 << 20;
/// Each part is an allocation of ours.
const PARTS_MAX: usize = 4_096;

/// A batch as it travels.
pub fn frame(data: &[u8]) {
    let mut taken = 0_usize;
    let batch = Batch::decode_within(data, &mut |bytes| {
        taken += bytes;
        taken <= MEMORY
    });
    if let Ok(batch) = batch {
        check(&batch);
    }
}

/// A batch before it is packed.
pub fn summaries(data: &[u8]) {
    frame(&zstd::encode_all(data, 1).expect("memory takes what is written to it"));
}

/// The body of a push, in parts. First byte: how long they are.
pub fn push(data: &[u8]) {
    let Some((&length, data)) = data.split_first() else { return };
    let auth = Arc::new(Auth::new(Users::default()));
    let door = Arc::new(door::Door::new(auth, true, false, BODY_MAX, Arc::default()));
    let parts: Vec<_> = data
        .chunks(1 + usize::from(length) * 16 + data.len() / PARTS_MAX)
        .map(|part| Ok::<_, Infallible>(part.to_vec()))
        .collect();
    let body = axum::body::Body::from_stream(futures_util::stream::iter(parts));
    let share = door.share();
    let read = pin!(door::read(body, BODY_MAX, &share)).poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(read) = read else { panic!("it waits") };
    let Ok(bytes) = read else { return assert!(data.len() > BODY_MAX) };
    assert_eq!(bytes, data);
    let Ok(request) = PushRequest::decode(bytes) else { return };
    assert_eq!(PushRequest::decode(&*request.encode_to_vec()).as_ref(), Ok(&request));
    for echo in &request.expected {
        assert_eq!(Held::of(echo).echo(echo.shard.clone()), *echo);
    }
    frame(&request.summaries);
}

/// A batch is within its bounds, says the same when it is sent on, and can be merged and asked.
fn check(batch: &Batch) {
    assert!(batch.windows.len() <= WINDOWS_MAX && batch.summaries() <= SUMMARIES_MAX);
    for window in &batch.windows {
        assert!((window.device as usize) < batch.devices.len() && !window.metrics.is_empty());
        assert!((FIRST_US..=LAST_US).contains(&window.start_us) && window.length_us > 0);
        assert_eq!(window.start_us % window.length_us, 0);
    }
    let mut all: BTreeMap<&str, Summary> = BTreeMap::new();
    for (name, summary) in batch.windows.iter().flat_map(|window| &window.metrics) {
        all.entry(name).or_insert_with(|| Summary::empty(0)).add(summary);
    }
    for summary in all.values() {
        assert_eq!(summary.sketch.count(), summary.count);
        let _ = (summary.stddev(), summary.quantile(0.5), summary.quantile(1.0));
    }
    let again = Batch::decode(&batch.encode()).expect("what has been written");
    assert_eq!(again.devices, batch.devices);
    let ordered = |windows: &[Window]| {
        let mut windows = windows.to_vec();
        windows.sort_by_key(|window| (window.device, window.length_us, window.start_us));
        windows
    };
    let (ours, theirs) = (ordered(&batch.windows), ordered(&again.windows));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours.metrics.len(), theirs.metrics.len());
        for (name, summary) in &ours.metrics {
            // Sums of huge numbers may be infinite, or no numbers.
            let is_finite = summary.sum.is_finite() && summary.m2.is_finite();
            let again = &theirs.metrics[name];
            assert!(!is_finite || again.says_the_same(summary), "{summary:?} {again:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn whatever_was_found_once_is_found_no_more() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        for (name, target) in TARGETS {
            let inputs: Vec<_> = std::fs::read_dir(corpus.join(name)).expect(name).map(|e| e.unwrap().path()).collect();
            assert!(!inputs.is_empty(), "{name} has no inputs");
            for path in inputs {
                let input = std::fs::read(&path).unwrap();
                let outcome = std::panic::catch_unwind(|| target(&input));
                assert!(outcome.is_ok(), "{} with {}", name, path.display());
            }
            target(&[]);
        }
    }
}
