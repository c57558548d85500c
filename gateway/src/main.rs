//! Arguments, configuration, build, run, exit code.

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use daemon::aggregates::{Range, parse_time};
use daemon::auth::verbs::UserVerb;
use daemon::lifecycle::{BAD_USE, Common, obey_signals, raise_file_limit};
use gateway::app::{self, App, AppError};
use gateway::config::{Config, is_in_the_clear};
use gateway::doctor;
use gateway::export::{self, Format};
use gateway::forget::Forget;
use gateway::inside::{Clock, schema};
use gateway::verify;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// Edge IoT gateway: sensors in over MQTT, CoAP and HTTP, aggregates out over HTTP.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the gateway (the default).
    Run,
    /// Check the configuration and say what is wrong with it.
    Check,
    /// Write readings as files, also while the gateway runs.
    Export(Export),
    /// Write a whole copy of the store to a file, also while the gateway runs.
    Backup {
        /// The file, which must not exist; put it into an empty data directory as tidegate.db to use it.
        file: PathBuf,
    },
    /// Look at everything in the store and say what is wrong with it, also while the gateway runs.
    Doctor {
        /// Copy all that can still be read into a new store in this directory.
        #[arg(long, value_name = "DIR")]
        salvage: Option<PathBuf>,
    },
    /// Compare with the cloud, window by window, also while the gateway runs.
    Verify {
        /// The cloud's HTTP address, for example http://127.0.0.1:8090.
        #[arg(long, value_name = "URL")]
        cloud: String,
        /// A file with a bearer token for it; uplink.token_file without it.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Remove a device, or one metric of it, with all its readings: here and, through the uplink, in the cloud.
    Forget {
        /// The device.
        device: String,
        /// The metric; without it the whole device goes.
        metric: Option<String>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Where a gateway that runs answers; http.listen without it.
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// Manage who may come in.
    User {
        #[command(subcommand)]
        verb: UserVerb,
    },
}

#[derive(Debug, Args)]
struct Export {
    /// From when: RFC 3339, an epoch number, or for example now-1d.
    #[arg(long)]
    from: Option<String>,
    /// Until when, exclusive.
    #[arg(long)]
    to: Option<String>,
    /// The form of the files.
    #[arg(long, value_enum, default_value_t = ExportFormat::Parquet)]
    format: ExportFormat,
    /// The directory, in which date=2024-03-01 and so on are made.
    #[arg(long, default_value = "export")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    Parquet,
    Csv,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.common.start_log();
    bound_polars_threads();
    let config = match arguments.common.load::<Config>() {
        Ok(config) => config,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return ExitCode::from(BAD_USE);
        }
    };
    let done = match arguments.verb.unwrap_or(Verb::Run) {
        Verb::Run => run(config, arguments.common),
        Verb::Check => app::check(&config).map_err(Into::into).map(|()| println!("the configuration is good")),
        Verb::Export(arguments) => export(&config, &arguments),
        Verb::Backup { file } => backup(&config, &file),
        Verb::Doctor { salvage } => doctor(&config, salvage.as_deref()),
        Verb::Verify { cloud, token_file } => verify(&config, &cloud, token_file),
        Verb::Forget { device, metric, yes, url } => {
            Forget { device, metric, yes, url }.run(&config, Clock::system().now_us())
        }
        Verb::User { verb } => verb.run(&config.users_file()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            let bad_use = matches!(error.downcast_ref(), Some(AppError::Exposed(_)));
            ExitCode::from(if bad_use { BAD_USE } else { 1 })
        }
    }
}

/// Frames are small here: more threads would only cost memory.
fn bound_polars_threads() {
    if std::env::var_os("POLARS_MAX_THREADS").is_none() {
        // SAFETY: no other thread has been started yet.
        #[expect(unsafe_code, reason = "Polars reads its bound from the environment only")]
        unsafe {
            std::env::set_var("POLARS_MAX_THREADS", "2");
        }
    }
}

