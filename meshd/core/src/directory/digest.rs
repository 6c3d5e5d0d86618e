//! The hashes that anti-entropy compares: 256 buckets of sorted (key, version, payload hash).

use std::{ops::RangeInclusive, sync::OnceLock};

use meshd_proto::NodeKey;
use sha2::{Digest as _, Sha256};

use crate::trust::Record;

/// How many buckets a directory has.
pub const BUCKETS: usize = 256;

/// The bucket hashes of a directory. An empty bucket is zeros.
#[derive(Debug)]
pub(super) struct Digest {
    buckets: Box<[[u8; 8]; BUCKETS]>,
    root: OnceLock<[u8; 32]>,
}

impl Default for Digest {
    fn default() -> Self {
        Self { buckets: Box::new([[0; 8]; BUCKETS]), root: OnceLock::new() }
    }
}

impl Digest {
    pub(super) fn set(&mut self, bucket: u8, hash: [u8; 8]) {
        self.buckets[usize::from(bucket)] = hash;
        self.root = OnceLock::new();
    }

    pub(super) fn hashes(&self) -> &[[u8; 8]] {
        self.buckets.as_slice()
    }

    pub(super) fn root(&self) -> [u8; 32] {
        *self.root.get_or_init(|| Sha256::digest(self.buckets.as_flattened()).into())
    }
}

/// The bucket of an identity: the first byte of its key, which is as good as random.
pub(crate) fn bucket_of(key: &NodeKey) -> u8 {
    key.0[0]
}

/// All keys of a bucket.
pub(super) fn range_of(bucket: u8) -> RangeInclusive<NodeKey> {
    let (mut low, mut high) = ([0; 32], [0xff; 32]);
    (low[0], high[0]) = (bucket, bucket);
    NodeKey(low)..=NodeKey(high)
}

/// First 8 bytes of SHA-256 over the entries of a bucket, in the order of their keys.
pub(super) fn hash<'a>(records: impl Iterator<Item = &'a Record>) -> [u8; 8] {
    let mut hasher = Sha256::new();
    let mut empty = true;
    for record in records {
        empty = false;
        hasher.update(record.key.0);
        hasher.update(record.version.to_be_bytes());
        hasher.update(record.payload_hash);
    }
    let mut short = [0; 8];
    if !empty {
        short.copy_from_slice(&hasher.finalize()[..8]);
    }
    short
}
