//! Arguments, configuration, build, run, exit code.

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use gateway::app::{App, AppError};
use gateway::clock::Clock;
use gateway::config::{self, Config};
use gateway::doctor;
use gateway::export::{self, Format};
use gateway::journal::schema;
use gateway::listen::auth::Users;
use gateway::query::{Range, parse_time};
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Exit code for a bad command line or configuration.
const BAD_USE: u8 = 2;

/// Edge IoT gateway: sensors in over MQTT, CoAP and HTTP, aggregates out over HTTP.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Args)]
struct Common {
    /// The configuration; without it ./tidegate.toml if there is one, else the defaults.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, for example mqtt.listen=127.0.0.1:2883; repeats.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The form of the log on standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
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

#[derive(Debug, Subcommand)]
enum UserVerb {
    /// Add a user, or change a password; it is read from the terminal or from standard input.
    Add {
        /// The user's name.
        name: String,
        /// Make a bearer token instead of a password and print it, once.
        #[arg(long)]
        token: bool,
    },
    /// Remove a user.
    Remove {
        /// The user's name.
        name: String,
    },
    /// List the users.
    List,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.common.log_format);
    bound_polars_threads();
    let config = match load(&arguments.common) {
        Ok(config) => config,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return ExitCode::from(BAD_USE);
        }
    };
    let done = match arguments.verb.unwrap_or(Verb::Run) {
        Verb::Run => run(config, arguments.common),
        Verb::Check => {
            println!("the configuration is good");
            Ok(())
        }
        Verb::Export(arguments) => export(&config, &arguments),
        Verb::Backup { file } => backup(&config, &file),
        Verb::Doctor { salvage } => doctor(&config, salvage.as_deref()),
        Verb::User { verb } => user(&config, verb),
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

fn load(common: &Common) -> Result<Config, Vec<config::Problem>> {
    // TIDEGATE_TEST_... are for the tests' own knobs, which are no configuration.
    let environment = std::env::vars().filter(|(name, _)| !name.starts_with("TIDEGATE_TEST_"));
    config::load(common.config.as_deref(), environment, &common.sets)
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => log.json().init(),
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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime could not start")?;
    let served = runtime.block_on(async {
        let app = App::build(config, Clock::System).await?;
        for (name, address) in app.addresses() {
            tracing::info!("{name} listens on {address}");
        }
        let shutdown = CancellationToken::new();
        let reload = app.reloader();
        tokio::spawn(obey_signals(shutdown.clone(), move || match load(&common) {
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

/// SIGTERM and SIGINT drain, the second one exits at once, SIGHUP reads again.
async fn obey_signals(shutdown: CancellationToken, reload: impl Fn()) {
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

fn export(config: &Config, arguments: &Export) -> anyhow::Result<()> {
    let now_us = Clock::System.now_us();
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

fn user(config: &Config, verb: UserVerb) -> anyhow::Result<()> {
    let path = config.users_file();
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    }
    let mut users = Users::read(&path)?;
    match verb {
        UserVerb::List => {
            users.users.keys().for_each(|name| println!("{name}"));
            return Ok(());
        }
        UserVerb::Remove { name } => {
            users.users.remove(&name).with_context(|| format!("there is no user {name:?}"))?;
            println!("removed {name}");
        }
        UserVerb::Add { name, token: true } => println!("{}", users.new_token(&name)?),
        UserVerb::Add { name, token: false } => {
            let password = read_password()?;
            anyhow::ensure!(!password.is_empty(), "the password is empty");
            users.set_password(&name, password.as_bytes())?;
            println!("added {name}");
        }
    }
    users.write(&path)?;
    Ok(())
}

fn read_password() -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let first = rpassword::prompt_password("Password: ")?;
        anyhow::ensure!(first == rpassword::prompt_password("Again: ")?, "the two are not the same");
        return Ok(first);
    }
    let mut line = String::new();
    stdin.lock().read_line(&mut line).context("no password on standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
