//! Records that are right in all but one thing.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use ipnet::IpNet;
use meshd_core::{
    address, limits,
    trust::{IdentityKey, LEAVE_VERSION, signing::Kind},
};
use meshd_proto::{MeshId, wire};
use prost::Message;
use sha2::{Digest, Sha256};

use super::{
    attack::Attack,
    door,
    foreign::{Foreign, a_month_ago},
    member::Member,
    scene::{Scene, Target, unix_now},
    seed,
};

/// What to push.
pub(super) async fn forge(
    attack: Attack,
    member: &Member,
    scene: &Scene,
    target: &Target,
) -> Result<wire::Push> {
    if attack == Attack::OtherCasBundle {
        let bundle = Foreign::of_same_mesh(member)?.bundle(member.anchors.bundle_version());
        return Ok(wire::Push { bundle: Some(bundle), ..Default::default() });
    }
    let record = match attack {
        Attack::PastDate => forgotten(target).await?,
        Attack::RevokedRecord => door::revoked_record(target)?,
        Attack::OtherMesh | Attack::OtherCa => foreign(attack, member, scene)?,
        Attack::OthersRecordAltered => altered(scene)?,
        _ => own(attack, member, scene)?,
    };
    Ok(wire::Push { records: vec![record], ..Default::default() })
}

/// The adversary's record as an honest daemon would sign it now.
pub(super) fn honest(scene: &Scene) -> wire::NodeRecord {
    wire::NodeRecord {
        version: scene.own.version + 1,
        issued_at: unix_now().0,
        ..scene.own.clone()
    }
}

/// Signs as the adversary, for its mesh.
pub(super) fn sign(member: &Member, record: &wire::NodeRecord) -> wire::SignedRecord {
    sign_as(member, record, member.anchors.mesh_id())
}

fn sign_as(member: &Member, record: &wire::NodeRecord, mesh: &MeshId) -> wire::SignedRecord {
    let payload = record.encode_to_vec();
    let signature = member.identity.key.sign(Kind::Record, mesh, &payload);
    wire::SignedRecord {
        payload: payload.into(),
        signature: signature.to_vec().into(),
        certificate: member.identity.certificate.der.clone(),
    }
}

/// The adversary's own record, with one thing wrong in it or around it.
fn own(attack: Attack, member: &Member, scene: &Scene) -> Result<wire::SignedRecord> {
    let mut record = honest(scene);
    lie(attack, member, scene, &mut record)?;
    let mut signed = match attack {
        Attack::SignedForOtherMesh => sign_as(member, &record, &MeshId(rand::random())),
        _ => sign(member, &record),
    };
    match attack {
        Attack::OthersCertificate | Attack::OthersCertificateNamed => {
            signed.certificate = scene.other.certificate.clone();
        }
        Attack::AlteredCertificate => signed.certificate = with_others_address(member, scene)?,
        Attack::NoSignature => signed.signature = Bytes::new(),
        Attack::FlippedSignature => signed.signature = flipped(&signed.signature, 20),
        // Behind the identity key, which is the first field.
        Attack::FlippedPayload => signed.payload = flipped(&signed.payload, 40),
        _ => {}
    }
    Ok(signed)
}

/// What is wrong inside the payload, if that is where it is.
fn lie(
    attack: Attack,
    member: &Member,
    scene: &Scene,
    record: &mut wire::NodeRecord,
) -> Result<()> {
    match attack {
        Attack::OthersIdentity => {
            record.identity_key = scene.other_record.identity_key.clone();
            record.version = scene.other_record.version + 1_000;
        }
        Attack::OthersName => record.name = scene.other_record.name.clone(),
        Attack::OthersCertificateNamed => {
            record.certificate_hash = hash(&scene.other.certificate);
        }
        Attack::AlteredCertificate => {
            record.certificate_hash = hash(&with_others_address(member, scene)?);
            record.mesh_addresses = others_ipv4(scene)?;
        }
        Attack::OthersWireguardKey => {
            let mesh = member.anchors.mesh_id();
            let mut lane = member.lane.to_wire(mesh, &member.identity.public(), 51820, 0);
            lane.signing_key = others_lane(scene)?.signing_key;
            record.lanes = vec![lane];
        }
        Attack::OthersLane => record.lanes = vec![others_lane(scene)?],
        Attack::OthersPrefix => {
            ensure!(!scene.other_record.prefixes.is_empty(), "the other member has no prefix");
            record.prefixes = scene.other_record.prefixes.clone();
        }
        Attack::DefaultRoute => claim(record, &["0.0.0.0/0", "::/0"])?,
        Attack::OthersUla => {
            let ula = address::ula(member.anchors.mesh_id(), &scene.other_key);
            claim(record, &[&format!("{ula}/128")])?;
        }
        Attack::VictimsUnderlay => {
            let endpoint = scene.victim.endpoints.first().context("a victim without endpoints")?;
            let address = address::address_from_wire(&endpoint.address)?;
            claim(record, &[&address::host_prefix(address).to_string()])?;
        }
        Attack::OthersMeshAddress => record.mesh_addresses = others_ipv4(scene)?,
        Attack::OldVersion => {
            ensure!(scene.own.version > 1, "nothing is older than the first version");
            record.version = scene.own.version - 1;
        }
        Attack::LastVersion => record.version = LEAVE_VERSION + 1,
        Attack::FutureDate => record.issued_at = unix_now().plus(24 * 3600).0,
        Attack::TooManyPrefixes => {
            record.prefixes = (0..=limits::RECORD_PREFIXES)
                .filter_map(|i| u8::try_from(i >> 8).ok().zip(u8::try_from(i & 255).ok()))
                .map(|(high, low)| wire::IpPrefix {
                    address: vec![10, 200, high, low].into(),
                    length: 32,
                })
                .collect();
        }
        Attack::OversizedRecord => record.software_version = "x".repeat(limits::RECORD_PAYLOAD),
        Attack::LoopbackEndpoint => {
            record.endpoints =
                vec![wire::Endpoint { address: vec![127, 0, 0, 1].into(), port: 22 }];
        }
        _ => {}
    }
    Ok(())
}

