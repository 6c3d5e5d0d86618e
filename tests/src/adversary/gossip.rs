//! Exchanges that say what is not so.

use anyhow::{Result, bail};
use bytes::Bytes;
use meshd_proto::wire;
use wire::frame::Body;

use super::{attack::Attack, link::Link};

/// Entries of one frame.
const ENTRIES: usize = 1_000;
/// Together more work than a member may cause.
const FRAMES: usize = 400;
/// Digests that claim everything.
const DIGESTS: usize = 20;

/// Tells one lie.
pub(super) async fn attack(attack: Attack, link: &mut Link) -> Result<()> {
    match attack {
        Attack::LyingDigest => {
            for _ in 0..DIGESTS {
                let root = wire::SyncRoot {
                    exchange: rand::random(),
                    root: random(32),
                    bundle_version: u64::MAX,
                    records: u32::MAX,
                    revocations: random(32),
                    signer_time: i64::MAX,
                    reports: random(32),
                };
                link.send(Body::SyncRoot(root)).await?;
            }
            link.receive(|body| matches!(body, Body::SyncBuckets(_)).then_some(())).await?;
        }
        Attack::InventedEntries => {
            for _ in 0..FRAMES {
                let entries = wire::SyncEntries {
                    exchange: rand::random(),
                    buckets: (0..=255).collect(),
                    entries: invented(ENTRIES),
                    answer: false,
                };
                link.send(Body::SyncEntries(entries)).await?;
            }
        }
        Attack::OversizedAnnouncement => {
            let records = invented(ENTRIES + 500);
            link.send(Body::Announce(wire::Announce { records })).await?;
        }
        _ => bail!("{} is not about exchanges", attack.name()),
    }
    Ok(())
}

fn invented(count: usize) -> Vec<wire::RecordKey> {
    let one = |_| wire::RecordKey {
        identity_key: random(32),
        version: rand::random(),
        payload_hash: random(8),
    };
    (0..count).map(one).collect()
}

fn random(length: usize) -> Bytes {
    (0..length).map(|_| rand::random::<u8>()).collect()
}
