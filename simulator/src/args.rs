//! Arguments that `run` and `replay` share.
//!
//! Arrives: the command line. Leaves: where to send, how, and where to write the outcome.
//! Always holds: a value that reaches the rest of the program is in range. Deliberately absent: what
//! is sent; that is each verb's own.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use crate::report::ReportForm;
use crate::send::wire::Wire;
use crate::send::{coap, mqtt};

/// Which protocols the devices speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    Mqtt,
    Coap,
    /// About one device in five speaks CoAP, the others MQTT
    Mix,
}

/// Where to send and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Gateway")]
pub(crate) struct TargetArgs {
    /// Address of the MQTT listener
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:1883", value_parser = parse_address)]
    pub(crate) mqtt: String,

    /// Address of the CoAP listener
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5683", value_parser = parse_address)]
    pub(crate) coap: String,

    /// Protocol of the devices
    #[arg(long, value_enum, default_value_t = Protocol::Mqtt)]
    pub(crate) protocol: Protocol,

    /// MQTT user name
    #[arg(long, value_name = "NAME", requires = "password")]
    pub(crate) username: Option<String>,

    /// MQTT password
    #[arg(long, requires = "username")]
    pub(crate) password: Option<String>,

    /// MQTT protocol version: 4 is 3.1.1, 5 is 5.0
    #[arg(long, value_name = "4|5", default_value_t = 4, value_parser = clap::value_parser!(u8).range(4..=5))]
    pub(crate) mqtt_version: u8,

    /// MQTT quality of service (CoAP is always confirmable)
    #[arg(long, value_name = "0|1|2", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub(crate) qos: u8,

    /// Unacknowledged messages that a connection may have on their way
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=30_000))]
    pub(crate) inflight: u16,
}

impl TargetArgs {
    pub(crate) fn mqtt_target(&self, cut_per_s: f64) -> Arc<mqtt::Target> {
        Arc::new(mqtt::Target {
            address: self.mqtt.clone(),
            login: self.username.clone().zip(self.password.clone()),
            wire: if self.mqtt_version == 5 { Wire::V5 } else { Wire::V4 },
            qos: self.qos,
            inflight_max: self.inflight,
            cut_per_s,
        })
    }

    pub(crate) fn coap_target(&self) -> Arc<coap::Target> {
        Arc::new(coap::Target { address: self.coap.clone(), inflight_max: self.inflight })
    }

    /// The ledger's name for the service that MQTT messages travel with.
    pub(crate) fn mqtt_service(&self) -> &'static str {
        ["mqtt/0", "mqtt/1", "mqtt/2"][usize::from(self.qos)]
    }
}

/// The ledger's name for the service that CoAP messages travel with.
pub(crate) const COAP_SERVICE: &str = "coap/con";

/// Where the outcome goes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Outcome")]
pub(crate) struct OutcomeArgs {
    /// Write every reading sent and acknowledged to this new file, for `tidegate-sim verify`
    #[arg(long, value_name = "FILE")]
    pub(crate) ledger: Option<PathBuf>,

    /// Everything random follows from this number [default: random, printed]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Form of the report on standard output
    #[arg(long, value_enum, default_value_t = ReportForm::Text)]
    pub(crate) report: ReportForm,

    /// Show no progress bar
    #[arg(long)]
    pub(crate) quiet: bool,
}

impl OutcomeArgs {
    pub(crate) fn seed(&self) -> u64 {
        // Six digits are easy to copy and plenty of different fleets.
        self.seed.unwrap_or_else(|| rand::random_range(100_000..1_000_000))
    }
}

/// A probability, 0 to 1.
pub(crate) fn parse_probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(probability) if (0.0..=1.0).contains(&probability) => Ok(probability),
        _ => Err("a probability is a number from 0 to 1".to_owned()),
    }
}

fn parse_address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err("an address is written HOST:PORT, for example 127.0.0.1:1883".to_owned()),
    }
}
