//! The attacks and their outcomes as `docs/attacks.md` has them.

use std::fmt::Write as _;

use super::attack::{Attack, Expected, Outcome};

/// The table as it is committed.
pub const DOCUMENTED: &str = include_str!("../../../docs/attacks.md");

const HEAD: &str = "# Attacks and their outcomes

Made by `cargo run -p meshd-tests --bin adversary -- table > docs/attacks.md`; `scenario_adversary` tries every row against real
daemons and fails when a row says something else than what it finds. The adversary is a legitimate member: its own key, its
own certificate, its own address. Beside every attack a flow runs between the victims, of which no packet may be lost; peers,
routes and rules of both victims' kernels stay as they were; the member about whom lies are told stays; memory does not grow
by more than 16 MiB nor to twice of what it was. *Refused* names the victim's counter that rises, with its reason; where there
is nothing to refuse, the adversary itself looks that nothing came of it.

Where a row speaks of a signer's key, the adversary has been given one, as if stolen. Not here, since other tests do it: what a
seed can do with a join that passes it (`scenario_seed`), what a stolen signer can do and how it is ended (`scenario_signers`),
late certificates of a retiring one (`trust/tests/renewal`), clocks that are wrong (`trust/time`, `sim_trust`).

| attack | what is tried | outcome |
|---|---|---|
";

/// One row.
#[must_use]
pub fn row(attack: Attack, outcome: Outcome) -> String {
    let outcome = match outcome {
        Outcome::Counted(Expected { counter, reason: None, .. }) => format!("taken: `{counter}`"),
        Outcome::Counted(Expected { counter, reason: Some(reason), .. }) => {
            format!("refused: `{counter}{{reason=\"{reason}\"}}`")
        }
        Outcome::Without(what) => format!("without effect: {what}"),
    };
    format!("| `{}` | {} | {outcome} |\n", attack.name(), attack.description())
}

/// All of it.
#[must_use]
pub fn table() -> String {
    let mut text = HEAD.to_owned();
    for attack in Attack::all() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{}", row(*attack, attack.outcome()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attack_is_documented_as_it_must_end() {
        assert_eq!(
            table(),
            DOCUMENTED,
            "write it anew: cargo run -p meshd-tests --bin adversary -- table > docs/attacks.md"
        );
    }
}
