//! Certificates that were issued, as events: to whom, by what right, over what.

use std::fmt::Display;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Actor, Event};
use crate::{
    now::UnixTime,
    trust::{LedgerEntry, LedgerEvent, NodeCertificate},
};

/// What a signer has just put into its ledger, if that is a certificate.
#[must_use]
pub fn of_admission(entry: &LedgerEntry) -> Option<Event> {
    let LedgerEvent::Enrolled { token, certificate, not_granted, renewal, voucher } = &entry.event
    else {
        return None;
    };
    let (name, key) = (&certificate.name, certificate.key);
    let event = if *renewal {
        let text = format!("{name} was given its next certificate");
        Event::info("renewal_granted", text).by(Actor::Node(key))
    } else {
        let text = format!("{name} was admitted");
        Event::info("node_admitted", text).by(token.map_or(Actor::Daemon, Actor::Token))
    };
    let event = about_certificate(event.about(key, name), certificate);
    let event = event.with("token", text(token)).with("not_granted", text(not_granted));
    Some(match voucher {
        Some(by) => event.with("issuer", &by.issuer).with("rule", &by.rule),
        None => event,
    })
}

/// `event` with what `certificate` says.
#[must_use]
pub fn about_certificate(event: Event, certificate: &NodeCertificate) -> Event {
    event
        .with("serial", certificate.serial())
        .with("address", text(certificate.mesh_ipv4))
        .with("prefixes", text(certificate.grants.iter().map(|grant| grant.prefix)))
        .with("limits", text(&certificate.limits))
        .with("groups", text(&certificate.groups))
        .with("not_after", date(certificate.not_after))
}

fn text(items: impl IntoIterator<Item = impl Display>) -> String {
    let texts: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    texts.join(",")
}

fn date(at: UnixTime) -> String {
    let date = OffsetDateTime::from_unix_timestamp(at.0).ok();
    date.and_then(|date| date.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::trust::{
        TokenId,
        fixture::{NOW, TestMesh},
    };

    #[test]
    fn an_admission_says_who_by_which_token_and_over_what() {
        let node = TestMesh::new(1).node("db-2", &["10.1.0.0/24"]);
        let certificate = Arc::new((*node.certificate).clone());
        let (token, not_granted) = (TokenId([0xab; 16]), vec!["10.9.0.0/16".parse().unwrap()]);
        let entry = |renewal| LedgerEntry {
            time: NOW,
            event: LedgerEvent::Enrolled {
                voucher: None,
                token: Some(token),
                certificate: certificate.clone(),
                not_granted: not_granted.clone(),
                renewal,
            },
        };
        let event = of_admission(&entry(false)).unwrap();
        assert_eq!((event.code, event.actor), ("node_admitted", Actor::Token(token)));
        assert_eq!((event.subject, event.name.as_deref()), (Some(certificate.key), Some("db-2")));
        assert!(event.detail("prefixes").unwrap().contains("10.1.0.0/24"), "{event:?}");
        assert_eq!(event.detail("not_granted"), Some("10.9.0.0/16"));
        assert_eq!(event.detail("serial").map(str::len), Some(32));
        assert!(event.detail("not_after").unwrap().ends_with('Z'), "{event:?}");
        let event = of_admission(&entry(true)).unwrap();
        assert_eq!((event.code, event.actor), ("renewal_granted", Actor::Node(certificate.key)));
        assert_eq!(event.detail("token"), Some("ab".repeat(16).as_str()));
        let departed = LedgerEvent::Departed { key: certificate.key };
        assert!(of_admission(&LedgerEntry { time: NOW, event: departed }).is_none());
    }
}
