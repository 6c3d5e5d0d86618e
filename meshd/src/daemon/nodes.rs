//! Who belongs to the mesh, and how a signer ends that.

use std::{collections::BTreeMap, sync::Arc};

use meshd_core::{node::Liveness, trust::Record};
use meshd_proto::{
    NodeKey, NodeName,
    control::{ListNodesReply, NodeInfo, RevokeNodeReply, RevokeNodeRequest},
};

use super::{
    Daemon, clock,
    requests::{not_a_member, not_a_signer, one_of},
    running::Running,
    status::rfc3339,
};
use crate::control::ControlError;

impl Daemon {
    /// `node list`.
    pub(super) fn nodes(&self) -> Result<ListNodesReply, ControlError> {
        let running = self.running.as_ref().ok_or_else(|| not_a_member("list nodes"))?;
        let held = running.node.directory().iter().map(|record| running.node_info(record));
        let mut nodes: Vec<NodeInfo> = held.chain(running.revoked_nodes()).collect();
        tell_apart(&mut nodes);
        nodes.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.id.cmp(&b.id)));
        Ok(ListNodesReply { nodes })
    }

    /// Whom `node revoke` would mean, or why it would be refused; changes nothing.
    pub(super) fn whom_to_revoke(
        &self,
        request: &RevokeNodeRequest,
    ) -> Result<RevokeNodeReply, ControlError> {
        let running = self.running.as_ref().ok_or_else(|| not_a_member("revoke a node"))?;
        let (target, before) = running.revocable(&request.node)?;
        Ok(running.revocation_reply(&target, before))
    }

    /// `node revoke`: on disk here before it is answered; the next turn of the loop tells the others.
    pub(super) fn revoke_node(
        &mut self,
        request: &RevokeNodeRequest,
    ) -> Result<RevokeNodeReply, ControlError> {
        let running = self.running.as_mut().ok_or_else(|| not_a_member("revoke a node"))?;
        let (target, before) = running.revocable(&request.node)?;
        let now = clock::now();
        if !before {
            let signer = running.signer.as_ref().ok_or_else(|| not_a_signer("revoke a node"))?;
            let signed = signer.revoke(
                target.key,
                target.name.clone(),
                target.record.as_ref().map(|record| &*record.certificate),
                now.unix,
            );
            let failed = |why: String| {
                let what = format!("cannot revoke {}", request.node);
                ControlError::new("revocation", what, why, "see the journal")
            };
            running.node.revoke(&signed, now).map_err(|refusal| failed(refusal.to_string()))?;
            // What is said to be done survives a crash.
            self.state
                .save_revocations(&running.node.anchors().encode_revocations())
                .map_err(|error| failed(error.to_string()))?;
        }
        Ok(running.revocation_reply(&target, before))
    }
}

/// Nodes of one name that are no members any more get some letters of their keys, as members do.
fn tell_apart(nodes: &mut [NodeInfo]) {
    let mut count: BTreeMap<String, u32> = BTreeMap::new();
    nodes.iter().for_each(|node| *count.entry(node.name.clone()).or_default() += 1);
    for node in nodes.iter_mut().filter(|node| node.state != "member") {
        if count.get(&node.name).is_some_and(|count| *count > 1)
            && let Ok(key) = node.id.parse::<NodeKey>()
        {
            node.name = format!("{}~{}", node.name, key.short());
        }
    }
}

fn no_such_node(text: &str) -> ControlError {
    let shown: String = text.chars().take(80).collect();
    ControlError::new(
        "node_not_found",
        format!("no node {shown:?}"),
        "nobody of that name or id is known here",
        "`meshctl node list -o wide` shows names and ids",
    )
}

/// Whom a revocation means.
struct Target {
    key: NodeKey,
    name: NodeName,
    record: Option<Arc<Record>>,
}

impl Running {
    /// Who is meant, and whether it was revoked before; an error when this host may not do it.
    fn revocable(&self, text: &str) -> Result<(Target, bool), ControlError> {
        let target = self.target(text)?;
        if target.key == self.node.key() {
            return Err(ControlError::new(
                "bad_request",
                format!("cannot revoke {text}"),
                "that is this host",
                "`meshctl leave` ends this host's membership",
            ));
        }
        let before = self.node.anchors().revocation(&target.key).is_some();
        if !before && self.signer.is_none() {
            return Err(not_a_signer("revoke a node"));
        }
        Ok((target, before))
    }

