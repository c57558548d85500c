//! Readings as tables that dataframe tools read. A value that is a text stands in a column of
//! its own, so that numbers stay numbers; booleans are 0 and 1.

use crate::query::readings::Rows;
use arrow_array::builder::{Float64Builder, StringBuilder, TimestampMicrosecondBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use daemon::table::{TableError, times, utc};
use model::{Micros, Value};
use std::sync::Arc;

/// The columns of readings: device, metric, time, value (null for texts), text.
pub(crate) fn readings_schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("metric", DataType::Utf8, false),
        Field::new("time", utc(), false),
        Field::new("value", DataType::Float64, true),
        Field::new("text", DataType::Utf8, true),
    ]))
}

/// Readings on their way into a record batch.
pub(crate) struct ReadingsBuilder {
    device: StringBuilder,
    metric: StringBuilder,
    time: TimestampMicrosecondBuilder,
    value: Float64Builder,
    text: StringBuilder,
    rows: usize,
}

impl Default for ReadingsBuilder {
    fn default() -> Self {
        ReadingsBuilder {
            device: StringBuilder::new(),
            metric: StringBuilder::new(),
            time: times(),
            value: Float64Builder::new(),
            text: StringBuilder::new(),
            rows: 0,
        }
    }
}

impl ReadingsBuilder {
    /// Adds a reading.
    pub(crate) fn push(&mut self, device: &str, metric: &str, time_us: Micros, value: &Value) {
        self.device.append_value(device);
        self.metric.append_value(metric);
        self.time.append_value(time_us);
        self.value.append_option(value.as_number());
        self.text.append_option(text(value));
        self.rows += 1;
    }

    /// How many readings.
    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// True without readings.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// What has been added; the builder is then empty.
    pub(crate) fn finish(&mut self) -> Result<RecordBatch, TableError> {
        self.rows = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.device.finish()),
            Arc::new(self.metric.finish()),
            Arc::new(self.time.finish()),
            Arc::new(self.value.finish()),
            Arc::new(self.text.finish()),
        ];
        Ok(RecordBatch::try_new(readings_schema(), columns)?)
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// Readings as a table.
pub(crate) fn of_readings(rows: &Rows) -> Result<RecordBatch, TableError> {
    let mut builder = ReadingsBuilder::default();
    for row in &rows.rows {
        let (device, metric) = rows.names(row);
        builder.push(device, metric, row.time_us, &row.value);
    }
    builder.finish()
}
