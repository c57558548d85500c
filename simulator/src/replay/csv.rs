//! A recording in a CSV file.
//!
//! Arrives: a file and the names of its columns. Leaves: its readings in the order of the lines.
//! Always holds: a value keeps its text form if that is a JSON number, and its exact value otherwise
//! (`.5` becomes `0.5`). Deliberately absent: guessing. Whatever is not a time, a number, `true` or
//! `false` is an error that names line and column.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use csv::{ReaderBuilder, StringRecord};

use super::Row;
use crate::clock;

/// Which columns to read; a device or metric given here needs no column.
#[derive(Debug)]
pub(crate) struct Columns<'a> {
    pub(crate) time: &'a str,
    pub(crate) value: &'a str,
    pub(crate) device: Option<&'a str>,
    pub(crate) metric: Option<&'a str>,
}

/// The readings of a file.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) rows: Vec<Row>,
}

/// Why a file is not a recording.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordingError {
    #[error("{file}: {source}")]
    Unreadable { file: String, source: csv::Error },
    #[error("{file}: there is no column \"{column}\" (the header has: {header}){remedy}")]
    NoColumn { file: String, column: String, header: String, remedy: &'static str },
    #[error("{file}, line {line}, column \"{column}\": {reason}")]
    BadField { file: String, line: u64, column: String, reason: String },
}

/// Reads a whole file.
pub(crate) fn load(path: &Path, columns: &Columns<'_>) -> Result<Recording, RecordingError> {
    let file = path.display().to_string();
    let unreadable = |source| RecordingError::Unreadable { file: file.clone(), source };
    let mut reader = ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(unreadable)?;
    let header = reader.headers().map_err(unreadable)?.clone();
    let layout = Layout::find(&file, &header, columns)?;
    let mut names = Names::default();
    let mut rows = Vec::new();
    for record in reader.into_records() {
        let record = record.map_err(unreadable)?;
        rows.push(layout.row(&file, &record, &mut names)?);
    }
    Ok(Recording { rows })
}

/// Where a name comes from: the command line, or a column.
enum Name<'a> {
    Given(&'a str),
    Column(usize),
}

/// The places of the columns in a line.
struct Layout<'a> {
    columns: &'a Columns<'a>,
    time: usize,
    value: usize,
    device: Name<'a>,
    metric: Name<'a>,
}

impl<'a> Layout<'a> {
    fn find(file: &str, header: &StringRecord, columns: &'a Columns<'a>) -> Result<Self, RecordingError> {
        let place = |column: &str, remedy| {
            // A byte order mark belongs to the file, not to the first column's name.
            let is_it = |name: &str| name.trim_start_matches('\u{feff}') == column;
            header.iter().position(is_it).ok_or_else(|| RecordingError::NoColumn {
                file: file.to_owned(),
                column: column.to_owned(),
                header: header.iter().collect::<Vec<_>>().join(", "),
                remedy,
            })
        };
        let name = |given: Option<&'a str>, column, remedy| match given {
            Some(given) => Ok(Name::Given(given)),
            None => place(column, remedy).map(Name::Column),
        };
        Ok(Self {
            columns,
            time: place(columns.time, "; choose one with --time-column")?,
            value: place(columns.value, "; choose one with --value-column")?,
            device: name(columns.device, "device", "; give it with --device")?,
            metric: name(columns.metric, "metric", "; give it with --metric")?,
        })
    }

    fn row(&self, file: &str, record: &StringRecord, names: &mut Names) -> Result<Row, RecordingError> {
        let bad = |column: &str, reason: String| RecordingError::BadField {
            file: file.to_owned(),
            line: record.position().map_or(0, csv::Position::line),
            column: column.to_owned(),
            reason,
        };
        let mut name = |name: &Name<'_>, column| {
            let text = match name {
                Name::Given(given) => given,
                Name::Column(place) => &record[*place],
            };
            names.checked(text).map_err(|reason| bad(column, reason))
        };
        Ok(Row {
            device: name(&self.device, "device")?,
            metric: name(&self.metric, "metric")?,
            time_us: clock::parse_time(&record[self.time])
                .map_err(|error| bad(self.columns.time, error.to_string()))?,
            value: literal(&record[self.value]).map_err(|reason| bad(self.columns.value, reason))?,
        })
    }
}

