//! A passphrase: from the terminal, where nobody sees it, or from a file.

use std::{
    io::{self, IsTerminal as _, Read as _},
    path::Path,
};

use zeroize::Zeroizing;

use crate::{cli::Passphrase, failure::Failure};

/// Longest file that is looked at.
const LONGEST: u64 = 4096;

/// One that exists already.
pub(super) fn known(arguments: &Passphrase) -> Result<Zeroizing<Vec<u8>>, Failure> {
    match &arguments.passphrase_file {
        Some(path) => from_file(path),
        // A key that is in plain needs none.
        None if !io::stdin().is_terminal() => Ok(Zeroizing::default()),
        None => ask("Passphrase of the root's key: "),
    }
}

/// A new one, asked for twice.
pub(super) fn chosen(arguments: &Passphrase) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let first = match &arguments.passphrase_file {
        Some(path) => from_file(path)?,
        None if !io::stdin().is_terminal() => {
            return Err(Failure::local(
                "there is no passphrase",
                "nobody is there to be asked",
                "use --passphrase-file",
            ));
        }
        None => {
            let first = ask("New passphrase of the root's key: ")?;
            if ask("Again: ")? != first {
                let why = "the two are not the same";
                return Err(Failure::local("there is no passphrase", why, "try again"));
            }
            first
        }
    };
    if first.is_empty() {
        let why = "an empty one protects nothing";
        return Err(Failure::local("there is no passphrase", why, "give one"));
    }
    Ok(first)
}

fn ask(question: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let read = rpassword::prompt_password(question).map(Zeroizing::new);
    let text = read.map_err(|error| {
        Failure::local("cannot read the passphrase", error, "use --passphrase-file")
    })?;
    Ok(Zeroizing::new(text.as_bytes().to_vec()))
}

/// The first line, without its end.
fn from_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut text = Zeroizing::new(Vec::new());
    let read = if path == Path::new("-") {
        io::stdin().lock().take(LONGEST).read_to_end(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut text))
    };
    read.map_err(|error| {
        let what = format!("cannot read the passphrase from {}", path.display());
        Failure::local(what, error, "name a file whose first line is the passphrase")
    })?;
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    text.truncate(end);
    if text.last() == Some(&b'\r') {
        text.pop();
    }
    Ok(text)
}
