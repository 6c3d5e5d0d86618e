//! What people had done on this host, as events: the answer that they got says what.

use std::{collections::BTreeMap, fmt::Display};

use data_encoding::HEXLOWER;
use meshd_core::{
    event::{Actor, Event, about_certificate},
    trust::NodeCertificate,
};
use meshd_proto::{
    NodeKey,
    control::{
        DeviceConfigReply, InitReply, IssueCertificateReply, LeaveReply, RemoveDeviceReply,
        RevokeNodeReply, RevokeNodeRequest, RevokeSignerReply, RevokeSignerRequest, TokenInfo,
    },
};

use super::Daemon;
use crate::{config::issuers::IssuerFile, control::ControlError, state::devices::SavedDevice};

impl Daemon {
    /// Tells what a call did, or that it was refused.
    pub(super) fn note<T>(
        &self,
        by: Actor,
        done: &Result<T, ControlError>,
        tell: impl FnOnce(&T) -> Event,
    ) {
        let event = match done {
            Ok(reply) => tell(reply),
            Err(error) => refused(error),
        };
        self.events.emit(event.by(by));
    }
}

/// A call that was refused.
pub(super) fn refused(error: &ControlError) -> Event {
    let text = format!("{}: {}", error.what, error.why);
    Event::warning("control_refused", text).because(error.code.clone())
}

/// `confirm`.
pub(super) fn config_confirmed() -> Event {
    Event::info("config_confirmed", "the configuration on trial was confirmed")
}

/// `init`.
pub(super) fn mesh_created(reply: &InitReply) -> Event {
    let text = format!("the mesh {} was made, with this host as {}", reply.mesh, reply.node);
    about(Event::info("mesh_created", text), &reply.id, &reply.node)
        .with("prefixes", reply.prefixes.join(","))
        .with("not_granted", reply.not_granted.join(","))
}

/// `join`, by hand or with the token that was found.
pub(super) fn joined(certificate: &NodeCertificate) -> Event {
    let (mesh, name) = (&certificate.mesh, &certificate.name);
    let text = format!("this host has joined the mesh {mesh} as {name}");
    let event = Event::info("joined", text).about(certificate.key, name);
    about_certificate(event, certificate)
}

/// `cert issue`.
pub(super) fn issued(reply: &IssueCertificateReply) -> Event {
    let text = "a certificate was issued, to be brought as files";
    match NodeCertificate::parse(&reply.certificate) {
        Ok(certificate) => {
            let event = Event::info("certificate_issued", text);
            let event = event.about(certificate.key, &certificate.name);
            about_certificate(event, &certificate)
        }
        // It was made by this daemon: it is one.
        Err(_) => Event::info("certificate_issued", text),
    }
}

/// `token create`.
pub(super) fn token_created(token: &TokenInfo) -> Event {
    let uses = token.uses;
    let hosts = if uses == 1 { "host" } else { "hosts" };
    let text = format!("a token was made for {uses} {hosts}, until {}", token.expires_at);
    named(Event::info("token_created", text), &token.node_name)
        .with("token", &token.id)
        .with("issuer", token.identity.as_deref().unwrap_or_default())
        .with("uses", uses)
        .with("prefixes", token.prefixes.join(","))
        .with("limits", token.allow.join(","))
        .with("groups", token.groups.join(","))
        .with("expires_at", &token.expires_at)
}

