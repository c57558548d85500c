//! `cargo xtask soak`: programs that look for faults for as long as they are given.

use crate::process::{cargo, root};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Cuts the power, and kills.
pub(crate) fn power() -> Result<()> {
    let mut command = xtask::cargo::cargo();
    command.args(["test", "--workspace", "--test", "powercut", "--test", "crash", "--", "--nocapture"]);
    let status = command.env("TIDEGATE_TEST_CUTS", "10000").status()?;
    ensure!(status.success(), "the soak failed: see the seed above");
    Ok(())
}

/// How often, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Walks {
    /// Random walks of a cloud, each with a seed of its own.
    #[arg(long, default_value_t = 20)]
    walks: u32,
    /// What happens to it on each: kills, moves, parts put back, clocks that leap.
    #[arg(long, default_value_t = 150)]
    steps: u32,
    /// The seed of the first walk; the others count up.
    #[arg(long)]
    seed: Option<u64>,
}

/// Everything that is known to have gone wrong in a cloud, each by itself, and then in random order; prints a table. What
/// is lost, doubled or coarsened fails the test that looks for it.
pub(crate) fn cloud(options: &Walks) -> Result<()> {
    let faults = ["--test", "backwards", "--test", "moves", "--test", "daemons", "--test", "cloud"];
    let mut failed = 0;
    println!("{:<100} outcome", "what happens");
    failed += outcomes(&[&["test", "--workspace", "--no-fail-fast"], &faults[..]].concat(), &[])?;
    let first = options.seed.unwrap_or_else(|| u64::from(std::process::id()) << 20);
    for seed in (first..).take(options.walks as usize) {
        println!("TIDEGATE_TEST_SEED={seed}, {} steps", options.steps);
        let environment =
            [("TIDEGATE_TEST_SEED", seed.to_string()), ("TIDEGATE_TEST_STEPS", options.steps.to_string())];
        failed += outcomes(&["test", "--workspace", "--test", "walk"], &environment)?;
    }
    ensure!(failed == 0, "{failed} failed");
    Ok(())
}

