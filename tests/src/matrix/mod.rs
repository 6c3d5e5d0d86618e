//! The matrix of surroundings in which the mesh must do the same: what the underlay speaks, what is carried, where prefixes
//! come from, which reverse-path filter, strict or not, which kernel. This module names the cells and chooses among them;
//! [`site`] makes one of real hosts, [`traffic`] tries everything in it. Used by the scenario `matrix`.

mod cover;
pub mod site;
pub mod traffic;

use std::fmt;

use anyhow::{Context, Result, ensure};

/// How many values each factor has, in the order of [`Cell::from_row`].
const FACTORS: [usize; 6] = [2, 3, 2, 3, 2, KERNELS.len()];
/// Kernels that the rig boots, as `uname -r` begins.
const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// What hosts have on the network between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

/// What is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encrypt {
    /// `pods` on all hosts.
    Pods,
    /// `pods+nodes` on all hosts.
    Nodes,
    /// `pods` on the second host, `pods+nodes` on the others.
    Mixed,
}

/// Where a host's prefixes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A range for each host.
    Prefixes,
    /// Single addresses.
    Workloads,
}

/// One surrounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// The network between the hosts.
    pub underlay: Underlay,
    /// What is carried.
    pub encrypt: Encrypt,
    /// Where prefixes come from.
    pub source: Source,
    /// `rp_filter` of every interface.
    pub rp_filter: u8,
    /// Strict leak protection.
    pub strict: bool,
    /// The kernel that this cell is for.
    pub kernel: &'static str,
}

impl Cell {
    fn from_row(row: &[usize]) -> Option<Self> {
        let &[underlay, encrypt, source, rp_filter, strict, kernel] = row else { return None };
        Some(Self {
            underlay: *[Underlay::V4, Underlay::V6].get(underlay)?,
            encrypt: *[Encrypt::Pods, Encrypt::Nodes, Encrypt::Mixed].get(encrypt)?,
            source: *[Source::Prefixes, Source::Workloads].get(source)?,
            rp_filter: u8::try_from(rp_filter).ok()?,
            strict: strict == 1,
            kernel: KERNELS.get(kernel)?,
        })
    }

    /// The hosts (0, 1, 2) whose own addresses are carried.
    pub fn carries(&self, host: usize) -> bool {
        match self.encrypt {
            Encrypt::Pods => false,
            Encrypt::Nodes => true,
            Encrypt::Mixed => host != 1,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let underlay = if self.underlay == Underlay::V4 { "v4" } else { "v6" };
        let encrypt = match self.encrypt {
            Encrypt::Pods => "pods",
            Encrypt::Nodes => "pods+nodes",
            Encrypt::Mixed => "mixed",
        };
        let source = if self.source == Source::Prefixes { "prefixes" } else { "workloads" };
        let strict = if self.strict { "strict" } else { "off" };
        write!(f, "{underlay}, {encrypt}, {source}, rp_filter {}, {strict}", self.rp_filter)
    }
}

/// Cells with their numbers among all of their kind, and why it is these.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Number and cell.
    pub cells: Vec<(usize, Cell)>,
    /// For people.
    pub reason: String,
}

/// Which cells run. `wanted`: `pairwise`, the same without regard to their kernels (`pairwise-here`), `full` or a number of
/// `full`'s list; `release`: of the running kernel;
/// `kernel_wireguard`: whether the kernel's WireGuard is under test, on which alone much of it depends.
pub fn choose(wanted: &str, release: &str, kernel_wireguard: bool) -> Result<Choice> {
    let running = KERNELS.into_iter().find(|kernel| is_release(release, kernel));
    match wanted {
        "pairwise" | "pairwise-here" if !kernel_wireguard => {
            let rows = cover::values(&FACTORS[..5]);
            Ok(Choice {
                cells: numbered(rows.into_iter().map(|row| [row, vec![0]].concat())),
                reason: "userspace WireGuard: every value once".to_owned(),
            })
        }
        "pairwise" | "pairwise-here" => {
            let mut cells = numbered(cover::pairs(&FACTORS));
            let count = cells.len();
            let here = match running {
                _ if wanted == "pairwise-here" => format!("all run on {release}"),
                Some(kernel) => {
                    cells.retain(|(_, cell)| cell.kernel == kernel);
                    format!("{} of them are for {kernel}", cells.len())
                }
                None => format!("none is for {release}, so all run"),
            };
            Ok(Choice { cells, reason: format!("{count} cells have every pair of values; {here}") })
        }
        "full" => Ok(Choice { cells: full(), reason: format!("all, on {release}") }),
        number => {
            let number: usize =
                number.parse().context("pairwise, pairwise-here, full or a number of a cell")?;
            let mut cells = full();
            ensure!(number < cells.len(), "cells have the numbers 0 to {}", cells.len() - 1);
            cells.retain(|(this, _)| *this == number);
            Ok(Choice { cells, reason: format!("by its number, on {release}") })
        }
    }
}

