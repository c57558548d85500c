//! `tidegate doctor`: what a store looks like, and what can be saved of a damaged one.
//!
//! Arrives: a store, also one that a gateway is using. Leaves: findings, each with what to do;
//! or a new store with all that can still be read. Always holds: the store looked at is never
//! written; what is left behind is named.

use crate::archive::{chunk, rollup};
use crate::journal::{batch, schema};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};
use std::path::Path;

/// What is right and what is not.
#[derive(Debug, Default)]
pub struct Findings {
    /// For the person to know.
    pub facts: Vec<String>,
    /// To be acted on.
    pub problems: Vec<String>,
}

/// Looks at everything in a store.
pub fn examine(store: &Path) -> Result<Findings, rusqlite::Error> {
    let db = schema::open_damaged(store)?;
    let mut findings = Findings::default();
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    findings.facts.push(format!("schema version {version}"));
    let mut check = db.prepare("PRAGMA integrity_check(20)")?;
    let lines = check.query_map([], |row| row.get::<_, String>(0)).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match lines {
        Ok(lines) if lines == ["ok"] => findings.facts.push("SQLite finds every page in order".into()),
        Ok(lines) => findings.problems.extend(lines.iter().map(|line| format!("SQLite: {line}"))),
        Err(e) => findings.problems.push(format!("SQLite cannot read all pages: {e}")),
    }
    let undefined = schema::undefined(&db)?;
    findings.problems.extend(undefined.iter().map(|table| without_definition(table)));
    let defined = |table: &&str| !undefined.iter().any(|lost| lost == table);
    for (table, key, decode) in bodies().into_iter().filter(|(table, ..)| defined(table)) {
        let (mut good, mut readings) = (0_u64, 0_u64);
        let problems = &mut findings.problems;
        each_row(&db, table, key, |row| match decode(&row) {
            Ok(n) => {
                good += 1;
                readings += n as u64;
            }
            Err(e) => problems.push(format!("{table} {}: {e}", name(&row))),
        })
        .unwrap_or_else(|e| findings.problems.push(format!("{table}: {e}")));
        let what = if table == "rollup" { "summaries" } else { "readings" };
        findings.facts.push(format!("{readings} {what} in {good} rows of {table}"));
    }
    for table in ["device", "series", "summary", "reject", "retained"].iter().filter(|table| defined(table)) {
        match db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0)) {
            Ok(rows) => findings.facts.push(format!("{rows} rows of {table}")),
            Err(e) => findings.problems.push(format!("{table}: {e}")),
        }
    }
    Ok(findings)
}

fn without_definition(table: &str) -> String {
    format!(
        "{table}: the page that defines this table is damaged, and its rows are left behind; look for them with \
         `sqlite3 tidegate.db .recover` on a copy of the store"
    )
}

type Row = Vec<Value>;

/// The tables with readings or summaries, their key, and how many of them a row holds.
type Body = (&'static str, &'static str, fn(&Row) -> Result<usize, String>);

fn bodies() -> [Body; 3] {
    let of_batch = |row: &Row| batch::decode(blob(row)).map(|readings| readings.len()).map_err(|e| e.to_string());
    let of_chunk = |row: &Row| chunk::decode(blob(row)).map(|points| points.len()).map_err(|e| e.to_string());
    let of_rollup = |row: &Row| rollup::decode(blob(row), true).map(|rows| rows.len()).map_err(|e| e.to_string());
    [("batch", "seq", of_batch), ("chunk", "id", of_chunk), ("rollup", "id", of_rollup)]
}

/// The last column.
fn blob(row: &Row) -> &[u8] {
    match row.last() {
        Some(Value::Blob(bytes)) => bytes,
        _ => &[],
    }
}

/// The first column.
fn name(row: &Row) -> String {
    match row.first() {
        Some(Value::Integer(n)) => n.to_string(),
        other => format!("{other:?}"),
    }
}

/// Calls `each` with every row that can be read, in order of the key; an error says that some
/// could not, and goes on behind them.
fn each_row(db: &Connection, table: &str, key: &str, mut each: impl FnMut(Row)) -> Result<(), String> {
    let sql = format!("SELECT * FROM {table} WHERE {key} >= ?1 ORDER BY {key} LIMIT 1");
    let read = |from: i64| -> rusqlite::Result<Option<(i64, Row)>> {
        let mut query = db.prepare_cached(&sql)?;
        let columns = query.column_count();
        let row = |row: &rusqlite::Row<'_>| {
            let values: rusqlite::Result<Row> = (0..columns).map(|at| row.get(at)).collect();
            Ok((row.get::<_, i64>(key)?, values?))
        };
        query.query_row([from], row).optional()
    };
    let (mut from, mut step, mut failed) = (i64::MIN, 1_i64, None);
    loop {
        match read(from) {
            Ok(None) => break,
            Ok(Some((at, row))) => {
                each(row);
                step = 1;
                let Some(next) = at.checked_add(1) else { break };
                from = next;
            }
            Err(e) => {
                failed.get_or_insert_with(|| e.to_string());
                // Behind a damaged page, however far its rows reach.
                let Some(next) = from.max(-1).checked_add(step) else { break };
                (from, step) = (next, step.saturating_mul(2));
            }
        }
    }
    failed.map_or(Ok(()), |e| Err(format!("some rows cannot be read: {e}")))
}

