//! `tidegate-sim replay`: recorded data travels as if its sensors were live.
//!
//! Arrives: a CSV file ([`csv`]) and arguments. Leaves: one link whose source is the recording.
//! Always holds: the whole file is understood before the first reading is sent; every value keeps the
//! text form it has in the file. Deliberately absent: more than one connection, so that the readings
//! arrive in the order in which they were recorded (or shuffled).

mod csv;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use tokio::time::Instant;

use crate::BadUse;
use crate::args::{COAP_SERVICE, OutcomeArgs, Protocol, TargetArgs, parse_probability};
use crate::fault::{Faulty, Odds};
use crate::message::{Composer, Stamp};
use crate::runner::{Length, Runner};
use crate::send::coap::CoapLink;
use crate::send::mqtt::MqttLink;
use crate::send::{Link, Next, Source};
use csv::{Columns, Recording};

/// Sends a recorded CSV file as JSON {"value", "time"} on devices/{device}/{metric}. The header is
/// `timestamp,value`, or `device,metric,timestamp,value`, in any order and among other columns.
/// Exit code: 0 if every reading was acknowledged, 1 if not, 2 for bad use or a bad file.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The recording
    #[arg(value_name = "FILE.csv")]
    file: PathBuf,

    /// Device of every reading; not needed if the file has a "device" column
    #[arg(long, value_name = "D", help_heading = "Recording")]
    device: Option<String>,

    /// Metric of every reading; not needed if the file has a "metric" column
    #[arg(long, value_name = "M", help_heading = "Recording")]
    metric: Option<String>,

    /// Column of the time: YYYY-MM-DD HH:MM:SS in UTC, RFC 3339, or an epoch number
    #[arg(long, value_name = "NAME", default_value = "timestamp", help_heading = "Recording")]
    time_column: String,

    /// Column of the value: a number, or true or false
    #[arg(long, value_name = "NAME", default_value = "value", help_heading = "Recording")]
    value_column: String,

    /// Play at this many times the recorded speed [default: as fast as acknowledgements allow]
    #[arg(long, value_name = "N", value_parser = parse_speed, conflicts_with = "shuffle", help_heading = "Recording")]
    speed: Option<f64>,

    /// Send the readings in random order
    #[arg(long, help_heading = "Recording")]
    shuffle: bool,

    /// Play the recording this many times, with the same times and values
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Recording")]
    repeat: u32,

    /// Probability that a message is sent twice
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = parse_probability, help_heading = "Recording")]
    duplicate: f64,

    #[command(flatten)]
    target: TargetArgs,

    #[command(flatten)]
    outcome: OutcomeArgs,
}

/// Plays the recording.
pub(crate) fn run(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    if args.target.protocol == Protocol::Mix {
        return Err(BadUse::because("--protocol mix needs a fleet; a recording has one connection: mqtt or coap"));
    }
    let columns = Columns {
        time: &args.time_column,
        value: &args.value_column,
        device: args.device.as_deref(),
        metric: args.metric.as_deref(),
    };
    let recording = csv::load(&args.file, &columns).map_err(BadUse::because)?;
    let runner = Runner::new(&args.outcome)?;
    let reading_count = recording.rows.len() as u64 * u64::from(args.repeat);
    let link = link(&args, &runner, recording);
    runner.perform(vec![link], Length { duration: None, readings: Some(reading_count) })
}

fn link(args: &ReplayArgs, runner: &Runner, mut recording: Recording) -> Link {
    if args.shuffle {
        recording.rows.shuffle(&mut SmallRng::seed_from_u64(runner.seed));
    }
    let is_mqtt = args.target.protocol == Protocol::Mqtt;
    let service = if is_mqtt { args.target.mqtt_service() } else { COAP_SERVICE };
    let player = Player::new(recording, runner.composer(service), args.repeat, args.speed);
    let odds = Odds { duplicate: args.duplicate, disorder: 0.0 };
    let source: Box<dyn Source> = Box::new(Faulty::new(player, odds, runner.seed));
    if is_mqtt {
        let client_id = format!("sim-{:08x}-0", rand::random::<u32>());
        Link::Mqtt(MqttLink { target: args.target.mqtt_target(0.0), client_id, source })
    } else {
        Link::Coap(CoapLink { target: args.target.coap_target(), source })
    }
}

