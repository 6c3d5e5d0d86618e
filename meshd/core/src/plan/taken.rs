//! What of ours another program uses too: routing table, rule priority, mark.
//!
//! None of it is refused by the kernel, and each of it sends packets where nobody meant them to go. A taken interface
//! name or port is refused by the kernel, and said by the data plane.

use super::{input::PlanConfig, types::Family};

/// A policy rule that is not ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignRule {
    /// Address family.
    pub family: Family,
    /// Its place among the rules.
    pub priority: u32,
    /// Mark that it asks for, and the bits of it that count; mask 0 asks for none.
    pub mark: u32,
    /// See [`Self::mark`].
    pub mask: u32,
}

/// What others have in the places that the configuration gives to meshd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Foreign {
    /// All rules that are not ours.
    pub rules: Vec<ForeignRule>,
    /// How many routes of others each of our tables holds.
    pub routes: Vec<(u32, usize)>,
}

/// One thing that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Stable.
    pub code: &'static str,
    /// What, and what follows.
    pub message: String,
    /// What to do.
    pub fix: &'static str,
}

/// What is taken; empty when all is well.
#[must_use]
pub fn taken(config: &PlanConfig, foreign: &Foreign) -> Vec<Taken> {
    let mut found = Vec::new();
    for (table, count) in foreign.routes.iter().filter(|(_, count)| *count > 0) {
        found.push(Taken {
            code: "table_taken",
            message: format!(
                "routing table {table} holds {count} routes of another program: packets for which the mesh has no \
                 route take them"
            ),
            fix: "set [network] table to an unused number, or move the other program's routes (wg-quick uses 51820 \
                  too: give it `Table = ` another)",
        });
    }
    let second = config.strict.then(|| config.second_priority());
    let ours = [Some(config.rule_priority), second];
    for rule in &foreign.rules {
        let family = match rule.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let priority = rule.priority;
        if ours.contains(&Some(priority)) {
            found.push(Taken {
                code: "rule_priority_taken",
                message: format!(
                    "another program has an {family} rule at priority {priority}: which of the two counts first \
                     depends on who came first"
                ),
                fix: "set [network] rule_priority to an unused number below it or above it",
            });
        }
        if rule.mark & rule.mask & config.fwmark != 0 {
            found.push(Taken {
                code: "mark_taken",
                message: format!(
                    "another program's {family} rule at priority {priority} asks for the mark {:#x}/{:#x}, which holds \
                     ours ({:#x}): packets with that mark pass the mesh by, and ours may follow that rule",
                    rule.mark, rule.mask, config.fwmark
                ),
                fix: "set [wireguard] fwmark to a bit that nobody else uses, on this host",
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(config: &PlanConfig, foreign: &Foreign) -> Vec<&'static str> {
        taken(config, foreign).iter().map(|taken| taken.code).collect()
    }

    fn rule(priority: u32, mark: u32, mask: u32) -> Foreign {
        let rule = ForeignRule { family: Family::V4, priority, mark, mask };
        Foreign { rules: vec![rule], routes: Vec::new() }
    }

    #[test]
    fn what_others_usually_have_is_not_ours() {
        let config = PlanConfig::default();
        // The kernel's own three, Kubernetes' masquerading mark, Calico's, Cilium's, Tailscale's, systemd's, wg-quick's.
        for (priority, mark, mask) in [
            (0, 0, 0),
            (32766, 0, 0),
            (32767, 0, 0),
            (100, 0x4000, 0x4000),
            (99, 0x0010_0000, 0x0010_0000),
            (9, 0x200, 0xf00),
            (5210, 0x8_0000, 0xff_0000),
            (32764, 0xca6c, 0xffff_ffff),
        ] {
            assert_eq!(codes(&config, &rule(priority, mark, mask)), [""; 0], "{mark:#x}/{mask:#x}");
        }
        let none = Foreign { rules: Vec::new(), routes: vec![(51820, 0)] };
        assert_eq!(codes(&config, &none), [""; 0]);
    }

    #[test]
    fn each_thing_that_is_taken_is_said() {
        let config = PlanConfig::default();
        assert_eq!(codes(&config, &rule(2600, 0, 0)), ["rule_priority_taken"]);
        assert_eq!(codes(&config, &rule(2601, 0, 0)), [""; 0]);
        let strict = PlanConfig { strict: true, ..PlanConfig::default() };
        assert_eq!(codes(&strict, &rule(2601, 0, 0)), ["rule_priority_taken"]);
        // Istio's 1337 has our bit among its own.
        assert_eq!(codes(&config, &rule(32764, 0x539, 0xffff_ffff)), ["mark_taken"]);
        assert_eq!(codes(&config, &rule(10, 0x10, 0x10)), ["mark_taken"]);
        let routes = Foreign { rules: Vec::new(), routes: vec![(51820, 2), (51821, 0)] };
        let found = taken(&config, &routes);
        assert_eq!(found.len(), 1);
        assert!(found[0].message.contains("51820 holds 2 routes"), "{found:?}");
    }
}