/// Copies all that can be read into a new store in an empty directory; returns what was left
/// behind.
pub fn salvage(store: &Path, to: &Path) -> anyhow::Result<Findings> {
    anyhow::ensure!(!schema::file(to).exists(), "{} has a store already: choose an empty directory", to.display());
    let db = schema::open_damaged(store)?;
    let new = schema::open(to)?;
    let undefined = schema::undefined(&db)?;
    let problems = undefined.iter().map(|table| without_definition(table)).collect();
    let mut findings = Findings { problems, ..Findings::default() };
    let into = new.connection.unchecked_transaction()?;
    let decodes = bodies();
    for (table, key) in
        [("device", "id"), ("series", "id"), ("batch", "seq"), ("chunk", "id"), ("rollup", "id"), ("reject", "id")]
    {
        let (mut kept, mut next) = (0_u64, 0_i64);
        if undefined.iter().any(|lost| lost == table) {
            continue;
        }
        let columns = columns(&db, table)?;
        let mut errors = Vec::new();
        let whole = each_row(&db, table, key, |row| {
            let decode = decodes.iter().find(|(name, ..)| *name == table).map(|(_, _, decode)| decode);
            if let Some(Err(e)) = decode.map(|decode| decode(&row)) {
                return errors.push(format!("{table} {} is left behind: {e}", name(&row)));
            }
            if let (Some(Value::Integer(id)), "device" | "series") = (row.first(), table) {
                // Ids are dense: what is lost keeps its place under another name.
                for lost in next..*id {
                    let stand_in = if table == "device" {
                        into.execute("INSERT INTO device (id, name, created_us) VALUES (?1, 'lost-' || ?1, 0)", [lost])
                    } else {
                        into.execute("INSERT INTO series VALUES (?1, 0, 'lost-' || ?1, NULL)", [lost])
                    };
                    errors.extend(stand_in.err().map(|e| e.to_string()));
                    errors.push(format!("{table} {lost} has lost its name"));
                }
                next = id + 1;
            }
            match insert(&into, table, &columns, &row) {
                Ok(()) => kept += 1,
                Err(e) => errors.push(format!("{table} {}: {e}", name(&row))),
            }
        });
        findings.problems.extend(whole.err().map(|e| format!("{table}: {e}")));
        findings.problems.append(&mut errors);
        findings.facts.push(format!("{kept} rows of {table}"));
    }
    for table in ["meta", "label", "level", "retired", "summary", "retained", "inbound", "removed", "sweep"] {
        if undefined.iter().any(|lost| lost == table) || columns(&db, table)?.is_empty() {
            // Or the store is of a version that did not have it.
            continue;
        }
        match copy_plainly(&db, &into, table) {
            Ok(rows) => findings.facts.push(format!("{rows} rows of {table}")),
            Err(e) => findings.problems.push(format!("{table}: what follows a damaged page is left behind: {e}")),
        }
    }
    // Another history begins here, and what a restart would skip is looked at again.
    into.execute("DELETE FROM meta WHERE key IN ('incarnation', 'folding_seq')", [])?;
    into.commit()?;
    Ok(findings)
}

/// The columns of a table as they are there, which an earlier version may have had fewer of.
fn columns(db: &Connection, table: &str) -> rusqlite::Result<String> {
    let mut names = db.prepare("SELECT name FROM pragma_table_info(?1) ORDER BY cid")?;
    let names: Vec<String> = names.query_map([table], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(names.join(", "))
}

fn insert(into: &Connection, table: &str, columns: &str, row: &Row) -> rusqlite::Result<()> {
    let marks = vec!["?"; row.len()].join(", ");
    into.prepare_cached(&format!("INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})"))?
        .execute(params_from_iter(row))
        .map(drop)
}

fn copy_plainly(db: &Connection, into: &Connection, table: &str) -> rusqlite::Result<u64> {
    let mut query = db.prepare(&format!("SELECT * FROM {table}"))?;
    let (count, names) = (query.column_count(), columns(db, table)?);
    let mut rows = query.query([])?;
    let mut copied = 0;
    while let Some(row) = rows.next()? {
        let values: rusqlite::Result<Row> = (0..count).map(|at| row.get(at)).collect();
        insert(into, table, &names, &values?)?;
        copied += 1;
    }
    Ok(copied)
}
