//! `tidegate export`: readings as files that DuckDB, pandas and Polars read without help.
//!
//! Arrives: a store, also one that a gateway is using, and a range. Leaves: one file for each
//! day, in directories named `date=2024-03-01` (Hive partitioning), rows by device, metric and
//! time. Always holds: memory is bounded by a day of one series and what is not folded yet of
//! that day; a file appears whole or not at all.

use crate::archive::read::{Raw, Wanted};
use crate::archive::{DAY_US, day};
use crate::journal::{ReadError, schema};
use crate::readings::Points;
use crate::table::{ReadingsBuilder, readings_schema};
use daemon::aggregates::Range;
use daemon::files;
use daemon::table::{TableError, parquet_writer};
use model::time;
use parquet::arrow::ArrowWriter;
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufWriter;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The form of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Parquet, zstd.
    Parquet,
    /// CSV with a header (RFC 4180).
    Csv,
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// SQLite says so.
    #[error("the store cannot be read: {0}")]
    Store(#[from] rusqlite::Error),
    /// A table cannot be written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A file cannot be written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
}

/// Rows that become a row group.
const ROWS_AT_ONCE: usize = 64 << 10;

struct Series {
    id: u32,
    device: String,
    metric: String,
}

/// Writes the readings of a range below `to`; `each` hears of every file and its rows.
pub fn export(
    store: &Path,
    range: Range,
    format: Format,
    to: &Path,
    mut each: impl FnMut(&Path, u64),
) -> Result<(), ExportError> {
    let db = schema::open_reader(store)?;
    let series = read_series(&db)?;
    let ids: Vec<u32> = series.iter().map(|series| series.id).collect();
    let wanted = Wanted::new(&ids);
    let mut days: BTreeSet<i64> = BTreeSet::new();
    {
        let raw = Raw::open(&db)?;
        days.extend(raw.days(range.from_us, range.to_us)?);
        raw.each_unfolded(&wanted, range.from_us, range.to_us, |_, time_us, _| {
            days.insert(day(time_us));
        })?;
    }
    for day in days {
        // A snapshot for each day: a long export must not pin the log of a running gateway.
        let raw = Raw::open(&db)?;
        let (from_us, to_us) = (range.from_us.max(day * DAY_US), range.to_us.min((day + 1) * DAY_US));
        let tail = raw.tail(&wanted, from_us, to_us, usize::MAX)?.unwrap_or_default();
        let directory = to.join(format!("date={}", &time::format(day * DAY_US)[..10]));
        let mut sink = Sink::create(&directory, format)?;
        for (place, series) in series.iter().enumerate() {
            raw.each_day(series.id, &[day], tail.points(place), from_us, to_us, |points| {
                sink.take(series, &points)?;
                Ok::<_, ExportError>(ControlFlow::Continue(()))
            })?;
        }
        if let Some((path, rows)) = sink.finish()? {
            each(&path, rows);
        }
    }
    Ok(())
}

fn read_series(db: &Connection) -> rusqlite::Result<Vec<Series>> {
    let mut query = db.prepare(
        "SELECT s.id, d.name, s.metric FROM series s JOIN device d ON d.id = s.device
            WHERE unicode(s.metric) > 1 ORDER BY d.name, s.metric",
    )?;
    let series = |row: &rusqlite::Row<'_>| Ok(Series { id: row.get(0)?, device: row.get(1)?, metric: row.get(2)? });
    query.query_map([], series)?.collect()
}

enum Writer {
    Parquet(Box<ArrowWriter<BufWriter<File>>>),
    Csv(Box<csv::Writer<BufWriter<File>>>),
}

/// One day's file on its way.
struct Sink {
    directory: PathBuf,
    beside: PathBuf,
    path: PathBuf,
    writer: Writer,
    builder: ReadingsBuilder,
    rows: u64,
}

impl Sink {
    fn create(directory: &Path, format: Format) -> Result<Self, ExportError> {
        let name = match format {
            Format::Parquet => "readings.parquet",
            Format::Csv => "readings.csv",
        };
        let (path, beside) = (directory.join(name), directory.join(format!(".{name}.new")));
        let at = |source| ExportError::File { path: beside.clone(), source };
        files::directory(directory).map_err(at)?;
        // What a run that was ended left there.
        let _ = std::fs::remove_file(&beside);
        let file = BufWriter::new(files::create_new(&beside).map_err(at)?);
        let writer = match format {
            Format::Parquet => Writer::Parquet(Box::new(parquet_writer(file, &readings_schema())?)),
            Format::Csv => {
                let mut writer = csv::Writer::from_writer(file);
                writer.write_record(["device", "metric", "time", "value", "text"]).map_err(|e| at(e.into()))?;
                Writer::Csv(Box::new(writer))
            }
        };
        let directory = directory.to_owned();
        Ok(Sink { directory, beside, path, writer, builder: ReadingsBuilder::default(), rows: 0 })
    }

    fn take(&mut self, series: &Series, points: &Points) -> Result<(), ExportError> {
        self.rows += points.len() as u64;
        for row in 0..points.len() {
            let (time_us, value) = (points.time_us[row], points.value(row));
            match &mut self.writer {
                Writer::Parquet(_) => self.builder.push(&series.device, &series.metric, time_us, &value),
                Writer::Csv(writer) => {
                    let number = value.as_number().map(|n| n.to_string()).unwrap_or_default();
                    let record = [
                        &*series.device,
                        &*series.metric,
                        &*time::format(time_us),
                        &*number,
                        points.text(row).unwrap_or(""),
                    ];
                    let at = |e: csv::Error| ExportError::File { path: self.beside.clone(), source: e.into() };
                    writer.write_record(record).map_err(at)?;
                }
            }
        }
        if self.builder.len() >= ROWS_AT_ONCE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ExportError> {
        if let Writer::Parquet(writer) = &mut self.writer
            && !self.builder.is_empty()
        {
            let batch = self.builder.finish()?;
            writer.write(&batch).map_err(TableError::from)?;
            writer.flush().map_err(TableError::from)?;
        }
        Ok(())
    }

    /// The file and its rows; a day without any leaves nothing.
    fn finish(mut self) -> Result<Option<(PathBuf, u64)>, ExportError> {
        self.flush()?;
        let Sink { directory, beside, path, writer, rows, .. } = self;
        let at = |source| ExportError::File { path: beside.clone(), source };
        match writer {
            Writer::Parquet(writer) => drop(writer.close().map_err(TableError::from)?),
            Writer::Csv(mut writer) => writer.flush().map_err(at)?,
        }
        if rows == 0 {
            std::fs::remove_file(&beside).map_err(at)?;
            // Only if nothing else is in it.
            let _ = std::fs::remove_dir(&directory);
            return Ok(None);
        }
        std::fs::rename(&beside, &path).map_err(at)?;
        Ok(Some((path, rows)))
    }
}
