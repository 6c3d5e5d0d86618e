//! Remembers verdicts on records: most that arrive were seen before, and a verdict costs three
//! signatures.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use meshd_proto::wire;
use sha2::{Digest, Sha256};

use super::{anchors::Anchors, record::Record, verify};
use crate::refusal::Refusal;

/// A bounded cache in front of [`verify::authenticate`]; the oldest verdict goes first.
///
/// Verdicts hold for one bundle of intermediates: a newer one empties the cache.
#[derive(Debug)]
pub struct VerifyCache {
    capacity: usize,
    bundle_version: u64,
    verdicts: BTreeMap<[u8; 32], Result<Arc<Record>, Refusal>>,
    order: VecDeque<[u8; 32]>,
    bytes: usize,
}

/// Bytes of records that are held at most, beside the capacity.
const BYTES: usize = 16 << 20;

impl VerifyCache {
    /// A cache of `capacity` verdicts.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            bundle_version: 0,
            verdicts: BTreeMap::new(),
            order: VecDeque::new(),
            bytes: 0,
        }
    }

    /// The verdict of [`verify::authenticate`].
    pub fn authenticate(
        &mut self,
        signed: &wire::SignedRecord,
        anchors: &Anchors,
    ) -> Result<Arc<Record>, Refusal> {
        if self.bundle_version != anchors.bundle_version() {
            self.bundle_version = anchors.bundle_version();
            self.verdicts.clear();
            self.order.clear();
            self.bytes = 0;
        }
        let key = key(signed);
        if let Some(verdict) = self.verdicts.get(&key) {
            return verdict.clone();
        }
        let verdict = verify::authenticate(signed, anchors);
        if self.capacity == 0 {
            return verdict;
        }
        self.bytes += size(&verdict);
        self.order.push_back(key);
        self.verdicts.insert(key, verdict.clone());
        while self.order.len() > self.capacity || self.bytes > BYTES {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(gone) = self.verdicts.remove(&oldest) {
                self.bytes -= size(&gone);
            }
        }
        verdict
    }

    /// Verdicts held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.verdicts.len()
    }

    /// True when no verdict is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.verdicts.is_empty()
    }
}

fn size(verdict: &Result<Arc<Record>, Refusal>) -> usize {
    match verdict {
        // The certificate is there a second time, parsed.
        Ok(record) => record.signed.payload.len() + 2 * record.signed.certificate.len(),
        Err(refusal) => refusal.detail.len(),
    }
}

/// Lengths go in, so that no byte can move from one field to the next under the same hash.
fn key(signed: &wire::SignedRecord) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [&signed.payload, &signed.signature, &signed.certificate] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::fixture::TestMesh;

    #[test]
    fn it_gives_the_same_verdicts_and_stays_within_its_capacity() {
        let mesh = TestMesh::new(1);
        let node = mesh.node("a", &[]);
        let mut cache = VerifyCache::new(3);
        for version in 0..10 {
            let signed = mesh.sign(&node, &Default::default(), version);
            let plain = verify::authenticate(&signed, &mesh.anchors);
            for _ in 0..2 {
                assert_eq!(cache.authenticate(&signed, &mesh.anchors), plain);
            }
            assert_eq!(plain.is_ok(), version > 0);
        }
        assert_eq!(cache.len(), 3);
    }

    #[test]
    fn a_newer_bundle_empties_it() {
        let mut mesh = TestMesh::new(1);
        let node = mesh.node("a", &[]);
        let mut cache = VerifyCache::new(3);
        let signed = mesh.sign(&node, &Default::default(), 1);
        assert!(cache.authenticate(&signed, &mesh.anchors).is_ok());
        let without = mesh.root.sign_bundle(&mesh.mesh_id, 2, &[]);
        mesh.anchors.install_bundle(&without).unwrap();
        assert!(cache.authenticate(&signed, &mesh.anchors).is_err());
    }
}
