//! Signers that come and go, as events.

use data_encoding::HEXLOWER;
use meshd_proto::NodeName;

use super::{Actor, Event};
use crate::trust::{Anchors, SignerEntry};

/// What became of the signers with a bundle of this version, which only the root can have signed.
#[must_use]
pub fn of_signers(before: &[SignerEntry], after: &[SignerEntry], version: u64) -> Vec<Event> {
    let find =
        |all: &[SignerEntry], key: &[u8; 32]| all.iter().find(|one| one.key == *key).cloned();
    let mut events = Vec::new();
    for now in after {
        let was = find(before, &now.key);
        let event = match (was.map(|was| was.retiring), now.retiring) {
            (None, false) => Event::info("signer_added", format!("{} is a signer now", now.name)),
            (None | Some(false), true) => {
                let text = format!("{} is retiring: its nodes get other certificates", now.name);
                Event::warning("signer_retiring", text)
            }
            (Some(true), false) => {
                Event::warning("signer_added", format!("{} is a signer again", now.name))
            }
            _ => continue,
        };
        events.push(about(event, now));
    }
    for gone in before.iter().filter(|one| find(after, &one.key).is_none()) {
        let text = format!("{} is no signer any more", gone.name);
        events.push(about(Event::warning("signer_gone", text), gone));
    }
    if events.is_empty() {
        events.push(Event::info("bundle_changed", "the bundle of signers is another"));
    }
    let said = |event: Event| event.by(Actor::Root).with("bundle", version);
    events.into_iter().map(said).collect()
}

fn about(event: Event, entry: &SignerEntry) -> Event {
    event.about(entry.node, &entry.name).with("signer", HEXLOWER.encode(&entry.key[..8]))
}

/// Who holds this key of an intermediate, or of the root.
#[must_use]
pub fn signer_actor(anchors: &Anchors, key: &[u8; 32]) -> (Actor, Option<NodeName>) {
    if key == anchors.root_key() {
        return (Actor::Root, None);
    }
    match anchors.signers().into_iter().find(|entry| entry.key == *key) {
        Some(entry) => (Actor::Node(entry.node), Some(entry.name)),
        // Of an older bundle, which does not say whose it is.
        None => (Actor::Daemon, None),
    }
}

#[cfg(test)]
mod tests {
    use meshd_proto::NodeKey;

    use super::*;

    fn entry(number: u8, retiring: bool) -> SignerEntry {
        SignerEntry {
            key: [number; 32],
            node: NodeKey([number; 32]),
            name: format!("s{number}").parse().unwrap(),
            certificate: bytes::Bytes::new(),
            retiring,
        }
    }

    #[test]
    fn a_bundle_says_who_came_who_retires_and_who_is_gone() {
        let said = |before: &[SignerEntry], after: &[SignerEntry]| {
            let events = of_signers(before, after, 7);
            assert!(events.iter().all(|event| event.actor == Actor::Root));
            assert!(events.iter().all(|event| event.detail("bundle") == Some("7")));
            let each = events.iter().map(|e| (e.code, e.name.clone().unwrap_or_default()));
            each.collect::<Vec<_>>()
        };
        let name = |text: &str| text.to_owned();
        let (one, two) = (entry(1, false), entry(2, false));
        assert_eq!(said(&[], std::slice::from_ref(&one)), [("signer_added", name("s1"))]);
        let both = [one.clone(), two];
        assert_eq!(said(std::slice::from_ref(&one), &both), [("signer_added", name("s2"))]);
        let retiring = [one.clone(), entry(2, true)];
        assert_eq!(said(&both, &retiring), [("signer_retiring", name("s2"))]);
        assert_eq!(said(&retiring, &both), [("signer_added", name("s2"))]);
        assert_eq!(said(&retiring, &[one]), [("signer_gone", name("s2"))]);
        assert_eq!(said(&both, &both), [("bundle_changed", String::new())]);
    }
}
