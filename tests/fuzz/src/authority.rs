//! What the root and signers sign: by the right keys, by others, and altered.

use arbitrary::Arbitrary;
use bytes::Bytes;
use meshd_core::trust::{RevocationTerms, SignerEntry, Succession};
use meshd_proto::wire;

use crate::world::{NOW, SIGNER, World};

/// Who signs what the mesh's signers and root sign.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum By {
    Right,
    Foreign,
    /// The right key, and one bit of what it signed.
    Altered(u16),
}

fn altered(mut payload: Bytes, by: By) -> Bytes {
    if let By::Altered(at) = by
        && !payload.is_empty()
    {
        let mut bytes = payload.to_vec();
        let at = usize::from(at);
        let bit = at / bytes.len() % 8;
        let place = at % bytes.len();
        bytes[place] ^= 1 << bit;
        payload = bytes.into();
    }
    payload
}

/// A bundle with this mesh's intermediate, one of another root, or none.
pub fn bundle(
    world: &World,
    by: By,
    version: u64,
    (ours, foreign, retiring): (bool, bool, bool),
) -> wire::SignedBundle {
    let entry = |intermediate: &meshd_core::trust::Intermediate| SignerEntry {
        key: intermediate.public(),
        node: world.members[SIGNER].key(),
        name: "alice".parse().expect("a name"),
        certificate: intermediate.der().to_vec().into(),
        retiring,
    };
    let mut entries = Vec::new();
    entries.extend(ours.then(|| entry(&world.intermediate)));
    entries.extend(foreign.then(|| entry(&world.foreign.1)));
    let root = if matches!(by, By::Foreign) { &world.foreign.0 } else { &world.root };
    let signed = root.sign_signers(world.mesh_id(), version, &entries, &Succession::default());
    wire::SignedBundle { payload: altered(signed.payload, by), ..signed }
}

/// A revocation of any member, the victim too.
pub fn revocation(
    world: &World,
    by: By,
    of_root: bool,
    who: u8,
    (at, until): (i64, i64),
) -> wire::SignedRevocation {
    let member = world.any(who);
    let terms = RevocationTerms {
        key: member.key(),
        name: member.identity.certificate.name.clone(),
        revoked_at: meshd_core::now::UnixTime(at),
        not_after: meshd_core::now::UnixTime(until),
        subject: None,
    };
    let mesh = world.mesh_id();
    let signed = match (by, of_root) {
        (By::Foreign, true) => world.foreign.0.revoke(mesh, &terms),
        (By::Foreign, false) => world.foreign.1.revoke(mesh, &terms),
        (_, true) => world.root.revoke(mesh, &terms),
        (_, false) => world.intermediate.revoke(mesh, &terms),
    };
    wire::SignedRevocation { payload: altered(signed.payload, by), ..signed }
}

/// A signer's time.
pub fn time(world: &World, by: By, later: i32) -> wire::SignedTime {
    let signer = if matches!(by, By::Foreign) { &world.foreign.1 } else { &world.intermediate };
    let signed = signer.sign_time(world.mesh_id(), NOW.plus(i64::from(later)));
    wire::SignedTime { payload: altered(signed.payload, by), ..signed }
}
