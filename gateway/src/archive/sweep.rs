//! What removed series have left, swept.
//!
//! Arrives: the list of series that are no more. Leaves: steps that remove their readings and summaries,
//! and tell the cloud the windows of devices that go on without a metric. Always holds: what readings of
//! them are still in batches becomes no chunk; the list is empty only once nothing is left.

use super::DAY_US;
use super::fold::{Folder, Interrupted};
use crate::journal::removal::Sweep;
use crate::journal::{Step, changes, schema};
use rusqlite::Connection;

impl Folder {
    /// Sweeps what has been removed since the last look, and once more when nothing can follow: that may take
    /// `archive.delay`, and looking through the store is not for nothing.
    pub(super) fn sweep(&self, db: &Connection, swept: &mut Sweep) -> Result<(), Interrupted> {
        let sweep = Sweep::read(db)?;
        if sweep.is_empty() || (sweep == *swept && !sweep.is_settled(db)?) {
            return Ok(());
        }
        self.tell_anew(db, &sweep)?;
        for step in sweep.steps(db)? {
            self.step(step)?;
        }
        *swept = Sweep::read(db)?;
        Ok(())
    }

    /// Windows of a device that has lost a metric are of a later revision.
    fn tell_anew(&self, db: &Connection, sweep: &Sweep) -> Result<(), Interrupted> {
        if sweep.devices.is_empty() {
            return Ok(());
        }
        // Without an uplink nothing is recorded.
        if schema::meta::<String>(db, "recording")?.is_some() {
            let mut slice = Vec::new();
            for (number, device) in changes::days(db, &self.levels, &self.catalog)? {
                if sweep.devices.binary_search(&device).is_ok() {
                    let range = number * DAY_US..(number + 1) * DAY_US;
                    let series = self.catalog.metrics_of(device);
                    slice.extend(changes::stretches(device, series, self.levels.base.length_us, range));
                }
                if slice.len() >= changes::STRETCHES {
                    self.step(Step::Changes(std::mem::take(&mut slice)))?;
                }
            }
            self.step(Step::Changes(slice))?;
        }
        self.step(Step::Told(sweep.devices.clone()))
    }
}
