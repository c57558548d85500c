//! One run from its links to its report.
//!
//! Arrives: links, the book they write into, how long to go on. Leaves: a report on standard output
//! and an exit code: 0 if everything that could be acknowledged was. Always holds: the first
//! interrupt ends the sources and lets the links drain, the second ends the process. Deliberately
//! absent: what is sent and how.

use std::future;
use std::io::{self, IsTerminal};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::signal;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::BadUse;
use crate::args::OutcomeArgs;
use crate::book::Book;
use crate::ledger::{Ledger, LedgerError};
use crate::message::Composer;
use crate::progress;
use crate::report::{ReportForm, Tally};
use crate::send::{self, Link};

/// How long a run goes on if nobody interrupts it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Length {
    pub(crate) duration: Option<Duration>,
    /// How many readings the sources will bring, where that is known.
    pub(crate) readings: Option<u64>,
}

/// A run in preparation.
pub(crate) struct Runner {
    pub(crate) seed: u64,
    next_id: Arc<AtomicU64>,
    book: Book,
    form: ReportForm,
    quiet: bool,
}

impl Runner {
    /// Opens the ledger, if there is to be one.
    pub(crate) fn new(outcome: &OutcomeArgs) -> anyhow::Result<Self> {
        let seed = outcome.seed();
        let create = |path: &std::path::PathBuf| Ledger::create(path, seed);
        let ledger = outcome.ledger.as_ref().map(create).transpose().map_err(|error| match error {
            LedgerError::Exists(_) => BadUse::because(error),
            other => other.into(),
        })?;
        Ok(Self {
            seed,
            next_id: Arc::new(AtomicU64::new(1)),
            book: Book { tally: Arc::new(Tally::new()), ledger },
            form: outcome.report,
            quiet: outcome.quiet,
        })
    }

    /// A composer whose messages the ledger knows by the given service.
    pub(crate) fn composer(&self, service: &'static str) -> Composer {
        Composer::new(self.next_id.clone(), service, self.book.ledger.is_some())
    }

    /// Carries out the run and reports on it.
    pub(crate) fn perform(self, links: Vec<Link>, length: Length) -> anyhow::Result<ExitCode> {
        if !self.quiet {
            eprintln!("seed {}", self.seed);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(self.play(links, length))?;
        // Connections that were given up must not hold up the report.
        runtime.shutdown_background();

        let ledger = self.book.ledger.as_ref().map(|ledger| ledger.path().to_owned());
        if let Some(ledger) = &self.book.ledger {
            ledger.close()?;
        }
        let report = self.book.tally.report(self.seed, ledger);
        report.print(self.form);
        Ok(ExitCode::from(u8::from(report.unacked > 0)))
    }

    async fn play(&self, links: Vec<Link>, length: Length) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        tokio::spawn(stop_on_signal(stop.clone()));
        let is_watched = io::stderr().is_terminal() && !self.quiet;
        let bar = is_watched.then(|| tokio::spawn(progress::show(self.book.tally.clone(), length)));
        let played = send::play(links, self.book.clone(), stop.clone(), end_after(length.duration, stop)).await;
        if let Some(bar) = bar {
            bar.abort();
            // The bar's last breath clears its line; the report follows on a clean one.
            let _ = bar.await;
        }
        Ok(played?)
    }
}

async fn end_after(duration: Option<Duration>, stop: CancellationToken) {
    match duration {
        Some(duration) => time::sleep(duration).await,
        None => future::pending().await,
    }
    stop.cancel();
}

async fn stop_on_signal(stop: CancellationToken) {
    interrupted().await;
    eprintln!("stopping; waiting for acknowledgements (interrupt again to leave at once)");
    stop.cancel();
    interrupted().await;
    process::exit(1);
}

async fn interrupted() {
    #[cfg(unix)]
    {
        let mut terminate = signal::unix::signal(signal::unix::SignalKind::terminate())
            .expect("a handler for SIGTERM can be installed");
        tokio::select! {
            _ = signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = signal::ctrl_c().await;
}
