//! Whether a glance at the peers shows anything that a plan could be about. Counters and the times of handshakes change
//! all the time; a plan is compared with the kernel again only when something else has.

use std::collections::BTreeMap;

use meshd_proto::WgPublicKey;

use super::types::ObservedPeer;
use crate::limits::HANDSHAKE_FRESH;

/// Nothing that plans are about is another than `before`.
#[must_use]
pub fn are_set_as(
    peers: &BTreeMap<WgPublicKey, ObservedPeer>,
    before: &BTreeMap<WgPublicKey, ObservedPeer>,
) -> bool {
    peers.len() == before.len()
        && peers
            .iter()
            .zip(before)
            .all(|((key, peer), (old_key, old))| key == old_key && is_set_as(peer, old))
}

fn is_set_as(peer: &ObservedPeer, before: &ObservedPeer) -> bool {
    // Named one by one, so that a field that is added must be thought of.
    let ObservedPeer {
        allowed_ips,
        endpoint,
        keepalive,
        preshared_key,
        last_handshake: _,
        rx_bytes: _,
        tx_bytes: _,
    } = peer;
    *allowed_ips == before.allowed_ips
        && *endpoint == before.endpoint
        && *keepalive == before.keepalive
        && *preshared_key == before.preshared_key
        && works(peer) == works(before)
}

/// An endpoint that works is left as it is, see `diff`.
fn works(peer: &ObservedPeer) -> bool {
    peer.last_handshake.is_some_and(|age| age < HANDSHAKE_FRESH)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KEY: WgPublicKey = WgPublicKey([1; 32]);

    fn peers(change: impl FnOnce(&mut ObservedPeer)) -> BTreeMap<WgPublicKey, ObservedPeer> {
        let mut peer = ObservedPeer {
            allowed_ips: ["10.1.0.0/24".parse().unwrap()].into(),
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            last_handshake: Some(Duration::from_secs(5)),
            ..ObservedPeer::default()
        };
        change(&mut peer);
        BTreeMap::from([(KEY, peer)])
    }

    #[test]
    fn counters_and_times_are_nothing_new() {
        let later = peers(|peer| {
            (peer.rx_bytes, peer.tx_bytes) = (1, 2);
            peer.last_handshake = Some(HANDSHAKE_FRESH - Duration::from_secs(1));
        });
        assert!(are_set_as(&later, &peers(|_| ())));
    }

    #[test]
    fn whatever_a_plan_is_about_is() {
        let changes: [fn(&mut ObservedPeer); 7] = [
            |peer| peer.allowed_ips.clear(),
            |peer| peer.endpoint = None,
            |peer| peer.endpoint = Some("192.0.2.1:51821".parse().unwrap()),
            |peer| peer.keepalive = 25,
            |peer| peer.preshared_key.0[0] ^= 1,
            |peer| peer.last_handshake = None,
            |peer| peer.last_handshake = Some(HANDSHAKE_FRESH),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(!are_set_as(&peers(change), &peers(|_| ())), "change {number}");
        }
        let mut other = peers(|_| ());
        assert!(!are_set_as(&BTreeMap::new(), &other));
        let peer = other.remove(&KEY).unwrap();
        other.insert(WgPublicKey([2; 32]), peer);
        assert!(!are_set_as(&other, &peers(|_| ())), "another key");
    }
}