/// A recording as a source of messages.
struct Player {
    recording: Recording,
    composer: Composer,
    speed: Option<f64>,
    first_us: i64,
    /// From the first to the last reading; one repetition starts where the one before has ended.
    span: Duration,
    passes_left: u32,
    passes_done: u32,
    place: usize,
    started: Option<Instant>,
}

impl Player {
    fn new(recording: Recording, composer: Composer, repeat: u32, speed: Option<f64>) -> Self {
        let times_us = || recording.rows.iter().map(|row| row.time_us);
        let (first_us, last_us) = (times_us().min().unwrap_or(0), times_us().max().unwrap_or(0));
        let passes_left = if recording.rows.is_empty() { 0 } else { repeat };
        Self {
            recording,
            composer,
            speed,
            first_us,
            span: micros(last_us - first_us),
            passes_left,
            passes_done: 0,
            place: 0,
            started: None,
        }
    }

    fn due(&self, started: Instant) -> Option<Instant> {
        let since_first = micros(self.recording.rows[self.place].time_us - self.first_us);
        Some(started + (self.span * self.passes_done + since_first).div_f64(self.speed?))
    }
}

impl Source for Player {
    fn next(&mut self, now: Instant) -> Next {
        let started = *self.started.get_or_insert(now);
        if self.passes_left == 0 {
            return Next::Over;
        }
        if let Some(due) = self.due(started).filter(|due| *due > now) {
            return Next::NotBefore(due);
        }
        let row = &self.recording.rows[self.place];
        let message = self.composer.stamped(&row.device, &row.metric, &row.value, row.time_us, Stamp::Rfc3339);
        self.place += 1;
        if self.place == self.recording.rows.len() {
            self.place = 0;
            self.passes_left -= 1;
            self.passes_done += 1;
        }
        Next::Message(message)
    }

    fn finish(&mut self) {
        self.passes_left = 0;
    }
}

/// One recorded reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) device: Arc<str>,
    pub(crate) metric: Arc<str>,
    pub(crate) time_us: i64,
    /// A JSON number, true or false.
    pub(crate) value: Box<str>,
}

fn micros(us: i64) -> Duration {
    Duration::from_micros(us.max(0).unsigned_abs())
}

fn parse_speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed > 0.0 => Ok(speed),
        _ => Err("a speed is a number above 0, for example 60".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn player(repeat: u32, speed: Option<f64>) -> Player {
        let row = |second: i64| Row {
            device: "d".into(),
            metric: "m".into(),
            time_us: second * 1_000_000,
            value: second.to_string().into(),
        };
        let recording = Recording { rows: [0, 10, 30].map(row).to_vec() };
        let composer = Composer::new(Arc::new(AtomicU64::new(1)), "mqtt/1", true);
        Player::new(recording, composer, repeat, speed)
    }

    /// When each message left, in milliseconds, if every message is taken at once.
    fn played(mut player: Player) -> Vec<u128> {
        let started = Instant::now();
        let (mut now, mut left_ms) = (started, Vec::new());
        loop {
            match player.next(now) {
                Next::Message(_) => left_ms.push((now - started).as_millis()),
                Next::NotBefore(wake) => now = wake,
                Next::Over => return left_ms,
            }
        }
    }

    #[test]
    fn a_recording_plays_at_the_asked_speed() {
        assert_eq!(played(player(1, Some(10.0))), [0, 1_000, 3_000]);
        assert_eq!(played(player(1, None)), [0, 0, 0]);
    }

    #[test]
    fn a_repetition_follows_where_the_recording_ended() {
        assert_eq!(played(player(2, Some(10.0))), [0, 1_000, 3_000, 3_000, 4_000, 6_000]);
    }

    #[test]
    fn a_finished_player_stops() {
        let mut player = player(9, None);
        player.finish();
        assert!(matches!(player.next(Instant::now()), Next::Over));
    }
}
