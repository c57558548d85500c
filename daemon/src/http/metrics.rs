//! Metrics in the form that is asked for.
//!
//! Arrives: OpenMetrics text, as the registries write it. Leaves: the same for whoever asks for it, and for
//! everybody else Prometheus's own text format, version 0.0.4, where a counter's name has its suffix in `HELP`
//! and `TYPE` too, and nothing marks the end.

use super::reply::{is_accepted, with_type};
use axum::http::HeaderMap;
use axum::response::Response;
use std::collections::HashSet;

/// An answer with `text`, which is OpenMetrics.
pub fn answer(headers: &HeaderMap, text: String) -> Response {
    if is_accepted(headers, "application/openmetrics-text") {
        return with_type(text, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    }
    with_type(prometheus(&text), "text/plain; version=0.0.4; charset=utf-8")
}

fn prometheus(text: &str) -> String {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"));
    let counters: HashSet<&str> = types.collect();
    let mut out = String::with_capacity(text.len() + 1_024);
    for line in text.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), rest) if counters.contains(name) => {
                out.push_str(&format!("# {what} {name}_total {}", rest.unwrap_or_default()));
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::prometheus;

    #[test]
    fn counters_are_named_as_prometheus_names_them() {
        let text = "# HELP x_readings Readings committed.\n# TYPE x_readings counter\nx_readings_total 5\n\
                    # HELP x_open Open.\n# TYPE x_open gauge\n# UNIT x_open s\nx_open 1\n# EOF\n";
        let want = "# HELP x_readings_total Readings committed.\n# TYPE x_readings_total counter\nx_readings_total 5\n\
                    # HELP x_open Open.\n# TYPE x_open gauge\nx_open 1\n";
        assert_eq!(prometheus(text), want);
    }
}
