//! Prefixes that are published and not routed, as events when that begins and ends.

use std::collections::{BTreeMap, BTreeSet};

use meshd_proto::NodeKey;

use super::{Actor, Event};
use crate::plan::Blocked;

/// Changes of one plan that are told one by one.
const MOST: usize = 32;

/// What another plan changed; `name` is what a member is called.
#[must_use]
pub fn of_blocked(
    before: &BTreeMap<NodeKey, Vec<Blocked>>,
    after: &BTreeMap<NodeKey, Vec<Blocked>>,
    name: impl Fn(&NodeKey) -> String,
) -> Vec<Event> {
    let none = Vec::new();
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut changes = Vec::new();
    for key in keys {
        let (was, is) = (before.get(key).unwrap_or(&none), after.get(key).unwrap_or(&none));
        // The words change with the names in them.
        let same = |a: &Blocked, b: &Blocked| a.prefix == b.prefix && a.reason == b.reason;
        let ended = was.iter().filter(|one| !is.iter().any(|now| same(one, now)));
        changes.extend(ended.map(|one| (key, one, false)));
        let began = is.iter().filter(|one| !was.iter().any(|old| same(one, old)));
        changes.extend(began.map(|one| (key, one, true)));
    }
    let more = changes.len().saturating_sub(MOST);
    let mut events: Vec<_> = changes
        .into_iter()
        .take(MOST)
        .map(|(key, blocked, began)| {
            let name = name(key);
            let what = blocked.prefix.map(|prefix| prefix.to_string()).unwrap_or_default();
            let event = if began {
                Event::warning("prefix_blocked", format!("{name}: {}", blocked.message))
            } else {
                let text = match blocked.prefix {
                    Some(prefix) => format!("{name}: {prefix} is not blocked any more"),
                    None => format!("{name} is not blocked any more"),
                };
                Event::info("prefix_unblocked", text)
            };
            let event = event.about(*key, name).because(blocked.reason.as_str());
            event.by(Actor::Node(*key)).with("prefix", what)
        })
        .collect();
    if more > 0 {
        let text = format!("{more} more prefixes are blocked, or are not any more");
        events.push(Event::warning("prefix_blocked", text).because("many"));
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::BlockReason;

    fn blocked(prefix: &str, reason: BlockReason, message: &str) -> Blocked {
        let prefix = Some(prefix.parse().unwrap());
        Blocked { prefix, reason, message: message.to_owned() }
    }

    #[test]
    fn a_conflict_is_told_when_it_begins_and_when_it_ends() {
        let key = NodeKey([1; 32]);
        let contested = |message| blocked("10.1.0.0/24", BlockReason::Contested, message);
        let with = |all: Vec<Blocked>| BTreeMap::from([(key, all)]);
        let (none, one) = (BTreeMap::new(), with(vec![contested("db-1 has it")]));
        let said = |before: &BTreeMap<_, _>, after: &BTreeMap<_, _>| {
            let events = of_blocked(before, after, |_| "db-2".to_owned());
            events.iter().map(|e| (e.code, e.text.clone())).collect::<Vec<_>>()
        };
        let began = ("prefix_blocked", "db-2: db-1 has it".to_owned());
        assert_eq!(said(&none, &one), [began]);
        assert!(said(&one, &with(vec![contested("db-1~ab12 has it")])).is_empty());
        let ended = ("prefix_unblocked", "db-2: 10.1.0.0/24 is not blocked any more".to_owned());
        assert_eq!(said(&one, &none), [ended]);
        let other = with(vec![blocked("10.1.0.0/24", BlockReason::OwnPrefix, "it is local")]);
        assert_eq!(said(&one, &other).len(), 2);
    }

    #[test]
    fn very_many_at_once_are_told_together() {
        let many = (0..=255u8).map(|n| {
            let prefix = format!("10.{n}.0.0/16");
            (NodeKey([n; 32]), vec![blocked(&prefix, BlockReason::Contested, "no")])
        });
        let events = of_blocked(&BTreeMap::new(), &many.collect(), |_| "x".to_owned());
        assert_eq!(events.len(), MOST + 1);
        assert!(events.last().unwrap().text.starts_with("224 more"), "{:?}", events.last());
    }
}