fn run(config: Config, common: Common) -> anyhow::Result<()> {
    raise_file_limit();
    // The way to the cloud looks for it here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime could not start")?;
    let served = runtime.block_on(async {
        let app = App::build(config, Clock::system()).await?;
        for (name, address) in app.addresses() {
            tracing::info!("{name} listens on {address}");
        }
        let shutdown = CancellationToken::new();
        let reload = app.reloader();
        tokio::spawn(obey_signals(shutdown.clone(), move || match common.load::<Config>() {
            Ok(config) => {
                reload(&config);
                tracing::info!("users and ingest rules read again");
            }
            Err(problems) => problems.iter().for_each(|problem| tracing::error!("nothing was changed: {problem}")),
        }));
        app.run(shutdown).await?;
        tracing::info!("stopped");
        Ok(())
    });
    // A question that still runs must not hold up the end.
    runtime.shutdown_background();
    served
}

fn export(config: &Config, arguments: &Export) -> anyhow::Result<()> {
    let now_us = Clock::system().now_us();
    let time = |name: &str, given: &Option<String>, otherwise: i64| match given {
        Some(text) => parse_time(text, now_us).map_err(|e| anyhow::anyhow!("--{name}: {e}")),
        None => Ok(otherwise),
    };
    let from_us = time("from", &arguments.from, i64::MIN / 4)?;
    let range = Range::within(from_us, time("to", &arguments.to, i64::MAX / 4)?);
    anyhow::ensure!(range.from_us < range.to_us, "--from is not before --to");
    let format = match arguments.format {
        ExportFormat::Parquet => Format::Parquet,
        ExportFormat::Csv => Format::Csv,
    };
    let store = existing_store(config)?;
    let mut files = 0;
    export::export(&store, range, format, &arguments.out, |path, rows| {
        files += 1;
        println!("{} {rows} readings", path.display());
    })?;
    if files == 0 {
        println!("no readings in that range");
    }
    Ok(())
}

fn existing_store(config: &Config) -> anyhow::Result<PathBuf> {
    let store = schema::file(&config.gateway.data_dir);
    anyhow::ensure!(store.exists(), "there is no store at {}: check gateway.data_dir", store.display());
    Ok(store)
}

fn verify(config: &Config, url: &str, token_file: Option<PathBuf>) -> anyhow::Result<()> {
    let store = existing_store(config)?;
    let file =
        token_file.or_else(|| Some(config.uplink.token_file.clone()).filter(|path| !path.as_os_str().is_empty()));
    let token = file.map(std::fs::read_to_string).transpose().context("the token file cannot be read")?;
    anyhow::ensure!(token.is_none() || !is_in_the_clear(url), "{url} would be told the token in the clear: use https");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let compared = runtime.block_on(verify::compare(&store, url, token.as_deref().map(str::trim)))?;
    verify::report(&compared)
}

fn backup(config: &Config, file: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(!file.exists(), "{} exists already: choose another file", file.display());
    schema::backup(&existing_store(config)?, file).with_context(|| format!("{} cannot be written", file.display()))?;
    println!("{} bytes in {}", file.metadata()?.len(), file.display());
    Ok(())
}

fn doctor(config: &Config, salvage: Option<&Path>) -> anyhow::Result<()> {
    let store = existing_store(config)?;
    let findings = match salvage {
        Some(directory) => doctor::salvage(&store, directory)?,
        None => doctor::examine(&store).with_context(|| format!("{} cannot be read at all", store.display()))?,
    };
    findings.facts.iter().for_each(|fact| println!("{fact}"));
    findings.problems.iter().for_each(|problem| println!("PROBLEM {problem}"));
    match (salvage, findings.problems.len()) {
        (Some(directory), _) => println!("saved into {0}: start with gateway.data_dir={0}", directory.display()),
        (None, 0) => println!("nothing is wrong"),
        (None, n) => anyhow::bail!(
            "{n} problems: stop the gateway, keep a copy of the data directory, and save what can be read with \
             `tidegate doctor --salvage NEW_DIRECTORY`"
        ),
    }
    Ok(())
}
