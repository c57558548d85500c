//! `tidegate-sim run`: the arguments and a seed become a fleet on its connections.
//!
//! Arrives: arguments. Leaves: one link per connection, each with its share of the devices.
//! Always holds: a device belongs to exactly one connection; the same seed makes the same fleet.
//! Deliberately absent: sending, and anything random that the seed does not decide except the clients'
//! names, which must not meet those of an earlier run.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::BadUse;
use crate::args::{COAP_SERVICE, OutcomeArgs, Protocol, TargetArgs, parse_probability};
use crate::clock;
use crate::device::{Device, mix};
use crate::fault::{Faulty, Odds, clock_error_us};
use crate::fleet::{Budget, Calendar, Fleet, Habits, Sensor};
use crate::message::{Composer, Form};
use crate::runner::{Length, Runner};
use crate::send::coap::CoapLink;
use crate::send::mqtt::MqttLink;
use crate::send::{Link, Source};

/// Event time between two rounds of a simulated past, where nothing else is said.
const STEP_DEFAULT: Duration = Duration::from_secs(10);

/// Simulates a fleet of climate nodes, meters, machines and doors. Without --seconds or --readings it
/// goes on until Ctrl-C. Exit code: 0 if every reading was acknowledged, 1 if not, 2 for bad use.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    target: TargetArgs,

    /// How many devices
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Fleet")]
    devices: u32,

    /// Readings per second of the whole fleet; 0 means as fast as acknowledgements allow
    #[arg(long, value_name = "R", default_value_t = 20.0, value_parser = parse_rate, help_heading = "Fleet")]
    rate: f64,

    /// Stop after this many seconds
    #[arg(long, value_name = "S", value_parser = parse_seconds, help_heading = "Fleet")]
    seconds: Option<Duration>,

    /// Stop after this many readings
    #[arg(long, value_name = "N", help_heading = "Fleet")]
    readings: Option<u64>,

    /// How many connections the devices share [default: one per device]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Fleet")]
    connections: Option<u32>,

    /// What a payload looks like; only stamped readings can be verified one by one
    #[arg(long, value_enum, default_value_t = Form::Json, help_heading = "Fleet")]
    payload: Form,

    /// Device ids are this followed by a number
    #[arg(long, value_name = "P", default_value = "sim-", value_parser = parse_prefix, help_heading = "Fleet")]
    device_prefix: String,

    /// Simulate event times from here on instead of the real clock: RFC 3339, an epoch number, or now-7d
    #[arg(long, value_name = "TIME", value_parser = |text: &str| clock::parse_time(text), help_heading = "Fleet")]
    start: Option<i64>,

    /// Event time between two readings of a simulated device [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = clock::parse_duration, requires = "start", help_heading = "Fleet")]
    step: Option<Duration>,

    /// Probability that a message is sent twice
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = parse_probability, help_heading = "Faults")]
    duplicate: f64,

    /// Probability that a message is held back and sent up to five seconds later
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = parse_probability, help_heading = "Faults")]
    disorder: f64,

    /// Each device's clock is wrong by a constant of up to plus or minus this
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = clock::parse_duration, help_heading = "Faults")]
    skew: Duration,

    /// Probability per second that an MQTT connection is cut without a farewell
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = parse_probability, help_heading = "Faults")]
    disconnect: f64,

    #[command(flatten)]
    outcome: OutcomeArgs,
}

/// Plays the fleet.
pub(crate) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    if args.payload == Form::Number && (args.start.is_some() || !args.skew.is_zero()) {
        return Err(BadUse::because("--payload number carries no time, so --start and --skew have no effect"));
    }
    if args.connections.is_some_and(|connections| connections > args.devices) {
        return Err(BadUse::because(
            "--connections is greater than --devices; a connection carries at least one device",
        ));
    }
    let runner = Runner::new(&args.outcome)?;
    let links = links(&args, &runner);
    runner.perform(links, Length { duration: args.seconds, readings: args.readings })
}

fn links(args: &RunArgs, runner: &Runner) -> Vec<Link> {
    let habits = habits(args, runner.seed);
    let (mqtt_devices, coap_devices) = by_protocol(args);
    let (mqtt_links, coap_links) = link_counts(args, mqtt_devices.len(), coap_devices.len());
    let mut next_place = 0..;
    let mut source = |devices: Vec<usize>, composer: Composer| -> Box<dyn Source> {
        let sensors = devices.into_iter().map(|index| sensor(args, runner.seed, index)).collect();
        let odds = Odds { duplicate: args.duplicate, disorder: args.disorder };
        let dice = mix(runner.seed ^ mix(next_place.next().expect("places are endless")));
        Box::new(Faulty::new(Fleet::new(sensors, habits.clone(), composer), odds, dice))
    };

    let (mqtt_target, coap_target) = (args.target.mqtt_target(args.disconnect), args.target.coap_target());
    let name: u32 = rand::random();
    let mut links = Vec::with_capacity(mqtt_links + coap_links);
    for (place, devices) in dealt(&mqtt_devices, mqtt_links).into_iter().enumerate() {
        links.push(Link::Mqtt(MqttLink {
            target: mqtt_target.clone(),
            client_id: format!("sim-{name:08x}-{place}"),
            source: source(devices, runner.composer(args.target.mqtt_service())),
        }));
    }
    for devices in dealt(&coap_devices, coap_links) {
        let source = source(devices, runner.composer(COAP_SERVICE));
        links.push(Link::Coap(CoapLink { target: coap_target.clone(), source }));
    }
    links
}

