//! Who has a prefix when more than one claims it.
//!
//! The rules are the protocol's ("One prefix, two claimants"), the same at every member. For one
//! prefix: the claim on the longest grant; then the living before the dead; then the lowest
//! SHA-256("meshd-prefix-v1" ‖ mesh id ‖ address ‖ length ‖ enrolment id), address 4 or 16 bytes,
//! length one byte. For a prefix within another's: the longer one stands when its grant is at least
//! as long as that of the claim around it, else it has no effect. A claim that lost against an equal
//! one, or within another, does no harm to a third.
//!
//! Called by the planner. Does not ask whether this host can route to the winner.

use std::{cmp::Reverse, collections::BTreeMap};

use ipnet::IpNet;
use meshd_proto::{MeshId, NodeKey};
use sha2::{Digest, Sha256};

use super::prefixes::{PrefixMap, is_v6};
use crate::trust::Grant;

/// The rank of a ULA above every grant: it follows from the identity key, so nothing that a signer
/// wrote can be a better right to it.
pub const DERIVED: u8 = 129;

/// One claimant, as far as the rules look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimant {
    /// Who.
    pub key: NodeKey,
    /// From the certificate.
    pub enrolment_id: [u8; 16],
    /// Down for 30 s, no handshake for 180 s, and what was sent stayed without an answer.
    pub dead: bool,
}

/// Why a claim has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Who has the better right.
    pub to: NodeKey,
    /// On which prefix: the same, or one around it.
    pub within: IpNet,
}

/// What the claims of all members come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// The holder of each prefix.
    pub winners: BTreeMap<IpNet, NodeKey>,
    /// Claims without effect.
    pub lost: BTreeMap<(NodeKey, IpNet), Lost>,
}

/// Length of the longest grant that permits to claim `prefix`; `None` when none does.
#[must_use]
pub fn grant_length(grants: &[Grant], prefix: &IpNet) -> Option<u8> {
    grants
        .iter()
        .filter(|grant| match grant.claim_len {
            None => grant.prefix.trunc() == prefix.trunc(),
            Some(length) => grant.prefix.contains(prefix) && prefix.prefix_len() == length,
        })
        .map(|grant| grant.prefix.prefix_len())
        .max()
}

/// How good a right is, as far as it can be said without drawing lots: lower is better.
type Right = (Reverse<u8>, bool);

#[derive(Debug)]
struct Claim {
    prefix: IpNet,
    claimant: Claimant,
    right: Right,
}

impl Claim {
    /// From the shortest prefix on, so that whether a claim stands is known before what lies within it.
    fn order(&self) -> (bool, u8, IpNet) {
        (is_v6(&self.prefix), self.prefix.prefix_len(), self.prefix)
    }
}

/// Collects claims, then decides.
#[derive(Debug)]
pub struct Contest<'a> {
    mesh: &'a MeshId,
    claims: Vec<Claim>,
}

impl<'a> Contest<'a> {
    /// No claims yet.
    #[must_use]
    pub fn new(mesh: &'a MeshId) -> Self {
        Self { mesh, claims: Vec::new() }
    }

    /// Adds `claimant`'s claim on `prefix` that rests on a grant of `grant_length`. Twice the same
    /// claim is one, on the longer grant.
    pub fn add(&mut self, claimant: &Claimant, prefix: IpNet, grant_length: u8) {
        let right = (Reverse(grant_length), claimant.dead);
        self.claims.push(Claim { prefix: prefix.trunc(), claimant: *claimant, right });
    }

    /// Applies the rules.
    #[must_use]
    pub fn decide(mut self) -> Claims {
        self.claims.sort_unstable_by_key(Claim::order);
        let mut lost = BTreeMap::new();
        let mut winners = Vec::new();
        let mut standing: PrefixMap<(NodeKey, Reverse<u8>)> = PrefixMap::default();
        for claims in self.claims.chunk_by(|one, other| one.prefix == other.prefix) {
            let Some(best) = self.best(claims) else { continue };
            let (prefix, winner, grant) = (best.prefix, best.claimant.key, best.right.0);
            for loser in claims.iter().map(|claim| claim.claimant.key).filter(|key| *key != winner)
            {
                lost.insert((loser, prefix), Lost { to: winner, within: prefix });
            }
            let around = standing
                .covering(&prefix)
                .find(|(_, (holder, its_grant))| *holder != winner && *its_grant < grant);
            if let Some((within, (holder, _))) = around {
                lost.insert((winner, prefix), Lost { to: *holder, within });
            } else {
                winners.push((prefix, winner));
                standing.insert(prefix, (winner, grant));
            }
        }
        Claims { winners: winners.into_iter().collect(), lost }
    }

    /// The best of `claims`, which are all on one prefix. Nearly always there is but one, and no lot to draw.
    fn best<'c>(&self, claims: &'c [Claim]) -> Option<&'c Claim> {
        match claims {
            [only] => Some(only),
            claims => claims.iter().min_by_key(|claim| {
                let lot = lot(self.mesh, &claim.prefix, &claim.claimant.enrolment_id);
                (claim.right, lot, claim.claimant.key)
            }),
        }
    }
}

