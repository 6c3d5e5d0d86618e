//! foca as it is used here: its settings, and what it wants done as values.

use std::{
    collections::BTreeSet,
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use foca::{Config, Foca, NoCustomBroadcast, Notification, Runtime, Timer};
use meshd_proto::NodeHash;
use rand::rngs::StdRng;

use super::{
    identity::{FixedCodec, PACKET, SwimId},
    packet::Packet,
};
use crate::node::types::Profile;

/// foca with our identities and our encoding.
pub(super) type Swim = Foca<SwimId, FixedCodec, StdRng, NoCustomBroadcast>;

/// foca that knows nobody.
pub(super) fn new(own: SwimId, profile: Profile, rng: StdRng) -> Swim {
    Foca::new(own, config(profile, 0), rng, FixedCodec)
}

/// foca's settings for so many neighbours.
pub(super) fn config(profile: Profile, neighbours: usize) -> Config {
    let size = u32::try_from(neighbours).unwrap_or(u32::MAX).saturating_add(1);
    let size = NonZeroU32::new(size).unwrap_or(NonZeroU32::MIN);
    let mut config = match profile {
        Profile::Lan => Config::new_lan(size),
        Profile::Wan => Config::new_wan(size),
    };
    // foca's figure, 4 s times the decimal logarithm of the size, is memberlist's. Here a neighbour is asked often in it,
    // directly and through others, and that it is down for all takes three who find it so. With the silence before it
    // (`attention`) all know of a crash in less than five seconds on a LAN.
    config.suspect_to_down_after = config.probe_period * 8 / 5;
    config.max_packet_size = NonZeroUsize::new(PACKET).unwrap_or(NonZeroUsize::MIN);
    // Being heard is enough to be up again (`Membership::heard`): nobody has to be told to change its
    // identity, and nothing has to expire.
    config.notify_down_members = false;
    config.remove_down_after = None;
    config
}

/// How much longer than a period foca waits from one of its own probes to the next. Silence
/// makes a node ask (`attention`); these probes, at random, are only foca's way to say what else it has to say. Its period
/// is one of the settings that cannot change.
pub(super) const RARER: u32 = 10;

/// What foca wants done.
#[derive(Debug, Default)]
pub(super) struct Sink {
    pub(super) packets: Vec<Packet>,
    pub(super) timers: Vec<(Timer<SwimId>, Duration)>,
    /// Members of which something changed.
    pub(super) touched: BTreeSet<NodeHash>,
    /// foca gave up; only a new identity helps.
    pub(super) defunct: bool,
}

impl Runtime<SwimId> for Sink {
    fn notify(&mut self, notification: Notification<'_, SwimId>) {
        match notification {
            Notification::MemberUp(id) | Notification::MemberDown(id) => {
                self.touched.insert(id.node);
            }
            Notification::Rename(_, id) => {
                self.touched.insert(id.node);
            }
            Notification::Defunct => self.defunct = true,
            Notification::Active | Notification::Idle | Notification::Rejoin(_) => {}
        }
    }

    fn send_to(&mut self, _to: SwimId, data: &[u8]) {
        self.packets.extend(Packet::from_foca(data));
    }

    fn submit_after(&mut self, event: Timer<SwimId>, after: Duration) {
        self.timers.push((event, after));
    }
}

#[cfg(test)]
mod tests {
    use meshd_proto::NodeHash;
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn foca_takes_the_settings_for_every_mesh() {
        let own = SwimId { node: NodeHash([1; 16]), generation: 1 };
        for profile in [Profile::Lan, Profile::Wan] {
            let mut foca = new(own, profile, StdRng::seed_from_u64(1));
            for neighbours in [1, 24, 8, 0, 17] {
                assert!(foca.set_config(config(profile, neighbours)).is_ok());
            }
        }
    }
}