fn habits(args: &RunArgs, seed: u64) -> Habits {
    let devices = 0..args.devices as usize;
    let per_round: usize = devices.map(|index| Device::new(seed, index).readings_per_tick()).sum();
    Habits {
        calendar: match args.start {
            None => Calendar::Real,
            Some(start_us) => {
                Calendar::Simulated { start_us, step_us: args.step.unwrap_or(STEP_DEFAULT).as_micros() as i64 }
            }
        },
        period: (args.rate > 0.0).then(|| Duration::from_secs_f64(per_round as f64 / args.rate)),
        form: args.payload,
        budget: Budget::new(args.readings),
    }
}

fn sensor(args: &RunArgs, seed: u64, index: usize) -> Sensor {
    let device = Device::new(seed, index);
    let error_us = clock_error_us(device.trait_of("clock"), args.skew);
    Sensor::new(device, format!("{}{index:04}", args.device_prefix), error_us)
}

/// The device numbers that speak MQTT, and those that speak CoAP.
fn by_protocol(args: &RunArgs) -> (Vec<usize>, Vec<usize>) {
    let speaks_mqtt = |index: &usize| match args.target.protocol {
        Protocol::Mqtt => true,
        Protocol::Coap => false,
        Protocol::Mix => index % 5 != 4,
    };
    (0..args.devices as usize).partition(speaks_mqtt)
}

/// How many connections each protocol gets: in proportion, and at least one if it has devices.
fn link_counts(args: &RunArgs, mqtt_devices: usize, coap_devices: usize) -> (usize, usize) {
    let wanted = args.connections.unwrap_or(args.devices) as usize;
    let coap = (wanted * coap_devices / (mqtt_devices + coap_devices)).max(usize::from(coap_devices > 0));
    let mqtt = wanted.saturating_sub(coap).max(usize::from(mqtt_devices > 0));
    (mqtt.min(mqtt_devices), coap.min(coap_devices))
}

/// Deals the devices to hands in turn.
fn dealt(devices: &[usize], hands: usize) -> Vec<Vec<usize>> {
    (0..hands).map(|hand| devices.iter().copied().skip(hand).step_by(hands).collect()).collect()
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("a rate is a number of readings per second, or 0 for no limit".to_owned()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds is expected".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn parse_prefix(text: &str) -> Result<String, String> {
    let forbidden = |c: char| c.is_control() || "/+#*?[]".contains(c);
    match text.find(forbidden) {
        None if text.len() <= 200 => Ok(text.to_owned()),
        _ => Err("a device id has at most 200 bytes and none of / + # * ? [ ] or control characters".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parsed(line: &str) -> RunArgs {
        Line::try_parse_from(std::iter::once("run").chain(line.split_whitespace())).unwrap().run
    }

    fn shares(line: &str) -> (Vec<Vec<usize>>, Vec<Vec<usize>>) {
        let args = parsed(line);
        let (mqtt, coap) = by_protocol(&args);
        let (mqtt_links, coap_links) = link_counts(&args, mqtt.len(), coap.len());
        (dealt(&mqtt, mqtt_links), dealt(&coap, coap_links))
    }

    #[test]
    fn every_device_has_a_connection_of_its_own_by_default() {
        let (mqtt, coap) = shares("--devices 10 --protocol mix");
        assert_eq!((mqtt.len(), coap.len()), (8, 2));
        assert!(mqtt.iter().chain(&coap).all(|devices| devices.len() == 1));
    }

    #[test]
    fn fewer_connections_are_shared_evenly() {
        let (mqtt, coap) = shares("--devices 100 --connections 10 --protocol mix");
        assert_eq!((mqtt.len(), coap.len()), (8, 2));
        assert!(mqtt.iter().chain(&coap).all(|devices| devices.len() == 10));
        let (mqtt, coap) = shares("--devices 5 --connections 1 --protocol mix");
        assert_eq!((mqtt.len(), coap.len()), (1, 1), "each protocol needs a connection");
    }

    #[test]
    fn a_rate_becomes_the_time_between_two_rounds() {
        // Ten devices with eighteen readings between them (one is a door), nine per second.
        let habits = habits(&parsed("--devices 9 --rate 8.5"), 1);
        assert_eq!(habits.period, Some(Duration::from_secs(2)));
        assert_eq!(habits_period("--rate 0"), None);
    }

    fn habits_period(line: &str) -> Option<Duration> {
        habits(&parsed(line), 1).period
    }

    #[test]
    fn a_prefix_that_is_no_device_id_is_refused() {
        assert!(parse_prefix("halle 3, süd-").is_ok());
        for prefix in ["a/b", "a+", "#", "a\tb", &"x".repeat(201)] {
            assert!(parse_prefix(prefix).is_err(), "{prefix}");
        }
    }
}