/// Draws the lot of the last rule: differs by prefix, so that nobody wins everywhere.
fn lot(mesh: &MeshId, prefix: &IpNet, enrolment_id: &[u8; 16]) -> [u8; 32] {
    let digest = Sha256::new().chain_update(b"meshd-prefix-v1").chain_update(mesh.0);
    let digest = match prefix {
        IpNet::V4(v4) => digest.chain_update(v4.network().octets()),
        IpNet::V6(v6) => digest.chain_update(v6.network().octets()),
    };
    digest.chain_update([prefix.prefix_len()]).chain_update(enrolment_id).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: MeshId = MeshId([7; 16]);

    fn claimant(number: u8) -> Claimant {
        Claimant { key: NodeKey([number; 32]), enrolment_id: [number; 16], dead: false }
    }

    fn dead(number: u8) -> Claimant {
        Claimant { dead: true, ..claimant(number) }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// The winners of claims given as (claimant, prefix, grant length).
    fn decide(claims: &[(Claimant, &str, u8)]) -> Claims {
        let mut contest = Contest::new(&MESH);
        for (claimant, prefix, grant) in claims {
            contest.add(claimant, net(prefix), *grant);
        }
        let decided = contest.decide();
        let mut reversed = Contest::new(&MESH);
        for (claimant, prefix, grant) in claims.iter().rev().chain(claims) {
            reversed.add(claimant, net(prefix), *grant);
        }
        assert_eq!(reversed.decide(), decided, "order and repetition do not matter");
        decided
    }

    fn winner(claims: &[(Claimant, &str, u8)], prefix: &str) -> Option<u8> {
        decide(claims).winners.get(&net(prefix)).map(|key| key.0[0])
    }

    #[test]
    fn the_longest_grant_wins_even_for_the_dead() {
        let claims = [(claimant(1), "10.1.1.0/24", 16), (dead(2), "10.1.1.0/24", 24)];
        assert_eq!(winner(&claims, "10.1.1.0/24"), Some(2));
    }

    #[test]
    fn of_equal_grants_the_dead_come_last() {
        for (a, b) in [(1, 2), (2, 1)] {
            let claims = [(dead(a), "10.1.1.0/24", 16), (claimant(b), "10.1.1.0/24", 16)];
            assert_eq!(winner(&claims, "10.1.1.0/24"), Some(b));
        }
    }

    #[test]
    fn otherwise_the_lot_decides_and_differs_by_prefix() {
        let mut won = BTreeMap::new();
        for third in 0..64_u8 {
            let prefix = format!("10.1.{third}.0/24");
            let claims = [(claimant(1), prefix.as_str(), 16), (claimant(2), &prefix, 16)];
            let expected =
                [1, 2].into_iter().min_by_key(|number| lot(&MESH, &net(&prefix), &[*number; 16]));
            assert_eq!(winner(&claims, &prefix), expected);
            *won.entry(winner(&claims, &prefix)).or_insert(0) += 1;
        }
        assert!(won.values().all(|count| *count > 16), "{won:?}");
    }

    #[test]
    fn a_nested_prefix_stands_only_on_a_grant_as_long_as_that_around_it() {
        let wide = (claimant(1), "10.1.0.0/16", 16);
        let own_grant = [wide, (claimant(2), "10.1.1.0/24", 24)];
        assert_eq!(winner(&own_grant, "10.1.1.0/24"), Some(2));
        assert_eq!(winner(&own_grant, "10.1.0.0/16"), Some(1));
        let same_length = [wide, (claimant(2), "10.1.1.0/24", 16)];
        assert_eq!(winner(&same_length, "10.1.1.0/24"), Some(2));
        let from_pool = decide(&[wide, (claimant(2), "10.1.1.0/24", 8)]);
        assert_eq!(from_pool.winners.get(&net("10.1.1.0/24")), None);
        let lost = from_pool.lost[&(NodeKey([2; 32]), net("10.1.1.0/24"))];
        assert_eq!((lost.to, lost.within), (NodeKey([1; 32]), net("10.1.0.0/16")));
        let own = decide(&[wide, (claimant(1), "10.1.1.0/24", 8)]);
        assert!(own.lost.is_empty(), "a member may nest its own");
    }

    #[test]
    fn a_claim_without_effect_harms_no_third() {
        let claims = [
            (claimant(1), "10.0.0.0/8", 8),
            (claimant(1), "10.1.0.0/16", 16),
            (claimant(2), "10.1.0.0/16", 8),
            (claimant(3), "10.1.1.0/24", 12),
            (claimant(4), "10.2.0.0/16", 4),
            (claimant(5), "10.2.1.0/24", 8),
        ];
        assert_eq!(winner(&claims, "10.1.1.0/24"), None, "within 1's /16 on a longer grant");
        assert_eq!(winner(&claims, "10.2.0.0/16"), None);
        assert_eq!(winner(&claims, "10.2.1.0/24"), Some(5), "4's claim has no effect");
    }

    #[test]
    fn only_a_grant_that_permits_the_claim_counts() {
        let pool = Grant { prefix: net("10.0.0.0/8"), claim_len: Some(24) };
        let exact = Grant { prefix: net("10.1.1.0/24"), claim_len: None };
        let grants = [pool, exact];
        assert_eq!(grant_length(&grants, &net("10.1.1.0/24")), Some(24));
        assert_eq!(grant_length(&grants, &net("10.1.2.0/24")), Some(8));
        assert_eq!(grant_length(&grants, &net("10.1.2.0/25")), None);
        assert_eq!(grant_length(&grants, &net("10.1.1.0/25")), None);
    }
}
