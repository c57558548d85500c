//! The tree itself: the map is true, every module has a header.

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