    fn revocation_reply(&self, target: &Target, before: bool) -> RevokeNodeReply {
        let own = self.node.key();
        let present = self
            .node
            .directory()
            .iter()
            .filter(|record| record.key != own)
            .filter(|record| {
                let liveness = self.node.liveness(&record.key);
                matches!(liveness, Some((Liveness::Alive | Liveness::Suspect, _)))
            })
            .count();
        let prefixes = target.record.iter().flat_map(|record| &record.prefixes);
        RevokeNodeReply {
            name: target.name.to_string(),
            id: target.key.to_string(),
            members: u32::try_from(present).unwrap_or(u32::MAX),
            before,
            prefixes: prefixes.map(ToString::to_string).collect(),
        }
    }

    fn target(&self, text: &str) -> Result<Target, ControlError> {
        let directory = self.node.directory();
        if let Ok(key) = text.parse::<NodeKey>() {
            let record = directory.get(&key).cloned();
            let known = record.as_ref().map(|record| record.name.clone());
            let admitted = || self.signer.as_ref().and_then(|signer| signer.name_of(&key)).cloned();
            let revoked = || self.node.anchors().revocation(&key).map(|r| r.name.clone());
            let name = known.or_else(admitted).or_else(revoked);
            let name = name.ok_or_else(|| no_such_node(text))?;
            return Ok(Target { key, name, record });
        }
        let found = directory.by_name(text);
        // Who has left has ended its membership itself: a name means others first, and it only when nobody else had it.
        if found.iter().all(|record| record.left)
            && let Some(target) = self.admitted_target(text).or_else(|| self.absent_target(text))
        {
            return Ok(target);
        }
        let record = one_of(&found, text)?.clone();
        Ok(Target { key: record.key, name: record.name.clone(), record: Some(record) })
    }

    /// Somebody whom the directory does not hold: off for long, revoked before, or barred.
    fn absent_target(&self, text: &str) -> Option<Target> {
        // As `tell_apart` names them.
        let (name, short) = text.split_once('~').unwrap_or((text, ""));
        let is_meant = |other: &NodeName, key: &NodeKey| {
            other.as_str() == name && key.to_string().starts_with(short)
        };
        let mut barred = self.node.barred();
        if let Some(record) = barred.find(|record| is_meant(&record.name, &record.key)) {
            let (key, name) = (record.key, record.name.clone());
            return Some(Target { key, name, record: Some(record.clone()) });
        }
        let mut revoked = self.node.anchors().all_revocations();
        if let Some(one) = revoked.find(|one| is_meant(&one.name, &one.key)) {
            return Some(Target { key: one.key, name: one.name.clone(), record: None });
        }
        None
    }

    /// Somebody of that name whom this signer admitted, who was not revoked and has not left.
    fn admitted_target(&self, text: &str) -> Option<Target> {
        let name: NodeName = text.parse().ok()?;
        let counts = |key: &NodeKey| {
            let left = self.node.directory().get(key).is_some_and(|record| record.left);
            !left && self.node.anchors().revocation(key).is_none()
        };
        let admitted = self.signer.as_ref()?.admitted_as(&name).map(|one| one.key);
        let key = admitted.collect::<Vec<_>>().into_iter().rfind(counts)?;
        Some(Target { key, name, record: None })
    }

    fn node_info(&self, record: &Record) -> NodeInfo {
        let own = record.key == self.node.key();
        let liveness = self.node.liveness(&record.key).map_or(Liveness::Suspect, |(l, _)| l);
        NodeInfo {
            name: self.node.directory().display_name(&record.key),
            id: record.key.to_string(),
            state: if record.left { "left" } else { "member" }.to_owned(),
            gossip: (!own).then(|| liveness.as_str().to_owned()),
            zone: record.zone.to_string(),
            groups: record.certificate.groups.clone(),
            mesh_addresses: record.mesh_addresses.iter().map(|a| a.addr().to_string()).collect(),
            prefixes: record.prefixes.iter().map(ToString::to_string).collect(),
            certificate_not_after: rfc3339(record.certificate.not_after),
            revoked_at: None,
            self_: own,
            version: record.software_version.clone(),
        }
    }

    /// Each once, though several signers may have revoked it.
    fn revoked_nodes(&self) -> impl Iterator<Item = NodeInfo> {
        let mut last = None;
        let all = self.node.anchors().all_revocations();
        let each = all.filter(move |one| last.replace(one.key) != Some(one.key));
        each.map(|revocation| NodeInfo {
            name: revocation.name.to_string(),
            id: revocation.key.to_string(),
            state: "revoked".to_owned(),
            revoked_at: rfc3339(revocation.revoked_at),
            ..NodeInfo::default()
        })
    }
}
