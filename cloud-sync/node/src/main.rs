//! Arguments, configuration, build, run, exit code.

use anyhow::Context;
use clap::{Parser, Subcommand};
use daemon::auth::verbs::UserVerb;
use daemon::config::address;
use daemon::lifecycle::{BAD_USE, Common, obey_signals, raise_file_limit};
use daemon::local::LocalToken;
use node::app::{self, App, AppError};
use node::backup;
use node::client::Client;
use node::config::Config;
use node::doctor;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Tidegate's cloud daemon: consistent-hashes device ids across storage shards.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// The HTTP address of a running daemon, for the verbs that talk to one; http.listen without it.
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// A file with a bearer token for it.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon (the default).
    Run,
    /// Check the configuration and say what is wrong with it.
    Check,
    /// List, add, drain, re-weight or remove shards of a running daemon.
    Shards {
        #[command(subcommand)]
        verb: ShardsVerb,
    },
    /// Move slots until shares are as the weights say, and show how far it has got.
    Rebalance {
        /// Only say what would move, and why.
        #[arg(long)]
        plan: bool,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// See what is moving, or stop it.
    Moves {
        #[command(subcommand)]
        verb: MovesVerb,
    },
    /// See who sends, take another store under a gateway's id, or forget a gateway.
    Gateways {
        #[command(subcommand)]
        verb: GatewaysVerb,
    },
    /// Say which slot and shard a device belongs to.
    Placement {
        /// The device id.
        device: String,
        /// The gateway's id; all gateways that have sent a device of that name without it.
        #[arg(long)]
        gateway: Option<String>,
    },
    /// Look at the map and at everything in the shards of a daemon that does not run, and say what is wrong.
    Doctor {
        /// Make a map that is older than its shards, or lost, anew from what the shards know.
        #[arg(long)]
        repair: bool,
        /// With --repair: no shard is missing, what nobody has any more stays where the map has it.
        #[arg(long, requires = "repair")]
        none_missing: bool,
    },
    /// Copy the map, all shards and the users into an empty directory, also while daemons run.
    Backup {
        /// The directory.
        directory: PathBuf,
    },
    /// Put a backup back where there is no map; gateways send what has come since.
    Restore {
        /// The directory that `backup` has made.
        directory: PathBuf,
        /// Where a shard is from now on, if elsewhere; repeats.
        #[arg(long = "place", value_name = "NAME=URL")]
        places: Vec<String>,
    },
    /// Manage who may come in; a gateway's user is called as its id.
    User {
        #[command(subcommand)]
        verb: UserVerb,
    },
}

#[derive(Debug, Subcommand)]
enum MovesVerb {
    /// What is on its way, and how far it has got.
    List,
    /// Stop moving: what is on its way stays where it was, also if the new owner is gone.
    Cancel,
}

#[derive(Debug, Subcommand)]
enum GatewaysVerb {
    /// Who sends, and who is silent.
    List,
    /// Take the next store that sends under a gateway's id, for example a fresh one after its card died.
    Accept {
        /// The gateway's id.
        gateway: String,
    },
    /// Wait for a gateway no longer; what it has sent stays.
    Forget {
        /// The gateway's id.
        gateway: String,
    },
}

#[derive(Debug, Subcommand)]
enum ShardsVerb {
    /// Who there is, with what share.
    List,
    /// Add a shard; nothing moves before `rebalance`.
    Add {
        /// Its name.
        name: String,
        /// sqlite:FILE, or postgres://USER:PASSWORD@HOST/DATABASE.
        place: String,
        /// Its share of the slots among those of all.
        #[arg(long, default_value_t = 1)]
        weight: u32,
    },
    /// Give a shard no share any more; nothing moves before `rebalance`.
    Drain {
        /// Its name.
        name: String,
    },
    /// Give a shard another share; nothing moves before `rebalance`.
    Weight {
        /// Its name.
        name: String,
        /// Its share of the slots among those of all.
        weight: u32,
    },
    /// Say where a shard is now: a new host, or a new password.
    Set {
        /// Its name.
        name: String,
        /// sqlite:FILE, or postgres://USER:PASSWORD@HOST/DATABASE; it must hold what the shard held.
        place: String,
    },
    /// Do without a shard that is lost for good: others get its slots, and what gateways still keep.
    GiveUp {
        /// Its name.
        name: String,
        /// What was only there is lost.
        #[arg(long)]
        yes: bool,
    },
    /// Forget a shard that is drained and empty.
    Remove {
        /// Its name.
        name: String,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.common.start_log();
    let config = match arguments.common.load::<Config>() {
        Ok(config) => config,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return ExitCode::from(BAD_USE);
        }
    };
    match act(arguments, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            let bad_use = matches!(error.downcast_ref(), Some(AppError::Exposed(_)));
            ExitCode::from(if bad_use { BAD_USE } else { 1 })
        }
    }
}

