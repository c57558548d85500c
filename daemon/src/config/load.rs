//! From layers to one configuration.
//!
//! `--set` beats the environment, which beats the file, which beats the defaults. Every key is
//! tried alone against the defaults, so that one run names every problem.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Something wrong with the configuration: where, what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A file and line, an environment variable, or `--set`.
    pub place: String,
    /// The dotted key; empty for a file as a whole.
    pub key: String,
    /// What is wrong and what to do.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.place, self.what),
            key => write!(f, "{}: {key}: {}", self.place, self.what),
        }
    }
}

/// One key that somebody set.
struct Setting {
    place: String,
    path: Vec<String>,
    value: Value,
}

const ENVIRONMENT: &str = "TIDEGATE_";

/// The options of a daemon; its defaults are those of the file that is shipped with it.
pub trait Options: Default + Serialize + DeserializeOwned {
    /// Read from the working directory if no other file is named.
    const DEFAULT_FILE: &'static str;

    /// Other names of keys, each with the one that it stands for.
    const ALIASES: &'static [(&'static str, &'static str)] = &[];

    /// What is wrong with values that are well formed: keys and remedies.
    fn validate(&self) -> Vec<(String, String)>;
}

/// Loads `file` (or the default file if there is one), the environment and `--set` pairs.
pub fn load<C: Options>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    sets: &[String],
) -> Result<C, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut settings = Vec::new();
    let default_file = PathBuf::from(C::DEFAULT_FILE);
    match file {
        Some(file) => from_file(file, &mut settings, &mut problems),
        None if default_file.exists() => from_file(&default_file, &mut settings, &mut problems),
        None => {}
    }
    let mut environment: Vec<_> = environment.into_iter().filter(|(name, _)| name.starts_with(ENVIRONMENT)).collect();
    environment.sort();
    for (name, text) in environment {
        let key = name[ENVIRONMENT.len()..].to_lowercase().replace("__", ".");
        settings.push(from_text::<C>(format!("environment variable {name}"), &key, &text));
    }
    for set in sets {
        match set.split_once('=') {
            Some((key, text)) => settings.push(from_text::<C>("--set".into(), key.trim(), text)),
            None => problems.push(Problem {
                place: "--set".into(),
                key: set.clone(),
                what: "write KEY=VALUE, for example --set mqtt.listen=127.0.0.1:2883".into(),
            }),
        }
    }
    merge(settings, problems)
}

fn merge<C: Options>(mut settings: Vec<Setting>, mut problems: Vec<Problem>) -> Result<C, Vec<Problem>> {
    for setting in &mut settings {
        let given = setting.path.join(".");
        if let Some((_, key)) = C::ALIASES.iter().find(|(alias, _)| *alias == given) {
            setting.path = key.split('.').map(str::to_owned).collect();
        }
    }
    let defaults = Table::try_from(C::default()).expect("the defaults are TOML");
    let mut merged = defaults.clone();
    for setting in &settings {
        let problem = |what| Problem { place: setting.place.clone(), key: setting.path.join("."), what };
        if let Some(what) = unknown(&defaults, &setting.path) {
            problems.push(problem(what));
            continue;
        }
        let mut alone = defaults.clone();
        put(&mut alone, &setting.path, setting.value.clone());
        match C::deserialize(alone) {
            Ok(_) => put(&mut merged, &setting.path, setting.value.clone()),
            Err(e) => problems.push(problem(e.message().trim().replace('\n', " "))),
        }
    }
    let config = C::deserialize(merged).map_err(|e| {
        vec![Problem { place: "configuration".into(), key: String::new(), what: e.message().to_owned() }]
    })?;
    for (key, what) in config.validate() {
        let from = settings.iter().rev().find(|s| key.starts_with(&s.path.join(".")));
        problems.push(Problem { place: from.map_or_else(|| "defaults".into(), |s| s.place.clone()), key, what });
    }
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

fn put(table: &mut Table, path: &[String], value: Value) {
    match path {
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            if let Some(Value::Table(inner)) = table.get_mut(first) {
                put(inner, rest, value);
            }
        }
        [] => {}
    }
}

/// Why a path is none of ours, with the nearest one that is.
fn unknown(defaults: &Table, path: &[String]) -> Option<String> {
    let mut known = Vec::new();
    keys(defaults, "", &mut known);
    let path = path.join(".");
    if known.contains(&path) {
        return None;
    }
    if known.iter().any(|key| key.starts_with(&format!("{path}."))) {
        return Some("is a section, not a key".into());
    }
    let leaf = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |key: &String| {
        let whole = strsim::jaro_winkler(key, &path);
        whole.max(strsim::jaro_winkler(&leaf(key), &leaf(&path)) * 0.95)
    };
    let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    Some(format!("unknown key; did you mean {nearest}?"))
}

fn keys(table: &Table, prefix: &str, out: &mut Vec<String>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => keys(inner, &format!("{prefix}{key}."), out),
            _ => out.push(format!("{prefix}{key}")),
        }
    }
}

/// A text from the environment or the command line, read as what the key's default is.
fn from_text<C: Options>(place: String, key: &str, text: &str) -> Setting {
    let path: Vec<String> = key.split('.').map(str::to_owned).collect();
    let defaults = Table::try_from(C::default()).expect("the defaults are TOML");
    let mut at = Some(&Value::Table(defaults.clone())).cloned();
    for part in &path {
        at = at.and_then(|value| value.get(part).cloned());
    }
    let as_toml = || text.parse::<Value>().unwrap_or_else(|_| Value::String(text.into()));
    let value = match at {
        Some(Value::String(_)) => Value::String(text.trim_matches('"').into()),
        _ => as_toml(),
    };
    Setting { place, path, value }
}

fn from_file(file: &Path, settings: &mut Vec<Setting>, problems: &mut Vec<Problem>) {
    let place = file.display().to_string();
    let problem = |place: String, what: String| Problem { place, key: String::new(), what };
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) => return problems.push(problem(place, format!("cannot be read: {e}"))),
    };
    let table = match text.parse::<Table>() {
        Ok(table) => table,
        Err(e) => {
            let line = e.span().map_or(1, |span| line_of(&text, span.start));
            return problems.push(problem(format!("{place}:{line}"), e.message().trim().replace('\n', " ")));
        }
    };
    flatten(&table, &mut Vec::new(), &mut |path, value| {
        let line = find_line(&text, path);
        settings.push(Setting { place: format!("{place}:{line}"), path: path.to_vec(), value: value.clone() });
    });
}

fn flatten(table: &Table, path: &mut Vec<String>, each: &mut impl FnMut(&[String], &Value)) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            Value::Table(inner) => flatten(inner, path, each),
            _ => each(path, value),
        }
        path.pop();
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at.min(text.len())].matches('\n').count() + 1
}

/// The line on which a key stands, found by its section and name; 1 if written unusually.
fn find_line(text: &str, path: &[String]) -> usize {
    let (section, key) = path.split_at(path.len() - 1);
    let (section, dotted) = (section.join("."), path.join("."));
    let mut current = String::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            current = header.trim_matches(['[', ']', ' ']).to_owned();
            if current == dotted {
                return i + 1;
            }
        } else if let Some((name, _)) = line.split_once('=') {
            let name = name.trim().trim_matches('"');
            let full = if current.is_empty() { name.to_owned() } else { format!("{current}.{name}") };
            if full == dotted || (current == section && key[0] == name) {
                return i + 1;
            }
        }
    }
    1
}
