//! `tidegate-sim verify`: the ledger against the gateway's answers.
//!
//! Arrives: ledgers and a gateway's address. Leaves: every difference on standard output, a verdict,
//! and an exit code: 0 for none, 1 for some, 2 for bad use. Always holds: the witness computes from
//! the ledger alone and takes the gateway's word only where the ledger leaves it open (which of the
//! unacknowledged readings were stored, and when unstamped ones arrived). Deliberately absent: series
//! that the ledger does not name; a gateway may hold more than one simulator sent.

mod ask;
mod compare;
mod statistics;
mod witness;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use crate::BadUse;
use crate::clock;
use crate::ledger::read;
use ask::{AskError, Gateway, Login};
use compare::{Difference, Tolerance};
use statistics::Range;
use witness::Series;

const PRINTED_MAX: usize = 50;
const ASK_AGAIN_INTERVAL: Duration = Duration::from_millis(250);
/// The range that certainly holds the times a gateway assigns: 1970 to 2200.
const ALL_TIME: Range = Range { from_us: 0, to_us: 7_258_118_400_000_000 };

/// Recomputes every reading and every aggregate from a ledger and compares them with the gateway's
/// answers. Exit code: 0 if they are equal, 1 if not, 2 for bad use.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// A ledger written by `run` or `replay`; repeatable, in the order of the runs
    #[arg(long, value_name = "FILE", required = true)]
    ledger: Vec<PathBuf>,

    /// The gateway's HTTP address
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", value_parser = parse_url)]
    url: String,

    /// HTTP Basic credentials
    #[arg(long, value_name = "NAME:PASSWORD", conflicts_with = "token", value_parser = parse_user)]
    user: Option<String>,

    /// HTTP Bearer token
    #[arg(long, value_name = "T")]
    token: Option<String>,

    /// Window length to compare, or "all" for the whole range; repeatable
    #[arg(long, value_name = "DURATION", default_values = ["1m", "1h", "all"], value_parser = parse_window)]
    window: Vec<Window>,

    /// Ask again until everything is equal, for at most this long
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = clock::parse_duration)]
    wait: Duration,
}

/// A window length as the user wrote it and as the witness computes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) text: String,
    /// Absent for one window over the whole range.
    pub(crate) length_us: Option<i64>,
}

/// What was compared, and what was not equal.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) series_count: usize,
    pub(crate) window_count: usize,
    pub(crate) reading_count: usize,
    pub(crate) differences: Vec<Difference>,
    pub(crate) tolerance: Tolerance,
}

/// Compares and prints.
pub(crate) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let mut ledgers = Vec::new();
    for path in &args.ledger {
        ledgers.push(read::load(path).map_err(BadUse::because)?);
    }
    let series = witness::series(ledgers);
    let login = match (&args.user, &args.token) {
        (Some(user), _) => Login::Basic(user),
        (None, Some(token)) => Login::Bearer(token),
        (None, None) => Login::None,
    };
    let gateway = Gateway::new(&args.url, login);
    let verdict = verify(&series, &gateway, &args.window, args.wait)?;
    print(&verdict);
    Ok(ExitCode::from(u8::from(!verdict.differences.is_empty())))
}

/// Compares all series, asking again within `wait` for those that are not equal yet.
pub(crate) fn verify(
    series: &[Series],
    gateway: &Gateway,
    windows: &[Window],
    wait: Duration,
) -> Result<Verdict, AskError> {
    let give_up_at = Instant::now() + wait;
    let mut verdict = Verdict { series_count: series.len(), ..Verdict::default() };
    for one in series {
        let compared = loop {
            let compared = compare_series(one, gateway, windows);
            let is_equal = compared.as_ref().is_ok_and(|compared| compared.differences.is_empty());
            if is_equal || Instant::now() >= give_up_at {
                break compared?;
            }
            thread::sleep(ASK_AGAIN_INTERVAL);
        };
        verdict.window_count += compared.window_count;
        verdict.reading_count += compared.reading_count;
        verdict.differences.extend(compared.differences);
        verdict.tolerance.merge(&compared.tolerance);
    }
    Ok(verdict)
}

/// Compares one series: its readings first, then the aggregates of what it should hold.
fn compare_series(series: &Series, gateway: &Gateway, windows: &[Window]) -> Result<Verdict, AskError> {
    let range = series.range().unwrap_or(ALL_TIME);
    let stored = gateway.readings(&series.device, &series.metric, range)?;
    let settled = series.settle(&stored);
    let mut verdict = Verdict {
        series_count: 1,
        window_count: 0,
        reading_count: settled.samples.len(),
        differences: settled.differences,
        tolerance: Tolerance::default(),
    };
    for window in windows {
        let expected = statistics::windows(&settled.samples, range, window.length_us);
        let answered = gateway.aggregates(&series.device, &series.metric, range, &window.text)?;
        verdict.window_count += expected.len();
        let mut comparison = compare::Comparison::new(series, &window.text, &mut verdict.tolerance);
        comparison.windows(&expected, &answered);
        verdict.differences.append(&mut comparison.differences);
    }
    Ok(verdict)
}

fn print(verdict: &Verdict) {
    for difference in verdict.differences.iter().take(PRINTED_MAX) {
        println!("{difference}");
    }
    if let Some(more) = verdict.differences.len().checked_sub(PRINTED_MAX).filter(|more| *more > 0) {
        println!("... and {more} more");
    }
    println!("{}", verdict.tolerance);
    println!(
        "verified: {} series, {} windows, {} readings, {} differences",
        verdict.series_count,
        verdict.window_count,
        verdict.reading_count,
        verdict.differences.len()
    );
}

fn parse_window(text: &str) -> Result<Window, String> {
    let length_us = match text {
        "all" => None,
        _ => {
            let length = clock::parse_duration(text)?;
            if length.is_zero() || length.subsec_nanos() != 0 {
                return Err("a window is a whole multiple of a second, or \"all\"".to_owned());
            }
            Some(length.as_micros() as i64)
        }
    };
    Ok(Window { text: text.to_owned(), length_us })
}

fn parse_url(text: &str) -> Result<String, String> {
    match text.starts_with("http://") {
        true => Ok(text.trim_end_matches('/').to_owned()),
        false => Err("an address is written http://HOST:PORT".to_owned()),
    }
}

fn parse_user(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("credentials are written NAME:PASSWORD".to_owned()),
    }
}
