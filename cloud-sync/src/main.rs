//! `tidegate-cloud`: for now, the verb that needs no daemon.

use anyhow::Result;
use clap::{Parser, Subcommand};
use cloud_sync::placement::Table;
use model::identity::{check_name, slot};

/// Tidegate's cloud daemon: consistent-hashes device ids across storage shards.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say which slot and which of a number of equal shards a device belongs to.
    Placement {
        /// The device id.
        device: String,
        /// How many shards.
        #[arg(long, default_value_t = 2)]
        shards: u32,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Placement { device, shards } => {
            check_name(&device)?;
            let table = Table::new(&(0..shards).map(|n| (format!("shard-{n:03}"), 1)).collect())?;
            let slot = slot(&device);
            println!("{device}: slot {slot}, {}", table.slot(slot).owner);
            Ok(())
        }
    }
}
