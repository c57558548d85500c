//! A daemon's life: arguments that every verb takes, the log, signals, exit codes.

use crate::config::{Options, Problem, load};
use crate::files::keep_to_ourselves;
use clap::{Args, ValueEnum};
use std::io::IsTerminal;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Exit code for a bad command line or configuration.
pub const BAD_USE: u8 = 2;

/// What every verb takes.
#[derive(Debug, Args)]
pub struct Common {
    /// The configuration; without it the default file in this directory if there is one, else the defaults.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, for example mqtt.listen=127.0.0.1:2883; repeats.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The form of the log on standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

impl Common {
    /// The configuration, from all its layers.
    pub fn load<C: Options>(&self) -> Result<C, Vec<Problem>> {
        // Those before a verb are lost if there are others behind it.
        let given = std::env::args_os().filter(|argument| is_set(&argument.to_string_lossy())).count();
        if given > self.sets.len() {
            return Err(vec![Problem {
                place: "--set".into(),
                key: String::new(),
                what: "some stand before the verb and some behind it: give all in one place".into(),
            }]);
        }
        // TIDEGATE_TEST_... are for the tests' own knobs, which are no configuration.
        let environment = std::env::vars().filter(|(name, _)| !name.starts_with("TIDEGATE_TEST_"));
        load(self.config.as_deref(), environment, &self.sets)
    }

    /// Begins to log to standard error; what is written from now on is for the owner of this process.
    pub fn start_log(&self) {
        keep_to_ourselves();
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            // Whoever reads the log may have gone: nothing else must end with it.
            .log_internal_errors(false);
        match self.log_format {
            LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
            LogFormat::Json => log.json().init(),
        }
    }
}

fn is_set(argument: &str) -> bool {
    argument == "--set" || argument.starts_with("--set=")
}

/// Every connection takes a descriptor, and the store needs some always: what the system allows, not less.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// SIGTERM and SIGINT drain, the second one exits at once, SIGHUP reads again.
pub async fn obey_signals(shutdown: CancellationToken, reload: impl Fn()) {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = signals else {
        tracing::error!("signals cannot be heard");
        return;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {
                reload();
                continue;
            }
        }
        if shutdown.is_cancelled() {
            std::process::exit(1);
        }
        tracing::info!("stopping; a second signal stops at once");
        shutdown.cancel();
    }
}
