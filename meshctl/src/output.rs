//! Where output goes and in which form.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::{failure::Failure, table::Paint};

/// `-o`. The variants have no help of their own, or every verb's help would be a page longer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
}

/// The form asked for, and what the terminal can do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
    terminal: bool,
    paint: Paint,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        let terminal = io::stdout().is_terminal();
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_none_or(|term| term == "dumb");
        let paint = Paint(terminal && !dumb && set("NO_COLOR").is_none());
        Self { format, terminal: terminal && !dumb, paint }
    }

    /// Whether a person reads the result, and with how much room.
    pub(crate) fn is_wide(self) -> bool {
        self.format == Format::Wide
    }

    /// Characters on a line, where there is a screen that would break lines anywhere.
    pub(crate) fn width(self) -> Option<usize> {
        let size = if self.terminal { terminal_size::terminal_size() } else { None };
        size.map(|(width, _)| usize::from(width.0))
    }

    /// Whether a program reads the result.
    pub(crate) fn is_for_programs(self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// Whether the screen can be drawn anew.
    pub(crate) fn is_terminal(self) -> bool {
        self.terminal
    }

    /// Prints `value` for programs, or `people`'s text.
    pub(crate) fn print<T: Serialize>(
        self,
        value: &T,
        people: impl FnOnce(Paint, &mut Vec<u8>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let mut text = Vec::new();
        match self.format {
            Format::Table | Format::Wide => people(self.paint, &mut text)?,
            Format::Json => {
                serde_json::to_writer_pretty(&mut text, value).map_err(cannot_print)?;
                text.push(b'\n');
            }
            Format::Yaml => serde_yaml_ng::to_writer(&mut text, value).map_err(cannot_print)?,
        }
        write(&text)
    }

    /// Prints one of many things that follow each other: a line of JSON, a YAML document, a row.
    pub(crate) fn print_next<T: Serialize>(
        self,
        value: &T,
        people: impl FnOnce(Paint, &mut Vec<u8>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let mut text = Vec::new();
        if self.is_for_programs() {
            return self.print_again(value, people);
        }
        people(self.paint, &mut text)?;
        write(&text)
    }

    /// Prints one of many states: a line of JSON, a YAML document, a redrawn screen.
    pub(crate) fn print_again<T: Serialize>(
        self,
        value: &T,
        people: impl FnOnce(Paint, &mut Vec<u8>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let mut text = Vec::new();
        match self.format {
            Format::Json => {
                serde_json::to_writer(&mut text, value).map_err(cannot_print)?;
                text.push(b'\n');
            }
            Format::Yaml => {
                text.extend(b"---\n");
                serde_yaml_ng::to_writer(&mut text, value).map_err(cannot_print)?;
            }
            Format::Table | Format::Wide => {
                people(self.paint, &mut text)?;
                if self.terminal {
                    text = redraw(&text);
                } else {
                    text.push(b'\n');
                }
            }
        }
        write(&text)
    }
}

/// Over the old screen, line by line, so that nothing flickers.
fn redraw(text: &[u8]) -> Vec<u8> {
    let mut screen = b"\x1b[H".to_vec();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        screen.extend(line.strip_suffix(b"\n").unwrap_or(line));
        screen.extend(b"\x1b[K\n");
    }
    screen.extend(b"\x1b[J");
    screen
}

pub(crate) fn write(text: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text)?;
    Ok(stdout.flush()?)
}

/// A line for the person at the terminal, beside the result.
pub(crate) fn remark(text: &str) {
    // Nobody is left to be told when this fails.
    let _ = writeln!(io::stderr(), "{text}");
}

fn cannot_print(error: impl std::fmt::Display) -> Failure {
    Failure::local("the answer cannot be printed", error, "use another -o")
}
