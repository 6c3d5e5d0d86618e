//! Hosts that other zones reach through gateways of their own zone.
//!
//! A host that cannot be reached from outside its zone names the gateway by which it is reached *now* in its own signed
//! record (`via`). So everybody follows one value, and nobody can attract what is another's. The gateway consents by a
//! capability in its own record. Responsible for what such a value comes to ([`carrier`]), for the next hop between any two
//! members ([`next_hop`]), and for which gateway this host names ([`Choice`], from what [`Watch`] found out). Called by
//! the planner and by the daemon's loop. Sends nothing itself.
//!
//! There is no loop: a gateway is never behind another, and what carries a packet towards a host behind one is of that
//! host's zone, where everybody is reached directly. So three hops are the most, whatever two hosts know at a time.

mod choice;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;

use meshd_proto::NodeKey;

pub use self::{
    choice::{Candidate, Choice, Fitness},
    watch::{Ask, Seen, Verdict, Watch},
};
use crate::trust::Record;

/// The capability of a member that carries for others of its zone.
pub const CAPABILITY: &str = "gateway";
/// Gateways that one host may name.
pub const MOST: usize = 4;

/// Why a member's `via` does not count. The member is then dealt with as reachable directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Odd {
    /// It names itself.
    Itself,
    /// Nobody here has a record of it, or it has left.
    Unknown,
    /// It has not consented.
    NoConsent,
    /// It is not in the same zone, or the zone has no name.
    OtherZone,
    /// It is behind a gateway itself.
    Behind,
    /// It has no WireGuard.
    NoWireguard,
}

impl Odd {
    /// What is wrong with `gateway` for `host`, and how to mend it.
    #[must_use]
    pub fn explain(self, host: &str, gateway: &str) -> String {
        match self {
            Self::Itself => format!("{host} names itself; take it out of its [node] gateways"),
            Self::Unknown => format!(
                "{gateway} is not known here as a member; name another in [node] gateways of {host}, or let \
                 it join"
            ),
            Self::NoConsent => {
                format!("{gateway} does not carry for others; set [node] gateway = true there")
            }
            Self::OtherZone => format!(
                "{gateway} is not in the zone of {host}; give both the same [node] zone, which must \
                 not be empty"
            ),
            Self::Behind => format!(
                "{gateway} is behind a gateway itself; take [node] gateways out of its configuration"
            ),
            Self::NoWireguard => format!("{gateway} has no WireGuard; install it there"),
        }
    }
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Itself => "itself",
            Self::Unknown => "unknown",
            Self::NoConsent => "no_consent",
            Self::OtherZone => "other_zone",
            Self::Behind => "behind",
            Self::NoWireguard => "no_wireguard",
        })
    }
}

/// True when both are in one zone that has a name: they reach each other directly.
#[must_use]
pub fn same_zone(a: &Record, b: &Record) -> bool {
    !a.zone.as_str().is_empty() && a.zone == b.zone
}

/// Whether `gateway` may carry for `host`.
pub fn fits(host: &Record, gateway: &Record) -> Result<(), Odd> {
    match () {
        () if gateway.key == host.key => Err(Odd::Itself),
        () if gateway.left => Err(Odd::Unknown),
        () if !same_zone(host, gateway) => Err(Odd::OtherZone),
        () if !gateway.capabilities.iter().any(|name| name == CAPABILITY) => Err(Odd::NoConsent),
        () if gateway.via.is_some() => Err(Odd::Behind),
        () if gateway.lanes.is_empty() => Err(Odd::NoWireguard),
        () => Ok(()),
    }
}

/// The gateway by which other zones reach `host`; `None`: directly. `member` finds the record of a member, this node's
/// own among them.
pub fn carrier<'a>(
    host: &Record,
    member: impl Fn(&NodeKey) -> Option<&'a Record>,
) -> Result<Option<NodeKey>, Odd> {
    let Some(via) = host.via else { return Ok(None) };
    if via == host.key {
        return Err(Odd::Itself);
    }
    let gateway = member(&via).ok_or(Odd::Unknown)?;
    fits(host, gateway).map(|()| Some(via))
}

/// Whose tunnel takes what `own` sends to `target`: `target` itself, or a gateway.
pub fn next_hop<'a>(
    own: &Record,
    target: &Record,
    member: impl Fn(&NodeKey) -> Option<&'a Record> + Copy,
) -> NodeKey {
    if same_zone(own, target) {
        return target.key;
    }
    let of = |host: &Record| carrier(host, member).ok().flatten();
    // Between two zones it is first the gateway of the sender that has to let it out.
    of(own).or_else(|| of(target)).unwrap_or(target.key)
}