/// The names of a file, each kept once.
#[derive(Default)]
struct Names(HashMap<String, Arc<str>>);

impl Names {
    fn checked(&mut self, text: &str) -> Result<Arc<str>, String> {
        if let Some(name) = self.0.get(text) {
            return Ok(name.clone());
        }
        let forbidden = |c: char| c.is_control() || "/+#".contains(c);
        if !(1..=255).contains(&text.len()) || text.contains(forbidden) {
            return Err(format!("{text:?} is not a name of 1 to 255 bytes without / + # and control characters"));
        }
        let name: Arc<str> = text.into();
        self.0.insert(text.to_owned(), name.clone());
        Ok(name)
    }
}

/// A value as a JSON literal.
fn literal(text: &str) -> Result<Box<str>, String> {
    let is_number = |text: &str| serde_json::from_str::<serde_json::Number>(text).is_ok();
    match text {
        "true" | "True" | "TRUE" => Ok("true".into()),
        "false" | "False" | "FALSE" => Ok("false".into()),
        number if is_number(number) => Ok(number.into()),
        // What Rust reads and JSON does not (.5, +3, 007) is written anew, to the same last bit.
        other => match other.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number.to_string().into()),
            _ => Err(format!("\"{other}\" is not a number, true or false")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Columns<'static> = Columns { time: "timestamp", value: "value", device: Some("d"), metric: Some("m") };

    fn loaded(text: &str, columns: &Columns<'_>) -> Result<Vec<Row>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recording.csv");
        std::fs::write(&path, text).unwrap();
        load(&path, columns).map(|recording| recording.rows).map_err(|error| error.to_string())
    }

    fn values(text: &str) -> Vec<String> {
        loaded(text, &PLAIN).unwrap().iter().map(|row| row.value.to_string()).collect()
    }

    #[test]
    fn values_keep_their_text_form() {
        let text = "timestamp,value\n2014-04-01 00:00:00,20.0\n2014-04-01 00:05:00,1e-3\n1396310400,-0.70\n";
        assert_eq!(values(text), ["20.0", "1e-3", "-0.70"]);
    }

    #[test]
    fn what_json_cannot_say_is_written_anew_with_the_same_value() {
        let text = "timestamp,value\n0,.5\n1,+3\n2,007\n3,True\n";
        assert_eq!(values(text), ["0.5", "3", "7", "true"]);
    }

    #[test]
    fn columns_may_stand_anywhere() {
        let text = "value,note,metric,when,device\n1,x,power,2014-04-01T00:00:00Z,haus ü\n";
        let columns = Columns { time: "when", value: "value", device: None, metric: None };
        let rows = loaded(text, &columns).unwrap();
        assert_eq!((&*rows[0].device, &*rows[0].metric), ("haus ü", "power"));
        assert_eq!(rows[0].time_us, 1_396_310_400_000_000);
    }

    #[test]
    fn a_bad_field_is_named_with_its_line_and_column() {
        let error = loaded("timestamp,value\n0,1\n1,warm\n", &PLAIN).unwrap_err();
        assert!(
            error.ends_with("recording.csv, line 3, column \"value\": \"warm\" is not a number, true or false"),
            "{error}"
        );
        let error = loaded("timestamp,value\nnoon,1\n", &PLAIN).unwrap_err();
        assert!(error.contains("line 2, column \"timestamp\": \"noon\" is not a time"), "{error}");
        let error = loaded("timestamp,value\n0,NaN\n", &PLAIN).unwrap_err();
        assert!(error.contains("line 2, column \"value\""), "{error}");
    }

    #[test]
    fn a_missing_column_is_named_with_what_there_is() {
        let error = loaded("time,value\n", &PLAIN).unwrap_err();
        assert!(error.contains("no column \"timestamp\" (the header has: time, value)"), "{error}");
        let columns = Columns { device: None, ..PLAIN };
        let error = loaded("timestamp,value\n", &columns).unwrap_err();
        assert!(error.ends_with("; give it with --device"), "{error}");
    }

    #[test]
    fn a_line_with_too_few_fields_is_named() {
        let error = loaded("timestamp,value\n0,1\n1\n", &PLAIN).unwrap_err();
        assert!(error.contains("line: 3"), "{error}");
    }
}
