//! What the operating system says of a process.

/// Since its start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) cpu_s: f64,
    pub(super) written_bytes: u64,
    pub(super) peak_bytes: u64,
}

impl Usage {
    /// Of a process, as of now.
    pub(super) fn of(pid: u32) -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let field = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
        };
        let stat = read("stat");
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks: u64 = behind_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        Usage {
            cpu_s: ticks as f64 / 100.0,
            written_bytes: field(&read("io"), "write_bytes:"),
            peak_bytes: field(&read("status"), "VmHWM:") * 1024,
        }
    }
}
