//! Lies about who is there.

use std::time::Duration;

use anyhow::{Result, bail};
use meshd_core::limits;
use meshd_proto::{NodeHash, wire};
use prost::Message;

use super::{attack::Attack, link::Link, member::Member, scene::Scene};

/// As many invented members as a receiver must not keep.
const INVENTED: usize = 5_000;
/// Updates in one packet.
const UPDATES: usize = 20;
/// Together more packets than any member may send; each burst less than a receiver's queue holds, where what is too much
/// is dropped before anybody counts it.
const BURSTS: usize = 8;
const BURST: usize = 1_000;
/// How often a lie is repeated: gossip repeats itself.
const REPEATED: usize = 10;

/// Tells one lie, in as many packets as it takes.
pub(super) async fn attack(
    attack: Attack,
    member: &Member,
    scene: &Scene,
    link: &mut Link,
) -> Result<()> {
    let own = identity(&member.identity.public().hash(), scene.own.generation);
    let victim = identity(&scene.victim_key.hash(), scene.victim.generation);
    let other = identity(&scene.other_key.hash(), scene.other_record.generation);
    let gossip = |updates| packet(&own, &victim, wire::SwimKind::Gossip, updates);
    match attack {
        Attack::ThirdPartyDown | Attack::VictimDown => {
            let about = if attack == Attack::VictimDown { &victim } else { &other };
            for incarnation in 0..REPEATED as u32 {
                let down = update(about, incarnation, wire::SwimState::Down);
                link.send_datagram(gossip(vec![down]).encode_to_vec()).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Attack::InventedMembers => {
            for _ in 0..INVENTED / UPDATES {
                let invented = (0..UPDATES)
                    .map(|_| {
                        let id = identity(&NodeHash(rand::random()), rand::random());
                        update(&id, 0, wire::SwimState::Alive)
                    })
                    .collect();
                link.send_datagram(gossip(invented).encode_to_vec()).await?;
                // What overflows the victim's socket would prove nothing.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Attack::HugeGeneration => {
            let huge = wire::SwimIdentity { generation: u64::MAX, ..other };
            for state in [wire::SwimState::Alive, wire::SwimState::Suspect] {
                link.send_datagram(gossip(vec![update(&huge, 0, state)]).encode_to_vec()).await?;
            }
        }
        Attack::HugeIncarnation => {
            for about in [&other, &victim] {
                let suspect = update(about, u32::from(u16::MAX), wire::SwimState::Suspect);
                link.send_datagram(gossip(vec![suspect]).encode_to_vec()).await?;
            }
        }
        Attack::SpoofedSource => {
            let down = update(&own, 0, wire::SwimState::Down);
            let spoofed = packet(&other, &victim, wire::SwimKind::Gossip, vec![down]);
            link.send_datagram(spoofed.encode_to_vec()).await?;
        }
        Attack::GarbageDatagram => link.send_datagram(vec![0xff; 200]).await?,
        Attack::OversizedDatagram => {
            link.send_datagram(vec![0; limits::SWIM_PACKET + 1]).await?;
        }
        Attack::DatagramFlood => {
            let ping = packet(&own, &victim, wire::SwimKind::Ping, Vec::new()).encode_to_vec();
            for _ in 0..BURSTS {
                for _ in 0..BURST {
                    link.send_datagram(ping.clone()).await?;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        _ => bail!("{} is not about SWIM", attack.name()),
    }
    Ok(())
}

/// An honest question: who asks is there.
pub(super) fn ping(member: &Member, scene: &Scene) -> Vec<u8> {
    let own = identity(&member.identity.public().hash(), scene.own.generation);
    let victim = identity(&scene.victim_key.hash(), scene.victim.generation);
    packet(&own, &victim, wire::SwimKind::Ping, Vec::new()).encode_to_vec()
}

fn identity(node: &NodeHash, generation: u64) -> wire::SwimIdentity {
    wire::SwimIdentity { node: node.0.to_vec().into(), generation }
}

fn update(
    about: &wire::SwimIdentity,
    incarnation: u32,
    state: wire::SwimState,
) -> wire::SwimMember {
    wire::SwimMember { id: Some(about.clone()), incarnation, state: state.into() }
}

fn packet(
    source: &wire::SwimIdentity,
    destination: &wire::SwimIdentity,
    kind: wire::SwimKind,
    updates: Vec<wire::SwimMember>,
) -> wire::SwimPacket {
    wire::SwimPacket {
        source: Some(source.clone()),
        source_incarnation: 0,
        destination: Some(destination.clone()),
        kind: kind.into(),
        probe_number: 7,
        subject: None,
        updates,
    }
}