fn act(arguments: Arguments, config: Config) -> anyhow::Result<()> {
    // reqwest and rustls look for it here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = Runtime::new().context("the runtime could not start")?;
    match arguments.verb.unwrap_or(Verb::Run) {
        Verb::Run => {
            let served = runtime.block_on(run(config, arguments.common));
            runtime.shutdown_background();
            served
        }
        Verb::Check => app::check(&config).map_err(Into::into).map(|()| println!("the configuration is good")),
        Verb::Doctor { repair, none_missing } => runtime.block_on(examine(&config, repair, none_missing)),
        Verb::Backup { directory } => {
            runtime.block_on(backup::backup(&config, &directory, |said| println!("{said}")))?;
            println!("the cloud is in {}: keep it elsewhere", directory.display());
            Ok(())
        }
        Verb::Restore { directory, places } => {
            let place = |text: &String| {
                let (name, url) = text.split_once('=').context("--place: write NAME=URL")?;
                Ok((name.to_owned(), url.to_owned()))
            };
            let places = places.iter().map(place).collect::<anyhow::Result<_>>()?;
            runtime.block_on(backup::restore(&config, &directory, &places, |said| println!("{said}")))?;
            println!("restored: start the daemons; gateways send what has come since, as far as they keep it");
            Ok(())
        }
        Verb::User { verb } => verb.run(&config.users_file()),
        verb => {
            let own = arguments.url.is_none().then_some(&*config.cloud.data_dir);
            let url = match arguments.url {
                Some(url) => url,
                None => {
                    let listens = address(&config.http.listen).ok().flatten();
                    format!("http://{}", listens.context("http.listen is empty: give --url")?)
                }
            };
            let given = arguments.token_file.map(std::fs::read_to_string).transpose().context("--token-file")?;
            let token = given.or_else(|| LocalToken::read("tidegate-cloud", own, &url));
            let client = Client::new(&url, token.map(|token| token.trim().to_owned()))?;
            runtime.block_on(async {
                match verb {
                    Verb::Shards { verb: ShardsVerb::List } => client.list().await,
                    Verb::Shards { verb: ShardsVerb::Add { name, place, weight } } => {
                        client.change(json!({"name": name, "url": place, "weight": weight})).await
                    }
                    Verb::Shards { verb: ShardsVerb::Drain { name } } => {
                        client.change(json!({"name": name, "weight": 0})).await
                    }
                    Verb::Shards { verb: ShardsVerb::Weight { name, weight } } => {
                        client.change(json!({"name": name, "weight": weight})).await
                    }
                    Verb::Shards { verb: ShardsVerb::Remove { name } } => {
                        client.change(json!({"name": name, "remove": true})).await
                    }
                    Verb::Shards { verb: ShardsVerb::Set { name, place } } => {
                        client.change(json!({"name": name, "url": place, "set": true})).await
                    }
                    Verb::Shards { verb: ShardsVerb::GiveUp { name, yes } } => {
                        anyhow::ensure!(yes, "what only {name} holds is lost then: add --yes");
                        client.change(json!({"name": name, "give_up": true})).await
                    }
                    Verb::Moves { verb: MovesVerb::List } => client.moves().await,
                    Verb::Moves { verb: MovesVerb::Cancel } => client.cancel().await,
                    Verb::Gateways { verb: GatewaysVerb::List } => client.gateways().await,
                    Verb::Gateways { verb: GatewaysVerb::Accept { gateway } } => client.gateway(&gateway, false).await,
                    Verb::Gateways { verb: GatewaysVerb::Forget { gateway } } => client.gateway(&gateway, true).await,
                    Verb::Rebalance { plan: true, .. } => client.plan().await,
                    Verb::Rebalance { no_wait, .. } => client.rebalance(!no_wait).await,
                    Verb::Placement { device, gateway } => client.placement(&device, gateway.as_deref()).await,
                    Verb::Run
                    | Verb::Check
                    | Verb::Doctor { .. }
                    | Verb::Backup { .. }
                    | Verb::Restore { .. }
                    | Verb::User { .. } => Ok(()),
                }
            })
        }
    }
}

async fn examine(config: &Config, repair: bool, none_missing: bool) -> anyhow::Result<()> {
    if repair {
        println!("{}", doctor::repair(config, none_missing).await?);
    }
    let findings = doctor::examine(config).await?;
    findings.facts.iter().for_each(|fact| println!("{fact}"));
    findings.problems.iter().for_each(|problem| println!("PROBLEM {problem}"));
    anyhow::ensure!(findings.problems.is_empty(), "{} problems", findings.problems.len());
    println!("nothing is wrong");
    Ok(())
}

async fn run(config: Config, common: Common) -> anyhow::Result<()> {
    raise_file_limit();
    let app = App::build(config).await?;
    for (name, address) in app.addresses() {
        tracing::info!("{name} listens on {address}");
    }
    let shutdown = CancellationToken::new();
    let reload = app.reloader();
    tokio::spawn(obey_signals(shutdown.clone(), move || match common.load::<Config>() {
        Ok(config) => {
            reload(&config);
            tracing::info!("users and certificates read again");
        }
        Err(problems) => problems.iter().for_each(|problem| tracing::error!("nothing was changed: {problem}")),
    }));
    app.run(shutdown).await?;
    tracing::info!("stopped");
    Ok(())
}
