//! What both daemons must agree on, and nothing else.
//!
//! Arrives: names, stamps, values, questions. Leaves: the same in one agreed form, and
//! merges that give the same answer wherever they run. Always holds: everything here is
//! pure. Deliberately absent: sockets, files, clocks, threads.

/// Who a reading is about: device ids, metric names, and the slot a device lives in.
pub mod identity;

/// What tells series of one measurement apart: tags within a metric's name.
pub mod tags;

/// When it was: microseconds since the Unix epoch, their text forms, aligned windows.
pub mod time;

/// What was measured: a number, a boolean or a state text.
pub mod value;

/// The distribution of a window's numbers, mergeable within a stated error.
pub mod sketch;

/// What is kept of a window, and how two summaries become one.
pub mod summary;

/// The grammar of a question: windows, statistics, globs.
pub mod aggregate;

/// Numbers as whole numbers of their last decimal.
pub mod decimal;

/// Whole numbers in few bytes.
pub mod varint;

pub use identity::{NameError, check_name};
pub use sketch::Sketch;
pub use summary::Summary;
pub use time::Micros;
pub use value::Value;
