//! The tree itself: the map is true, every module has a header, and what others wrote may be here.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::{output, root};

fn tracked(suffix: &str) -> Vec<PathBuf> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    output(&mut git).lines().filter(|path| path.ends_with(suffix)).map(PathBuf::from).collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_default()
}

#[test]
fn every_module_opens_with_its_header() {
    for path in tracked(".rs") {
        assert!(read(&path).starts_with("//!"), "{} has no header", path.display());
    }
}

#[test]
fn every_path_that_the_documents_name_exists() {
    let mut named = 0;
    for document in ["ARCHITECTURE.md", "README.md"] {
        for text in read(Path::new(document)).split('`').skip(1).step_by(2) {
            let is_path = text.contains('/')
                && !text.contains([' ', '{', '=', ':', '$', '*', '<', '+'])
                && !text.starts_with(['/', '.']);
            let looks = text.ends_with('/') || [".rs", ".md", ".toml"].iter().any(|suffix| text.ends_with(suffix));
            if is_path && looks {
                named += 1;
                assert!(root().join(text).exists(), "{document} names {text}, which does not exist");
            }
        }
    }
    assert!(named > 20, "only {named} paths found: the documents have changed their form");
}

#[test]
fn only_the_clock_asks_what_time_it_is() {
    for path in tracked(".rs").iter().filter(|path| path.starts_with("gateway/src")) {
        let allowed = path.ends_with("clock.rs");
        assert!(allowed || !read(path).contains("SystemTime::now"), "{} asks for the time", path.display());
    }
}

#[test]
fn the_simulator_stays_an_independent_witness() {
    let manifest = read(Path::new("simulator/Cargo.toml"));
    for ours in ["model", "gateway", "cloud-sync"] {
        assert!(!manifest.lines().any(|line| line.starts_with(ours)), "the simulator depends on {ours}");
    }
}

/// What `cargo deny check licenses sources` looks at, without a network and without cargo-deny.
#[test]
fn what_others_wrote_has_a_licence_and_a_source_that_are_allowed() {
    let deny: toml::Table = read(Path::new("deny.toml")).parse().unwrap();
    let allowed: Vec<spdx::Licensee> = deny["licenses"]["allow"].as_array().unwrap().iter().map(licensee).collect();
    let host = output(Command::new("rustc").arg("-vV"));
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let mut metadata = xtask::cargo::cargo();
    metadata.args(["metadata", "--locked", "--format-version", "1", "--filter-platform", host]);
    let metadata: Value = serde_json::from_str(&output(&mut metadata)).unwrap();
    let resolved: Vec<&str> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap()).collect();
    let packages = metadata["packages"].as_array().unwrap();
    let others = packages.iter().filter(|package| !package["source"].is_null());
    let mut looked_at = 0;
    for package in others.filter(|package| resolved.contains(&package["id"].as_str().unwrap())) {
        let (name, source) = (package["name"].as_str().unwrap(), package["source"].as_str().unwrap());
        assert_eq!(source, "registry+https://github.com/rust-lang/crates.io-index", "{name}");
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} tells no licence"));
        // Some separate with a slash, as was usual once.
        let licence = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX).unwrap();
        let is_allowed = licence.evaluate(|wanted| allowed.iter().any(|licensee| licensee.satisfies(wanted)));
        assert!(is_allowed, "{name}: {licence} is not in deny.toml");
        looked_at += 1;
    }
    assert!(looked_at > 300, "only {looked_at} packages found");
}

fn licensee(text: &toml::Value) -> spdx::Licensee {
    spdx::Licensee::parse(text.as_str().unwrap()).unwrap()
}

/// A feature that only tests ask for makes cargo build a crate, and all that stands on it, a second time.
#[test]
fn what_only_tests_need_builds_nothing_twice() {
    let built = |edges: &str| -> BTreeSet<(String, String)> {
        let mut tree = xtask::cargo::cargo();
        tree.args(["tree", "--locked", "--workspace", "--prefix", "none", "--format", "{p}|{f}", "--edges", edges]);
        let line =
            |line: &str| line.trim_end_matches(" (*)").split_once('|').map(|(p, f)| (p.to_owned(), f.to_owned()));
        output(&mut tree).lines().filter_map(line).collect()
    };
    let (without, with) = (built("normal,build"), built("normal,build,dev"));
    assert!(without.len() > 300, "only {} packages found", without.len());
    for (package, features) in with.difference(&without) {
        assert!(
            !without.iter().any(|(other, _)| other == package),
            "{package} is built again for the tests, with {features}: ask for that in Cargo.toml, too"
        );
    }
}
