//! A module per noun; each function is a verb.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use crate::failure::Failure;

pub(crate) mod authority;
pub(crate) mod certificate;
pub(crate) mod devices;
pub(crate) mod events;
pub(crate) mod identity;
pub(crate) mod membership;
pub(crate) mod mtu;
pub(crate) mod nodes;
mod passphrase;
pub(crate) mod peers;
pub(crate) mod ping;
mod qr;
pub(crate) mod reload;
pub(crate) mod signers;
pub(crate) mod status;
pub(crate) mod tokens;

/// The first texts of a list with room for about two, and how many there are beyond.
fn short_list(texts: &[String], wide: bool) -> String {
    match texts {
        [] => "-".to_owned(),
        _ if wide => texts.join(","),
        [one] => one.clone(),
        [one, rest @ ..] => format!("{one} +{}", rest.len()),
    }
}

/// Texts on one line, `none` if there are none.
fn list(texts: &[String]) -> String {
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

/// Asks about what cannot be taken back, unless `yes`; where nobody can be asked, only `yes` will do.
/// `otherwise` says what there is without a yes.
fn sure(yes: bool, otherwise: &str, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if io::stdin().is_terminal() {
        return confirmed(question, otherwise);
    }
    Err(Failure::local(
        "nothing was done",
        "it cannot be taken back, and nobody is there to be asked",
        "use --yes",
    ))
}

/// Asks on the terminal; an error unless the answer is yes.
fn confirmed(question: &str, otherwise: &str) -> Result<(), Failure> {
    write!(io::stderr(), "{question}")?;
    let mut answer = String::new();
    let read = io::stdin().lock().take(64).read_line(&mut answer);
    read.map_err(|error| Failure::local("cannot read the answer", error, "use --yes"))?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Failure::local("nothing was done", otherwise, "answer y, or use --yes"))
}