fn claim(record: &mut wire::NodeRecord, prefixes: &[&str]) -> Result<()> {
    let prefixes = prefixes.iter().map(|text| text.parse()).collect::<Result<Vec<IpNet>, _>>()?;
    record.prefixes = prefixes.iter().map(address::prefix_to_wire).collect();
    Ok(())
}

fn others_lane(scene: &Scene) -> Result<wire::Lane> {
    scene.other_record.lanes.first().cloned().context("the other member has no WireGuard")
}

fn others_ipv4(scene: &Scene) -> Result<Vec<wire::IpPrefix>> {
    let found: Vec<_> = scene
        .other_record
        .mesh_addresses
        .iter()
        .filter(|prefix| prefix.address.len() == 4)
        .cloned()
        .collect();
    ensure!(!found.is_empty(), "the other member has no IPv4 address inside the mesh");
    Ok(found)
}

/// The adversary's certificate with the other's IPv4 address wherever its own was.
fn with_others_address(member: &Member, scene: &Scene) -> Result<Bytes> {
    let own = &member.identity.certificate;
    let from = own.mesh_ipv4.context("this host has no IPv4 address inside the mesh")?.octets();
    let to = &others_ipv4(scene)?[0].address;
    let mut der = own.der.to_vec();
    let mut replaced = 0;
    for at in 0..der.len().saturating_sub(4) {
        if der[at..at + 4] == from {
            der[at..at + 4].copy_from_slice(to);
            replaced += 1;
        }
    }
    ensure!(replaced > 0, "the certificate does not hold its own address");
    Ok(der.into())
}

fn hash(certificate: &[u8]) -> Bytes {
    Sha256::digest(certificate).to_vec().into()
}

fn flipped(bytes: &Bytes, at: usize) -> Bytes {
    let mut bytes = bytes.to_vec();
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1;
    }
    bytes.into()
}

/// Another member's own record, its prefixes gone and its version raised, under the signature that it had.
fn altered(scene: &Scene) -> Result<wire::SignedRecord> {
    let mut record = scene.other_record.clone();
    ensure!(!record.prefixes.is_empty(), "the other member has no prefix");
    record.prefixes.clear();
    record.version += 1;
    Ok(wire::SignedRecord { payload: record.encode_to_vec().into(), ..scene.other.clone() })
}

/// A record that another CA's certificate would entitle to anything.
fn foreign(attack: Attack, member: &Member, scene: &Scene) -> Result<wire::SignedRecord> {
    let ca = match attack {
        Attack::OtherMesh => Foreign::of_other_mesh(member)?,
        _ => Foreign::of_same_mesh(member)?,
    };
    let identity = ca.identity(member)?;
    let mut record = honest(scene);
    record.certificate_hash = identity.certificate.hash.to_vec().into();
    record.prefixes = scene.other_record.prefixes.clone();
    let mut signed = sign_as(member, &record, ca.mesh_id());
    signed.certificate = identity.certificate.der.clone();
    Ok(signed)
}

/// The first record of a member that enrolled just now and dates it a month back, as if it were one that all have forgotten.
async fn forgotten(target: &Target) -> Result<wire::SignedRecord> {
    let Some(token) = &target.token else { bail!("this attack needs --token") };
    let key = IdentityKey::from_seed(&rand::random());
    let identity = seed::enrol(token, key, target.victim, "forgotten").await?;
    let draft = meshd_core::trust::RecordDraft::default();
    let boot_id = meshd_proto::BootId(rand::random());
    Ok(identity.sign_record(&draft, 1, boot_id, 1, a_month_ago()))
}
