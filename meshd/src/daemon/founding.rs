//! `meshctl init`: a new mesh, with this host as its first member and signer.

use ipnet::{IpNet, Ipv4Net};
use meshd_core::{
    address::{DEFAULT_IPV4_POOL, overlaps},
    trust::{InitParams, MeshInit, init_mesh},
};
use meshd_proto::control::{InitReply, InitRequest};

use super::{Daemon, clock, start::Since, tokens::prefixes};
use crate::{
    control::ControlError,
    state::{Authority, Membership, store::Store},
};

fn failed(code: &'static str, why: impl Into<String>, fix: impl Into<String>) -> ControlError {
    ControlError::new(code, "cannot make a mesh", why, fix)
}

impl Daemon {
    /// Everything is on disk before the daemon runs with it; the certificate comes last.
    pub(super) fn init(&mut self, request: &InitRequest) -> Result<InitReply, ControlError> {
        if let Some(running) = &self.running {
            let mesh = &running.identity.certificate.mesh;
            return Err(failed(
                "already_member",
                format!("this host is a member of {mesh}"),
                "`meshctl leave` first",
            ));
        }
        if self.is_joining_by_hand() {
            return Err(failed("already_joining", "a join is in progress", "wait for it"));
        }
        // A CNI that was set up a moment ago counts.
        self.look_at_host();
        let params = self.init_params(request)?;
        self.stop_unattended();
        let made = self.found(params);
        if made.is_err() {
            // What a person stopped goes on.
            self.join_unattended();
        }
        made
    }

    fn found(&mut self, params: InitParams) -> Result<InitReply, ControlError> {
        let state = |error: crate::state::StateError| {
            failed("state_dir", error.to_string(), "check the state directory")
        };
        let lane = self.state.lane(&rand::random()).map_err(state)?;
        let made = init_mesh(&params, clock::unix(), &mut rand::rng()).map_err(|refusal| {
            failed(refusal.refusal.code.as_str(), refusal.refusal.detail, refusal.fix)
        })?;
        self.keep(&made).map_err(state)?;
        let certificate = made.certificate.clone();
        let membership = Membership {
            anchors: made.anchors,
            identity: params.identity,
            certificate: (*made.certificate).clone(),
            lane,
            seeds: Vec::new(),
        };
        let store = Store::open(&self.state.store_path());
        self.become_member(membership, store, Since::Now)
            .map_err(|error| failed("state_dir", error.to_string(), "check the journal"))?;
        let text = |nets: Vec<IpNet>| nets.iter().map(ToString::to_string).collect();
        let granted =
            self.own.prefixes.iter().filter(|p| certificate.grants.iter().any(|g| g.prefix == **p));
        Ok(InitReply {
            mesh: certificate.mesh.to_string(),
            node: certificate.name.to_string(),
            id: certificate.key.to_string(),
            mesh_addresses: certificate
                .mesh_addresses()
                .iter()
                .map(|a| a.addr().to_string())
                .collect(),
            prefixes: text(granted.copied().collect()),
            not_granted: text(made.not_granted),
        })
    }

    fn init_params(&self, request: &InitRequest) -> Result<InitParams, ControlError> {
        let mesh = request.mesh.parse().map_err(|error: meshd_proto::NameError| {
            failed("bad_request", error.to_string(), "give another --mesh")
        })?;
        let node = self.config.node_name(&self.own.facts.name).map_err(|error| {
            failed("bad_name", error.to_string(), "set [node] name and restart meshd")
        })?;
        let ipv4_pool = self.pool(&request.ipv4_pool)?;
        let allow = prefixes(&request.allow, "--allow")?;
        let mut granted = prefixes(&request.prefixes, "--prefix")?;
        if allow.is_empty() {
            // Whoever makes the mesh may announce what this host routes for today.
            granted.extend(
                self.own
                    .prefixes
                    .iter()
                    .filter(|p| !granted.contains(p))
                    .copied()
                    .collect::<Vec<_>>(),
            );
        }
        let identity = self
            .state
            .identity(&rand::random())
            .map_err(|error| failed("state_dir", error.to_string(), "check the state directory"))?;
        Ok(InitParams {
            mesh,
            node,
            identity,
            prefixes: granted,
            allow,
            pools: prefixes(&request.workloads, "--workloads")?,
            wanted: self.own.wanted(&self.config),
            ipv4_pool,
        })
    }

    /// A pool that is part of a network of this host would cut that network off.
    fn pool(&self, text: &str) -> Result<Ipv4Net, ControlError> {
        let text = if text.is_empty() { DEFAULT_IPV4_POOL } else { text };
        let pool: Ipv4Net = text.parse().map_err(|_| {
            failed(
                "bad_request",
                format!("{text:?} is no IPv4 prefix"),
                "give e.g. --ipv4-pool 100.112.0.0/16",
            )
        })?;
        let pool = pool.trunc();
        let local = self.own.local_network(&self.config, &[]);
        let taken = local
            .addresses
            .iter()
            .chain(&self.own.prefixes)
            .find(|net| overlaps(&net.trunc(), &IpNet::V4(pool)));
        match taken {
            None => Ok(pool),
            Some(net) => Err(failed(
                "pool_overlaps",
                format!("the pool {pool} overlaps {net} of this host"),
                "give a free prefix with --ipv4-pool",
            )),
        }
    }

    fn keep(&self, made: &MeshInit) -> Result<(), crate::state::StateError> {
        // An earlier attempt may have got as far as its ledger.
        self.state.set_authority_aside()?;
        self.state.append_ledger(&made.ledger)?;
        self.state.save_authority(&Authority {
            root_seed: Some(made.root.seed()),
            intermediate: made.intermediate.der().to_vec(),
            intermediate_seed: made.intermediate.seed(),
        })?;
        self.state.save_membership(&made.anchors, &made.certificate, &[])
    }
}
