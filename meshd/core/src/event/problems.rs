//! Health lines that come and go, as events: said when they last, not when they flicker.

use std::collections::BTreeMap;

use super::{Event, Severity};

/// Looks in a row after which a line counts as there, or as gone: three seconds for the daemon.
const STEADY: u32 = 3;
/// Lines that are followed.
const MOST: usize = 64;

/// A health line, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Stable code.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub fix: String,
}

#[derive(Debug)]
struct Seen {
    problem: Problem,
    /// It was said that it began.
    said: bool,
    /// Looks in a row that say otherwise.
    otherwise: u32,
}

/// Which problems this host has.
#[derive(Debug, Default)]
pub struct Problems(BTreeMap<String, Seen>);

impl Problems {
    /// Takes what is wrong now; gives the events of what began, got worse, or ended.
    pub fn look(&mut self, now: &[Problem]) -> Vec<Event> {
        let mut events = Vec::new();
        let mut there: BTreeMap<&str, &Problem> = BTreeMap::new();
        for problem in now {
            // Of several lines with one code the worst stands for all.
            let worst = there.entry(&problem.code).or_insert(problem);
            if problem.severity > worst.severity {
                *worst = problem;
            }
        }
        for (code, problem) in &there {
            if let Some(seen) = self.0.get_mut(*code) {
                let worse = seen.said && problem.severity > seen.problem.severity;
                seen.problem = (*problem).clone();
                if seen.said {
                    seen.otherwise = 0;
                } else {
                    seen.otherwise += 1;
                }
                if worse || seen.otherwise >= STEADY {
                    (seen.said, seen.otherwise) = (true, 0);
                    events.push(began(problem));
                }
            } else if self.0.len() < MOST {
                let problem = (*problem).clone();
                let seen = Seen { problem, said: false, otherwise: 1 };
                self.0.insert((*code).to_owned(), seen);
            }
        }
        self.0.retain(|code, seen| {
            if there.contains_key(code.as_str()) {
                return true;
            }
            seen.otherwise += 1;
            let gone = !seen.said || seen.otherwise >= STEADY;
            if gone && seen.said {
                events.push(ended(&seen.problem));
            }
            !gone
        });
        events
    }
}

fn began(problem: &Problem) -> Event {
    Event::new("problem_began", problem.severity, problem.message.clone())
        .because(problem.code.clone())
        .with("fix", &problem.fix)
}

fn ended(problem: &Problem) -> Event {
    Event::info("problem_ended", format!("no longer: {}", problem.message))
        .because(problem.code.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(code: &str, severity: Severity) -> Problem {
        Problem {
            code: code.into(),
            severity,
            message: format!("{code} is wrong"),
            fix: "mend".into(),
        }
    }

    fn said(events: &[Event]) -> Vec<(&'static str, Severity, String)> {
        let one = |event: &Event| {
            (event.code, event.severity, event.reason.as_deref().unwrap_or_default().to_owned())
        };
        events.iter().map(one).collect()
    }

    #[test]
    fn a_problem_that_lasts_is_said_once_and_once_when_it_is_over() {
        let mut problems = Problems::default();
        let wrong = [problem("no_signer", Severity::Warning)];
        assert!(problems.look(&wrong).is_empty() && problems.look(&wrong).is_empty());
        let began = ("problem_began", Severity::Warning, "no_signer".to_owned());
        assert_eq!(said(&problems.look(&wrong)), [began]);
        for _ in 0..10 {
            assert!(problems.look(&wrong).is_empty());
        }
        // A moment without it is not its end.
        assert!(problems.look(&[]).is_empty() && problems.look(&[]).is_empty());
        assert!(problems.look(&wrong).is_empty());
        assert!(problems.look(&[]).is_empty() && problems.look(&[]).is_empty());
        let ended = ("problem_ended", Severity::Info, "no_signer".to_owned());
        assert_eq!(said(&problems.look(&[])), [ended]);
        assert!(problems.0.is_empty());
    }

    #[test]
    fn what_flickers_is_not_said_and_what_gets_worse_is_said_again() {
        let mut problems = Problems::default();
        let mild = [problem("certificate_expiry", Severity::Warning)];
        for _ in 0..5 {
            assert!(problems.look(&mild).is_empty());
            assert!(problems.look(&[]).is_empty());
        }
        problems.look(&mild);
        problems.look(&mild);
        assert_eq!(problems.look(&mild).len(), 1);
        let worse = [problem("certificate_expiry", Severity::Error), mild[0].clone()];
        let again = ("problem_began", Severity::Error, "certificate_expiry".to_owned());
        assert_eq!(said(&problems.look(&worse)), [again]);
        assert!(problems.look(&worse).is_empty());
    }

    #[test]
    fn more_problems_than_there_can_be_are_not_followed() {
        let mut problems = Problems::default();
        let many: Vec<_> =
            (0..1_000).map(|n| problem(&format!("code_{n}"), Severity::Info)).collect();
        for _ in 0..STEADY {
            problems.look(&many);
        }
        assert_eq!(problems.0.len(), MOST);
    }
}
