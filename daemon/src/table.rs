//! Rows as tables that dataframe tools read: Arrow streams and Parquet.
//!
//! Arrives: aggregates, or record batches. Leaves: record batches, and bytes of either format.
//! Times are UTC timestamps in microseconds.

use crate::aggregates::{Answer, is_count};
use arrow_array::builder::{BooleanBuilder, Float64Builder, StringBuilder, TimestampMicrosecondBuilder, UInt64Builder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema, TimeUnit};
use model::Value;
use model::aggregate::Stat;
use model::time::SECOND_US;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use std::io::Write;
use std::sync::Arc;

/// Why a table cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Arrow refuses.
    #[error("table: {0}")]
    Arrow(#[from] ArrowError),
    /// Parquet refuses, or the file cannot be written.
    #[error("table: {0}")]
    Parquet(#[from] ParquetError),
}

/// The type of times.
pub fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Times on their way.
pub fn times() -> TimestampMicrosecondBuilder {
    TimestampMicrosecondBuilder::new().with_data_type(utc())
}

/// Aggregates as a table: the group's columns, start, end, the statistics, complete, and the
/// resolution where readings are retired. Where `first` or `last` is a text the number is null.
pub fn of_aggregates(answer: &Answer, group_by: &[String], stats: &[Stat]) -> Result<RecordBatch, TableError> {
    let (mut fields, mut columns): (Vec<Field>, Vec<ArrayRef>) = (Vec::new(), Vec::new());
    let mut add = |name: &str, nullable: bool, column: ArrayRef| {
        fields.push(Field::new(name, column.data_type().clone(), nullable));
        columns.push(column);
    };
    for (at, name) in group_by.iter().enumerate() {
        let mut column = StringBuilder::new();
        answer.rows.iter().for_each(|row| column.append_option(row.group[at].as_deref()));
        add(name, true, Arc::new(column.finish()));
    }
    let (mut start, mut end, mut complete) = (times(), times(), BooleanBuilder::new());
    for row in &answer.rows {
        start.append_value(row.start_us);
        end.append_value(row.end_us);
        complete.append_value(row.complete);
    }
    add("start", false, Arc::new(start.finish()));
    add("end", false, Arc::new(end.finish()));
    for (at, stat) in stats.iter().enumerate() {
        let numbers = answer.rows.iter().map(|row| row.values[at].as_ref().and_then(Value::as_number));
        let column: ArrayRef = if is_count(*stat) {
            let mut column = UInt64Builder::new();
            numbers.for_each(|n| column.append_option(n.map(|n| n as u64)));
            Arc::new(column.finish())
        } else {
            let mut column = Float64Builder::new();
            numbers.for_each(|n| column.append_option(n));
            Arc::new(column.finish())
        };
        add(&stat.to_string(), true, column);
    }
    add("complete", false, Arc::new(complete.finish()));
    let mut resolution = UInt64Builder::new();
    answer.rows.iter().for_each(|row| resolution.append_option(row.resolution_us.map(|us| (us / SECOND_US) as u64)));
    add("resolution_s", true, Arc::new(resolution.finish()));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// A table as an Arrow IPC stream.
pub fn to_arrow(table: &RecordBatch) -> Result<Vec<u8>, TableError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &table.schema())?;
    writer.write(table)?;
    writer.finish()?;
    Ok(writer.into_inner()?)
}

/// A table as a Parquet file.
pub fn to_parquet(table: &RecordBatch) -> Result<Vec<u8>, TableError> {
    let mut bytes = Vec::new();
    let mut writer = parquet_writer(&mut bytes, &table.schema())?;
    writer.write(table)?;
    writer.close()?;
    Ok(bytes)
}

/// A Parquet file on its way.
pub fn parquet_writer<W: Write + Send>(to: W, schema: &Arc<Schema>) -> Result<ArrowWriter<W>, TableError> {
    let level = ZstdLevel::try_new(3)?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
    Ok(ArrowWriter::try_new(to, Arc::clone(schema), Some(properties))?)
}