/// Runs tests and prints a line for each; how many failed, with all that those said behind it.
fn outcomes(arguments: &[&str], environment: &[(&str, String)]) -> Result<usize> {
    let mut command = xtask::cargo::cargo();
    command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
    let output = command.stderr(Stdio::inherit()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = |line: &str| -> Option<(String, bool)> {
        let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
        Some((name.replace('_', " "), outcome == "ok"))
    };
    let lines: Vec<(String, bool)> = said.lines().filter_map(line).collect();
    lines.iter().for_each(|(name, ok)| println!("{name:<100} {}", if *ok { "ok" } else { "FAILED" }));
    if !output.status.success() {
        println!("{said}");
    }
    ensure!(!lines.is_empty(), "the tests did not run");
    Ok(lines.iter().filter(|(_, ok)| !ok).count())
}

/// The largest input, also the largest that a device may send in one message.
const INPUT_BYTES_MAX: usize = 2 << 20;
/// What a target may take, the fuzzer's own corpus and counters included.
const MEMORY_MB: usize = 128;
/// How long one input may take, a hundred times as long as it should.
const PATIENCE_S: usize = 10;

/// How long, and what.
#[derive(Debug, clap::Args)]
pub(crate) struct Fuzzing {
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this target; may be given several times.
    #[arg(long = "target")]
    targets: Vec<String>,
    /// How many targets run at once.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

/// What a target came to.
#[derive(Debug, Default)]
struct Outcome {
    executions: u64,
    per_second: u64,
    corpus: u64,
    peak_mb: u64,
    findings: Vec<String>,
}

/// Runs every target and prints a table; an error if anything was found.
pub(crate) fn fuzz(options: &Fuzzing) -> Result<()> {
    let targets = chosen(&options.targets)?;
    let triple = host()?;
    let mut build = vec!["fuzz", "build", "--sanitizer", "none", "--target", &triple, "--target-dir", "fuzz/target"];
    build.extend(targets.first().filter(|_| targets.len() == 1).map(String::as_str));
    cargo(&build)?;
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    println!("{:<12} {:>12} {:>8} {:>7} {:>8}  findings", "target", "executions", "a second", "corpus", "peak MB");
    std::thread::scope(|scope| {
        let work = || {
            while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                let outcome = run(target, &triple, options.seconds);
                if let Ok(outcome) = &outcome {
                    println!("{}", line(target, outcome));
                }
                outcomes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(outcome);
            }
        };
        (0..options.jobs.max(1)).for_each(|_| drop(scope.spawn(work)));
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let outcomes = outcomes.into_iter().collect::<Result<Vec<_>>>()?;
    let findings: usize = outcomes.iter().map(|outcome| outcome.findings.len()).sum();
    ensure!(findings == 0, "{findings} findings: docs/fuzzing.md says what to do with them");
    Ok(())
}

fn line(target: &str, outcome: &Outcome) -> String {
    let Outcome { executions, per_second, corpus, peak_mb, findings } = outcome;
    let findings = if findings.is_empty() { "none".to_owned() } else { findings.join(", ") };
    format!("{target:<12} {executions:>12} {per_second:>8} {corpus:>7} {peak_mb:>8}  {findings}")
}

/// All targets, or those that are asked for.
fn chosen(asked: &[String]) -> Result<Vec<String>> {
    let output = Command::new("cargo").args(["fuzz", "list"]).current_dir(root()).output()?;
    ensure!(
        output.status.success(),
        "cargo-fuzz is missing, or a C++ compiler: `cargo install cargo-fuzz` brings the one"
    );
    let all: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    if let Some(unknown) = asked.iter().find(|name| !all.contains(name)) {
        bail!("there is no target {unknown}: {}", all.join(", "));
    }
    Ok(if asked.is_empty() { all } else { asked.to_vec() })
}

/// What this machine is.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").current_dir(root()).output().context("rustc does not start")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say what this machine is")?.to_owned())
}

/// Runs one. What it learns stays below `target/`, beside the inputs of the tree. Without cargo in between: a process
/// inherits the peak of memory of the one that it replaces.
fn run(target: &str, triple: &str, seconds: u64) -> Result<Outcome> {
    let artifacts = root().join("fuzz/artifacts").join(target);
    fs::create_dir_all(&artifacts).with_context(|| format!("{} cannot be made", artifacts.display()))?;
    let (learned, kept) = (root().join("target/fuzz").join(target), root().join("fuzz/corpus").join(target));
    fs::create_dir_all(&learned).with_context(|| format!("{} cannot be made", learned.display()))?;
    let log = learned.with_extension("log");
    let mut command = Command::new(root().join("fuzz/target").join(triple).join("release").join(target));
    command.args([&learned, &kept]).arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={INPUT_BYTES_MAX}"),
        format!("-rss_limit_mb={MEMORY_MB}"),
        format!("-timeout={PATIENCE_S}"),
        "-print_final_stats=1".into(),
    ]);
    let dictionary = dictionary(target);
    command.args(dictionary.map(|path| format!("-dict={}", path.display())));
    let output = File::create(&log)?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).current_dir(root());
    let status = command.status().with_context(|| format!("{target} does not start"))?;
    let mut outcome = read(&fs::read_to_string(&log)?);
    if !status.success() && outcome.findings.is_empty() {
        outcome.findings.push(format!("{status}, see {}", log.display()));
    }
    Ok(outcome)
}

/// Words of a target's language, if there is a list of them.
fn dictionary(target: &str) -> Option<PathBuf> {
    let name = match target {
        "payload" | "publication" | "posted" => "documents",
        other => other,
    };
    Some(root().join("fuzz/dictionaries").join(name).with_extension("dict")).filter(|path| path.exists())
}

/// Reads what libFuzzer has printed.
fn read(log: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in log.lines() {
        let number = |name: &str| line.strip_prefix(name).and_then(|rest| rest.trim().parse().ok());
        if let Some(n) = number("stat::number_of_executed_units:") {
            outcome.executions = n;
        } else if let Some(n) = number("stat::average_exec_per_sec:") {
            outcome.per_second = n;
        } else if let Some(n) = number("stat::peak_rss_mb:") {
            outcome.peak_mb = n;
        } else if let Some((_, rest)) = line.split_once(" corp: ") {
            outcome.corpus = rest.split('/').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            let name = Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
            // Slow inputs are written down, too, and are none as long as they are within the bound.
            outcome.findings.extend(name.filter(|name| !name.starts_with("slow-unit-")));
        }
    }
    outcome
}
