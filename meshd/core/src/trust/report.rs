//! What a member says it saw of another: signed, since others pass it on.
//!
//! Responsible for form and signature. Whether its author may say so, and what follows, is decided by
//! [`node`](crate::node).

use bytes::Bytes;
use meshd_proto::{MeshId, NodeKey, wire};
use prost::Message;

use super::{
    identity::NodeIdentity,
    signing::{self, Kind},
};
use crate::{
    limits,
    refusal::{Code, Refusal},
};

/// What one member saw of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Who was watched.
    pub watched: NodeKey,
    /// In the watched member's record that the watcher held.
    pub generation: u64,
    /// It did not answer; otherwise the watcher takes back that it did not.
    pub down: bool,
    /// Who watched.
    pub watcher: NodeKey,
    /// In the watcher's own record.
    pub watcher_generation: u64,
    /// Of one watcher's reports of one member the highest counts.
    pub number: u64,
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Code::Malformed, format!("report: {why}"))
}

impl Report {
    /// Reads what was signed. Says nothing about the signature.
    ///
    /// # Errors
    /// What is wrong with its form.
    pub fn read(payload: &[u8]) -> Result<Self, Refusal> {
        if payload.len() > limits::REPORT {
            let why = format!("report of {} bytes, at most {}", payload.len(), limits::REPORT);
            return Err(Refusal::new(Code::TooLarge, why));
        }
        let report = wire::Report::decode(payload).map_err(|_| malformed("not Protobuf"))?;
        let key = |bytes: &[u8]| NodeKey::try_from(bytes).map_err(|e| malformed(&e.to_string()));
        let down = match report.state() {
            wire::SwimState::Down => true,
            wire::SwimState::Alive => false,
            wire::SwimState::Suspect | wire::SwimState::Unspecified => {
                return Err(malformed("neither alive nor down"));
            }
        };
        let (watched, watcher) = (key(&report.watched)?, key(&report.watcher)?);
        if watched == watcher {
            return Err(malformed("of its own author"));
        }
        Ok(Self {
            watched,
            generation: report.generation,
            down,
            watcher,
            watcher_generation: report.watcher_generation,
            number: report.number,
        })
    }

    /// Whether the watcher's identity signed it in this mesh.
    ///
    /// # Errors
    /// That it did not.
    pub fn verify(&self, signed: &wire::SignedReport, mesh: &MeshId) -> Result<(), Refusal> {
        signing::verify(&self.watcher.0, Kind::Report, mesh, &signed.payload, &signed.signature)
    }

    /// Signs it, as the watcher.
    #[must_use]
    pub fn sign(&self, identity: &NodeIdentity) -> wire::SignedReport {
        let state = if self.down { wire::SwimState::Down } else { wire::SwimState::Alive };
        let payload = wire::Report {
            watched: Bytes::copy_from_slice(&self.watched.0),
            generation: self.generation,
            state: state.into(),
            watcher: Bytes::copy_from_slice(&self.watcher.0),
            watcher_generation: self.watcher_generation,
            number: self.number,
        }
        .encode_to_vec();
        let signature = identity.key.sign(Kind::Report, &identity.certificate.mesh_id, &payload);
        wire::SignedReport { payload: payload.into(), signature: signature.to_vec().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(state: wire::SwimState, watched: &[u8], watcher: &[u8]) -> Vec<u8> {
        wire::Report {
            watched: Bytes::copy_from_slice(watched),
            generation: u64::MAX,
            state: state.into(),
            watcher: Bytes::copy_from_slice(watcher),
            watcher_generation: u64::MAX,
            number: u64::MAX,
        }
        .encode_to_vec()
    }

    #[test]
    fn the_largest_report_fits_and_is_read_as_it_was_written() {
        let bytes = payload(wire::SwimState::Down, &[1; 32], &[2; 32]);
        assert!(bytes.len() <= limits::REPORT, "{}", bytes.len());
        let report = Report::read(&bytes).unwrap();
        assert_eq!((report.watched, report.watcher), (NodeKey([1; 32]), NodeKey([2; 32])));
        assert!(report.down && report.number == u64::MAX && report.generation == u64::MAX);
        let back = Report::read(&payload(wire::SwimState::Alive, &[1; 32], &[2; 32])).unwrap();
        assert!(!back.down);
    }

    #[test]
    fn what_no_member_would_write_is_refused() {
        let down = wire::SwimState::Down;
        for bytes in [
            payload(wire::SwimState::Suspect, &[1; 32], &[2; 32]),
            payload(wire::SwimState::Unspecified, &[1; 32], &[2; 32]),
            payload(down, &[1; 31], &[2; 32]),
            payload(down, &[1; 32], &[]),
            payload(down, &[1; 32], &[1; 32]),
            vec![0xff; 40],
            vec![0; limits::REPORT + 1],
        ] {
            assert!(Report::read(&bytes).is_err(), "{bytes:?}");
        }
    }
}