/// All cells, for whatever kernel.
fn full() -> Vec<(usize, Cell)> {
    numbered(cover::product(&FACTORS[..5]).into_iter().map(|row| [row, vec![0]].concat()))
}

/// With the number that each has in [`full`].
fn numbered(rows: impl IntoIterator<Item = Vec<usize>>) -> Vec<(usize, Cell)> {
    let number = |row: &[usize]| {
        row.iter().zip(FACTORS).take(5).fold(0, |sum, (value, size)| sum * size + value)
    };
    rows.into_iter().filter_map(|row| Some((number(&row), Cell::from_row(&row)?))).collect()
}

/// Whether `release` (`6.1.0-40-cloud-amd64`) is one of `kernel` (`6.1`).
fn is_release(release: &str, kernel: &str) -> bool {
    release.strip_prefix(kernel).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cell_of_a_pair_set_runs_on_exactly_one_kernel() {
        let mut all: Vec<usize> = Vec::new();
        for release in ["6.1.0-40-cloud-amd64", "6.12.43+deb12-cloud-amd64"] {
            let chosen = choose("pairwise", release, true).unwrap();
            assert!(chosen.cells.len() >= 3, "{chosen:?}");
            assert!(chosen.cells.iter().all(|(_, cell)| is_release(release, cell.kernel)));
            all.extend(chosen.cells.iter().map(|(number, _)| *number));
        }
        assert_eq!(all.len(), choose("pairwise", "7.0", true).unwrap().cells.len());
    }

    #[test]
    fn a_cell_is_found_again_by_its_number() {
        let all = choose("full", "6.1", true).unwrap().cells;
        assert_eq!(all.len(), 72);
        for (position, (number, cell)) in all.iter().enumerate() {
            assert_eq!(position, *number);
            assert_eq!(choose(&number.to_string(), "6.1", true).unwrap().cells, [(*number, *cell)]);
        }
        assert!(choose("72", "6.1", true).is_err());
        assert!(choose("some", "6.1", true).is_err());
    }

    #[test]
    fn userspace_sees_every_value() {
        let cells = choose("pairwise", "6.18.5", false).unwrap().cells;
        let seen = |value: &dyn Fn(&Cell) -> bool| cells.iter().any(|(_, cell)| value(cell));
        assert!(cells.len() <= 3, "{cells:?}");
        assert!(seen(&|c| c.underlay == Underlay::V4) && seen(&|c| c.underlay == Underlay::V6));
        for encrypt in [Encrypt::Pods, Encrypt::Nodes, Encrypt::Mixed] {
            assert!(seen(&|c| c.encrypt == encrypt));
        }
        assert!(
            seen(&|c| c.source == Source::Prefixes) && seen(&|c| c.source == Source::Workloads)
        );
        assert!((0..3).all(|filter| seen(&|c| c.rp_filter == filter)));
        assert!(seen(&|c| c.strict) && seen(&|c| !c.strict));
    }

    #[test]
    fn releases_of_two_kernels_are_told_apart() {
        assert!(is_release("6.1.0-40-cloud-amd64", "6.1") && is_release("6.1", "6.1"));
        assert!(!is_release("6.12.43", "6.1") && !is_release("6.18.5", "6.1"));
    }
}
