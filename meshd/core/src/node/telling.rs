//! What happened to this node and what it saw, for the log and for `events`.

use meshd_proto::NodeKey;

use super::{Node, types::Output};
use crate::{
    event::{Actor, Event, Severity, of_signers, signer_actor},
    refusal::{Code, Refusal},
    trust::SignerEntry,
};

impl Node {
    pub(super) fn tell(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// Something about this node itself.
    pub(super) fn tell_of_self(&mut self, event: Event) {
        let identity = self.own.identity();
        let event = event.about(self.own.key(), &identity.certificate.name);
        self.tell(event);
    }

    /// Something about another member.
    pub(super) fn tell_of(&mut self, key: NodeKey, event: Event) {
        let event = event.about(key, self.directory.display_name(&key));
        self.tell(event);
    }

    /// What `from` sent was not believed.
    pub(super) fn refused_record(&mut self, from: NodeKey, refusal: &Refusal) {
        self.counters.refuse(refusal.code);
        // Gossip is full of what is just out of date.
        let severity = match refusal.code {
            Code::OldVersion
            | Code::SwimUnknownMember
            | Code::SwimGeneration
            | Code::ReportOutdated => Severity::Info,
            _ => Severity::Warning,
        };
        let name = self.directory.display_name(&from);
        let text = format!("refused from {name}: {}", refusal.detail);
        let event = Event::new("refused", severity, text).by(Actor::Node(from));
        self.tell(event.about(from, name).because(refusal.code.as_str()));
    }

    /// What became of the signers, who were `before`.
    pub(super) fn tell_of_signers(&mut self, before: &[SignerEntry]) {
        let after = self.anchors.signers();
        for event in of_signers(before, &after, self.anchors.bundle_version()) {
            self.tell(event);
        }
    }

    /// `key` is no member any more; a signer said so, or its certificate is none any more.
    pub(super) fn tell_of_barred(&mut self, key: NodeKey, name: &str, why: Code) {
        let text = format!("{name} is no member any more ({})", why.as_str());
        let event = self.by_revoker(Event::warning("member_revoked", text), &key, why);
        self.tell(event.about(key, name));
    }

    /// Who revoked `key`, if that is why.
    pub(super) fn by_revoker(&self, event: Event, key: &NodeKey, why: Code) -> Event {
        let event = event.because(why.as_str());
        let revocation = self.anchors.revocation(key).filter(|_| why == Code::Revoked);
        let Some(revocation) = revocation else { return event };
        let (actor, name) = signer_actor(&self.anchors, &revocation.signer);
        let event = event.by(actor);
        name.map_or(event.clone(), |name| event.with("signer", name))
    }
}