/// What another look at `issuers.d` found: which files count now and did not, count no more, or say something else,
/// with the SHA-256 of each. A few an event, so that none is cut short.
pub(super) fn issuers_changed(before: &[IssuerFile], now: &[IssuerFile]) -> Vec<Event> {
    const AN_EVENT: usize = 6;
    let of = |files: &[IssuerFile]| -> BTreeMap<String, [u8; 32]> {
        files.iter().map(|file| (file.name().to_owned(), file.digest)).collect()
    };
    let (before, now) = (of(before), of(now));
    let shown =
        |(name, digest): (&String, &[u8; 32])| format!("{name} {}", HEXLOWER.encode(digest));
    let new = now.iter().filter(|(name, _)| !before.contains_key(*name)).map(shown);
    let gone = before.iter().filter(|(name, _)| !now.contains_key(*name)).map(shown);
    let other = now.iter().filter(|(name, digest)| before.get(*name).is_some_and(|b| b != *digest));
    let kinds: [(&'static str, Vec<String>); 3] = [
        ("added", new.collect()),
        ("removed", gone.collect()),
        ("changed", other.map(shown).collect()),
    ];
    let mut events = Vec::new();
    for (kind, files) in kinds {
        for some in files.chunks(AN_EVENT) {
            let names: Vec<_> = some.iter().filter_map(|file| file.split(' ').next()).collect();
            let text = format!("issuers of identity documents were {kind}: {}", names.join(", "));
            events.push(Event::info("issuers_changed", text).with(kind, some.join(", ")));
        }
    }
    events
}

/// `token revoke`.
pub(super) fn token_revoked(token: &TokenInfo) -> Event {
    let text = format!("the token {} was revoked, used {} times", token.id, token.used);
    named(Event::warning("token_revoked", text), &token.node_name).with("token", &token.id)
}

/// `node revoke`.
pub(super) fn node_revoked(request: &RevokeNodeRequest, reply: &RevokeNodeReply) -> Event {
    let again = if reply.before { " again, which changes nothing" } else { "" };
    let text = format!("the membership of {} was ended{again}", reply.name);
    let event = Event::warning("node_revoked", text).with("members", reply.members);
    because(about(event, &reply.id, &reply.name), &request.reason)
}

/// `signer revoke`.
pub(super) fn signer_revoked(request: &RevokeSignerRequest, reply: &RevokeSignerReply) -> Event {
    let signer = reply.signer.clone().unwrap_or_default();
    let text = format!("the signer {} was revoked and is {}", signer.name, signer.state);
    let event = Event::warning("signer_revoked", text).with("signer", &signer.key);
    let event = if request.drop_revocations { event.with("revocations", "void") } else { event };
    because(about(event, &signer.id, &signer.name), &request.reason)
}

/// `signer add`: the member was asked.
pub(super) fn signer_invited(key: NodeKey, name: impl Display) -> Event {
    let text = format!("{name} was asked to become a signer");
    Event::info("signer_invited", text).about(key, name)
}

/// `peers add`.
pub(super) fn device_added(device: &SavedDevice) -> Event {
    let text = format!("the device {} was added behind this host", device.name);
    let prefixes: Vec<String> = device.prefixes.iter().map(ToString::to_string).collect();
    named(Event::info("device_added", text), device.name.as_str())
        .with("prefixes", prefixes.join(","))
        .with("public_key", device.public_key)
}

/// `peers remove`.
pub(super) fn device_removed(reply: &RemoveDeviceReply) -> Event {
    let text = format!("the device {} was removed from this host", reply.name);
    named(Event::warning("device_removed", text), &reply.name)
        .with("prefixes", reply.prefixes.join(","))
        .with("public_key", &reply.public_key)
}

/// `peers config`: whoever has it can be the device.
pub(super) fn device_config_shown(reply: &DeviceConfigReply) -> Event {
    let with = if reply.private_key.is_some() { "with" } else { "without" };
    let text =
        format!("the configuration of the device {} was shown, {with} its private key", reply.name);
    named(Event::info("device_config_shown", text), &reply.name)
}

/// `peers config --forget-key`.
pub(super) fn device_key_forgotten(name: &str) -> Event {
    let text = format!("the private key of the device {name} was thrown away");
    named(Event::info("device_key_forgotten", text), name)
}

/// `leave`.
pub(super) fn left(reply: &LeaveReply) -> Event {
    let text =
        format!("this host has left the mesh {} and told {} members", reply.mesh, reply.told);
    let event = Event::warning("left", text);
    named(event, &reply.node).with("ca", reply.authority.as_deref().unwrap_or_default())
}

fn about(event: Event, id: &str, name: &str) -> Event {
    match id.parse::<NodeKey>() {
        Ok(key) => event.about(key, name),
        // It was printed by this daemon: it is one.
        Err(_) => named(event, name),
    }
}

fn named(event: Event, name: &str) -> Event {
    Event { name: Some(name.to_owned()).filter(|name| !name.is_empty()), ..event }
}

fn because(event: Event, words: &str) -> Event {
    if words.is_empty() { event } else { event.because(words.to_owned()) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::issuers;

    const GOOD: &str = r#"issuer = "https://issuer.example"
jwks_file = "/etc/meshd/keys.json"
[[rule]]
node_name_prefix = "db-"
[rule.claims]
"/sub" = "db"
"#;

    fn write(directory: &Path, name: &str, more: &str) {
        std::fs::write(directory.join(format!("{name}.toml")), format!("{GOOD}{more}")).unwrap();
    }

    #[test]
    fn a_change_of_the_issuers_names_every_file_with_its_hash() {
        let home = tempfile::tempdir().unwrap();
        let load = || issuers::load(home.path()).files;
        let none = load();
        for name in ["same", "looser", "gone"] {
            write(home.path(), name, "");
        }
        let before = load();
        let added = issuers_changed(&none, &before);
        assert_eq!((added.len(), added[0].code), (1, "issuers_changed"));
        assert!(issuers_changed(&before, &before).is_empty());
        write(home.path(), "looser", "# another\n");
        std::fs::remove_file(home.path().join("gone.toml")).unwrap();
        let events = issuers_changed(&before, &load());
        let details: Vec<_> = events.iter().flat_map(|event| &event.details).collect();
        let old = sha(GOOD);
        let new = sha(&format!("{GOOD}# another\n"));
        assert_eq!(details[0], &("removed", format!("gone {old}")));
        assert_eq!(details[1], &("changed", format!("looser {new}")));
        assert_eq!(details.len(), 2);
        // Of many, none is cut off.
        for n in 0..20 {
            write(home.path(), &format!("{}{n}", "x".repeat(60)), "");
        }
        let events = issuers_changed(&none, &load());
        assert_eq!(events.len(), 4);
        assert!(events.iter().all(|event| event.details[0].1.len() < 1_000));
    }

    fn sha(text: &str) -> String {
        use sha2::{Digest as _, Sha256};
        HEXLOWER.encode(&Sha256::digest(text.as_bytes()))
    }
}
