//! Aligned columns, colours where there is somebody to see them.

use std::io::{self, Write};

/// Between columns.
const GAP: &str = "  ";
/// A column that is narrower than this is not worth keeping to.
const NARROW: usize = 20;

/// `text` with line breaks between words, so that it stays within `width` when it begins after `indent`
/// characters and goes on below itself.
pub(crate) fn wrapped(text: &str, indent: usize, width: Option<usize>) -> String {
    let room = width.and_then(|width| width.checked_sub(indent)).filter(|room| *room >= NARROW);
    let Some(room) = room else { return text.to_owned() };
    let (mut out, mut used) = (String::new(), 0);
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > room {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += length;
    }
    out
}

/// How a text stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Doubtful,
    Bad,
    Faint,
    Strong,
}

/// Whether colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    pub(crate) fn apply(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Doubtful => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
            Tone::Strong => "1",
        };
        if self.0 && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// What the state of a peer, a host or a health line means.
pub(crate) fn tone_of(state: &str) -> Tone {
    match state {
        "running" | "alive" | "up" | "usable" | "member" | "active" => Tone::Good,
        "waiting" | "joining" | "retiring" | "degraded" | "suspect" | "stale" | "never"
        | "warning" => Tone::Doubtful,
        "down" | "blocked" | "error" | "expired" | "revoked" | "stopping" => Tone::Bad,
        "left" | "used" | "gone" | "info" => Tone::Faint,
        _ => Tone::Plain,
    }
}

/// A cell: what it says, how it stands out, and whether it is a number.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
    right: bool,
}

impl Cell {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Tone::Plain, right: false }
    }

    pub(crate) fn number(text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Tone::Plain, right: true }
    }

    pub(crate) fn state(text: &str) -> Self {
        Self { text: text.to_owned(), tone: tone_of(text), right: false }
    }
}

/// Rows under a header.
#[derive(Debug)]
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(header: Vec<&'static str>) -> Self {
        Self { header, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Columns as wide as their widest cell, two spaces apart, nothing behind the last.
    pub(crate) fn print(&self, paint: Paint, to: &mut impl Write) -> io::Result<()> {
        self.print_within(None, paint, to)
    }

    /// The same, with the last column on several lines where it would go beyond `width`.
    pub(crate) fn print_within(
        &self,
        width: Option<usize>,
        paint: Paint,
        to: &mut impl Write,
    ) -> io::Result<()> {
        let mut widths: Vec<usize> = self.header.iter().map(|title| title.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let before_last: usize = widths.iter().rev().skip(1).map(|column| column + GAP.len()).sum();
        let right: Vec<bool> = (0..widths.len())
            .map(|at| self.rows.first().and_then(|row| row.get(at)).is_some_and(|cell| cell.right))
            .collect();
        let titles = self.header.iter().zip(&right);
        let titles = titles
            .map(|(title, right)| Cell {
                text: (*title).to_owned(),
                tone: Tone::Strong,
                right: *right,
            })
            .collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for (at, (cell, column)) in row.iter().zip(&widths).enumerate() {
                let pad = " ".repeat(column - cell.text.chars().count());
                let last = at + 1 == row.len();
                let text =
                    if last { wrapped(&cell.text, before_last, width) } else { cell.text.clone() };
                let text = paint.apply(cell.tone, &text);
                match (cell.right, last) {
                    (true, _) => line.extend([pad.as_str(), &text]),
                    (false, true) => line.push_str(&text),
                    (false, false) => line.extend([text.as_str(), &pad]),
                }
                if !last {
                    line.push_str(GAP);
                }
            }
            writeln!(to, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_goes_on_below_itself() {
        let mut table = Table::new(vec!["CODE", "MESSAGE"]);
        table.row(vec![Cell::text("refused"), Cell::text("one two three four five six seven")]);
        let mut out = Vec::new();
        table.print_within(Some(30), Paint(false), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let wanted = "CODE     MESSAGE\nrefused  one two three four\n         five six seven\n";
        assert_eq!(text, wanted);
        // Without a screen nothing is broken; on one that is too narrow neither.
        for width in [None, Some(20), Some(3)] {
            assert_eq!(wrapped("one two three four five six", 9, width).lines().count(), 1);
        }
    }

    #[test]
    fn columns_align_with_and_without_colour() {
        let mut table = Table::new(vec!["NAME", "RX", "STATE"]);
        table.row(vec![Cell::text("a"), Cell::number("1 B"), Cell::state("up")]);
        table.row(vec![Cell::text("longer"), Cell::number("10 B"), Cell::state("stale")]);
        let printed = |paint| {
            let mut out = Vec::new();
            table.print(paint, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let plain = printed(Paint(false));
        assert_eq!(plain, "NAME      RX  STATE\na        1 B  up\nlonger  10 B  stale\n");
        let coloured = printed(Paint(true));
        assert!(coloured.contains("\u{1b}[32mup\u{1b}[0m"), "{coloured:?}");
    }
}
