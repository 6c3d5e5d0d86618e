//! What the kernel says of this process, under the names that Prometheus' client libraries agree on.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};

/// Figures of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Process {
    /// User and system, in seconds.
    pub(super) cpu: f64,
    /// Bytes.
    pub(super) resident: u64,
    /// Bytes.
    pub(super) virtual_memory: u64,
    pub(super) open_files: Option<u64>,
}

impl Process {
    /// As it is now; `None` where there is no `/proc`.
    pub(super) fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The directory that is read is one of them.
        let open = fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as u64);
        let mut process = Self::parse(&stat, clock_ticks_per_second(), page_size() as u64)?;
        process.open_files = open.map(|count| count.saturating_sub(1));
        Some(process)
    }

    /// `/proc/PID/stat`, see proc_pid_stat(5).
    fn parse(stat: &str, ticks: u64, page: u64) -> Option<Self> {
        // The name, in parentheses, may hold anything.
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Counted from 1, and two are before the name's end.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu: (field(14)? + field(15)?) as f64 / ticks.max(1) as f64,
            resident: field(24)?.saturating_mul(page),
            virtual_memory: field(23)?,
            open_files: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_is_no_field() {
        let stat = "7 (a) b) S 1 1 1 0 -1 4194560 10 0 0 0 150 50 0 0 20 0 9 0 100 4096 3 1844";
        let process = Process::parse(stat, 100, 4096).unwrap();
        let wanted =
            Process { cpu: 2.0, resident: 12_288, virtual_memory: 4_096, open_files: None };
        assert_eq!(process, wanted);
        assert_eq!(Process::parse("7 (a) S 1", 100, 4096), None);
    }

    #[test]
    fn this_process_has_figures() {
        let process = Process::now().unwrap();
        assert!(process.resident > 100_000 && process.virtual_memory >= process.resident);
        assert!(process.open_files.unwrap() >= 3, "{process:?}");
    }
}
