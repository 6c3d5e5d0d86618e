//! Which peers a caller asked for.

use meshd_proto::control::{ListPeersRequest, Peer};

use super::ControlError;

const GOSSIP: [&str; 4] = ["alive", "suspect", "down", "left"];
const TUNNEL: [&str; 4] = ["up", "stale", "never", "blocked"];
/// As a device's row has it in the place of gossip's state.
const DEVICE: &str = "device";

/// A checked [`ListPeersRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFilter {
    state: String,
    zone: String,
    name: String,
}

impl TryFrom<ListPeersRequest> for PeerFilter {
    type Error = ControlError;

    fn try_from(request: ListPeersRequest) -> Result<Self, ControlError> {
        let ListPeersRequest { state, zone, name } = request;
        if !state.is_empty()
            && !GOSSIP.contains(&state.as_str())
            && !TUNNEL.contains(&state.as_str())
            && state != DEVICE
        {
            return Err(ControlError::new(
                "bad_request",
                format!("cannot filter by state {:?}", state.chars().take(40).collect::<String>()),
                "there is no such state",
                format!("use one of {}, {}, {DEVICE}", GOSSIP.join(", "), TUNNEL.join(", ")),
            ));
        }
        if zone.len() > 256 || name.len() > 256 {
            return Err(ControlError::new(
                "bad_request",
                "cannot filter peers",
                "the pattern is longer than 256 characters",
                "use a shorter one",
            ));
        }
        Ok(Self { state, zone, name })
    }
}

impl PeerFilter {
    /// Whether `peer` was asked for.
    #[must_use]
    pub fn matches(&self, peer: &Peer) -> bool {
        (self.state.is_empty()
            || self.state == peer.gossip
            || self.state == peer.tunnel
            || (self.state == DEVICE && peer.device.is_some()))
            && (self.zone.is_empty() || fits(self.zone.as_bytes(), peer.zone.as_bytes()))
            && (self.name.is_empty() || fits(self.name.as_bytes(), peer.name.as_bytes()))
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for anything. Linear in each star's reach, as
/// only the last star is ever tried again.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p, t));
            p += 1;
        } else if pattern.get(p) == text.get(t) {
            p += 1;
            t += 1;
        } else if let Some((star, from)) = retry {
            retry = Some((star, from + 1));
            p = star + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern.iter().skip(p).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use meshd_proto::control::Device;

    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, want) in [
            ("db-1", "db-1", true),
            ("db-1", "db-10", false),
            ("db-*", "db-10", true),
            ("*-1", "db-1", true),
            ("*b*1*", "db-1", true),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), want, "{pattern} {text}");
        }
    }

    #[test]
    fn a_state_is_looked_for_in_gossip_and_tunnel() {
        let peer = Peer { gossip: "alive".into(), tunnel: "stale".into(), ..Peer::default() };
        for (state, want) in [("alive", true), ("stale", true), ("up", false), ("", true)] {
            let request = ListPeersRequest { state: state.into(), ..ListPeersRequest::default() };
            assert_eq!(PeerFilter::try_from(request).unwrap().matches(&peer), want, "{state}");
        }
        let request = ListPeersRequest { state: "device".into(), ..ListPeersRequest::default() };
        let devices = PeerFilter::try_from(request).unwrap();
        assert!(!devices.matches(&peer));
        assert!(devices.matches(&Peer { device: Some(Device::default()), ..peer.clone() }));
        let wrong = ListPeersRequest { state: "fine".into(), ..ListPeersRequest::default() };
        let error = PeerFilter::try_from(wrong).unwrap_err();
        assert!(error.fix.contains("alive, suspect, down, left, up"), "{error}");
    }
}
