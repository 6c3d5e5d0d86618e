//! Which sizes a probe can have, and which to try next.
//!
//! All sizes are bytes of an IP packet inside the tunnel. WireGuard pads what it encrypts to a multiple of 16, but
//! not beyond the MTU of the route that the packet takes; of a packet above that MTU only the remainder of a
//! division by it is padded. A probe measures what is on the wire, so only sizes to which nothing is added are
//! used: [`reachable`].

use std::net::SocketAddr;

/// What every path is taken to carry until it is known better, and what IPv6 must have (RFC 8200, 5).
pub const BASE: u32 = 1_280;
/// What is given to a path that carries nothing else: the packet that every IPv4 host must take (RFC 791, 3.1).
pub const SMALLEST: u32 = 576;
/// A packet that every path carries, to tell a path that is too small from one that is not answered on.
pub(super) const CONTROL: u32 = 64;
/// Padding of WireGuard (WireGuard, 5.4.6).
pub(super) const UNIT: u32 = 16;
/// Bytes that WireGuard adds over IPv4: 20 IP, 8 UDP, 32 its own (16 header, 16 tag).
pub const OVERHEAD_V4: u32 = 60;
/// Bytes that WireGuard adds over IPv6.
pub const OVERHEAD_V6: u32 = 80;
/// Sizes that underlays have, by falling rank: jumbo frames of clouds and switches, Ethernet, and it less what
/// PPPoE, GRE, IPsec, VXLAN, Geneve and WireGuard itself take.
const USUAL: [u32; 16] = [
    9_001, 9_000, 8_950, 8_896, 8_500, 4_000, 3_900, 1_500, 1_492, 1_476, 1_460, 1_450, 1_420,
    1_400, 1_360, 1_340,
];
/// Below the base.
const USUAL_SMALL: [u32; 3] = [1_320, 1_300, 1_280];

/// What WireGuard adds to a packet sent to `endpoint`.
#[must_use]
pub fn overhead(endpoint: &SocketAddr) -> u32 {
    if endpoint.ip().to_canonical().is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 }
}

/// Bytes that a packet of `size` has after padding; `pad` is the MTU that padding goes by.
fn padded(size: u32, pad: u32) -> u32 {
    let last = if size > pad { size % pad.max(1) } else { size };
    size - last + last.next_multiple_of(UNIT).min(pad.max(last))
}

/// The largest size up to `size` to which nothing is added.
pub(super) fn reachable(size: u32, pad: u32) -> u32 {
    let last = if size >= pad { size % pad.max(1) } else { size };
    size - last % UNIT
}

/// The smallest such size above `size`.
pub(super) fn next_above(size: u32, pad: u32) -> u32 {
    let above = size + 1..=size + 2 * UNIT;
    above.clone().find(|larger| padded(*larger, pad) == *larger).unwrap_or(*above.end())
}

/// The size to begin with: the smallest from 1,280 from which `largest` can be probed exactly. `follows` is false
/// where padding does not go by the route.
pub(super) fn base(largest: u32, follows: bool) -> u32 {
    let exact = |base: &u32| reachable(largest, *base) == largest;
    let base = if follows { (BASE..BASE + UNIT).find(exact) } else { None };
    base.unwrap_or(BASE).min(largest.max(SMALLEST))
}

/// What lies between two sizes: `low` is carried, `high` is not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gap {
    pub(super) low: u32,
    pub(super) high: u32,
    pub(super) pad: u32,
    pub(super) overhead: u32,
}

impl Gap {
    /// The size to try next and whether it is a usual one, or nothing when no probe can tell more.
    pub(super) fn middle(&self) -> Option<(u32, bool)> {
        let usual = USUAL.iter().chain(&USUAL_SMALL);
        let usual = usual.map(|outer| reachable(outer.saturating_sub(self.overhead), self.pad));
        let usual: Vec<u32> = usual.filter(|size| self.holds(*size)).collect();
        if let Some(size) = usual.get(usual.len() / 2) {
            return Some((*size, true));
        }
        let middle = reachable(self.low.midpoint(self.high), self.pad);
        let middle = if middle > self.low { middle } else { next_above(self.low, self.pad) };
        self.holds(middle).then_some((middle, false))
    }

    /// The size right above what is carried.
    pub(super) fn above(&self) -> Option<(u32, bool)> {
        let above = next_above(self.low, self.pad);
        self.holds(above).then_some((above, false))
    }

    /// The largest size that may be carried.
    pub(super) fn top(&self) -> Option<(u32, bool)> {
        let top = reachable(self.high - 1, self.pad);
        self.holds(top).then_some((top, false))
    }

    /// The size to try where only the route's MTU keeps sizes apart: a usual one, then the one above it, or the middle.
    pub(super) fn exact(&self) -> Option<u32> {
        let usual =
            || USUAL.iter().chain(&USUAL_SMALL).map(|outer| outer.saturating_sub(self.overhead));
        let size = match usual().find(|size| self.holds(*size)) {
            Some(size) => size,
            None if usual().any(|size| size == self.low) => self.low + 1,
            None => self.low.midpoint(self.high),
        };
        self.holds(size).then_some(size)
    }

    fn holds(&self, size: u32) -> bool {
        size > self.low && size < self.high
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn padding_is_wireguards() {
        // (size, route MTU, bytes that are encrypted), as captured.
        for (size, pad, wire) in [
            (1_228, 1_280, 1_232),
            (1_280, 1_280, 1_280),
            (1_281, 1_280, 1_296),
            (1_328, 1_280, 1_328),
        ] {
            assert_eq!(padded(size, pad), wire, "{size} over {pad}");
        }
        assert_eq!(padded(1_418, 1_420), 1_420);
    }

    #[test]
    fn the_first_size_lets_the_largest_be_probed_exactly() {
        assert_eq!(base(1_440, true), 1_280);
        assert_eq!(base(1_420, true), 1_292);
        assert_eq!(base(8_940, true), 1_282);
        assert_eq!(base(1_420, false), 1_280);
        assert_eq!(base(1_240, true), 1_240);
    }

    proptest! {
        #[test]
        fn what_is_reachable_is_not_padded(size in 64_u32..20_000, pad in 1_280_u32..9_000) {
            let found = reachable(size, pad);
            prop_assert!(found <= size && found + UNIT > size);
            prop_assert_eq!(padded(found, pad), found);
            let above = next_above(size, pad);
            prop_assert!(above > size && padded(above, pad) == above);
        }

        #[test]
        fn halving_ends(low in 576_u32..9_000, width in 1_u32..9_000, pad in 1_280_u32..9_000, fits in any::<u64>()) {
            let mut gap = Gap { low, high: low + width, pad, overhead: 60 };
            let mut steps = 0;
            while let Some((size, _)) = gap.middle() {
                prop_assert!(size > gap.low && size < gap.high);
                if fits >> (steps % 64) & 1 == 0 { gap.low = size } else { gap.high = size }
                steps += 1;
                prop_assert!(steps <= 20, "{:?}", gap);
            }
        }
    }
}
