//! The birth of a mesh: CA, first signer, first node.

use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use meshd_proto::{MeshId, MeshName, NodeKey, NodeName};
use rand::CryptoRng;
use zeroize::Zeroizing;

use super::{
    anchors::Anchors,
    ca::{CaError, Intermediate, RootCa},
    grants::{self, Asked, EnrolRefusal},
    ledger::{LedgerEntry, LedgerEvent},
    record::NodeCertificate,
    secret::IdentityKey,
    signer::{Admission, Signer},
    signership::SignerEntry,
    succession::Succession,
};
use crate::{now::UnixTime, refusal::Code};

/// What `meshctl init` asks for.
#[derive(Debug, Clone)]
pub struct InitParams {
    /// The mesh's name.
    pub mesh: MeshName,
    /// This host's name.
    pub node: NodeName,
    /// This host's identity: on disk already.
    pub identity: IdentityKey,
    /// Granted to this host exactly.
    pub prefixes: Vec<IpNet>,
    /// Within these, what this host detects is granted to it.
    pub allow: Vec<IpNet>,
    /// Of these this host may claim single addresses.
    pub pools: Vec<IpNet>,
    /// What this host detected.
    pub wanted: Vec<IpNet>,
    /// IPv4 addresses inside the mesh. That it overlaps nothing of this host, the caller knows.
    pub ipv4_pool: Ipv4Net,
}

/// All that the first host of a mesh must keep. Seeds come out of [`RootCa::seed`] and
/// [`Intermediate::seed`].
#[derive(Debug)]
pub struct MeshInit {
    /// The mesh, its root, and the bundle of its first intermediate.
    pub anchors: Anchors,
    /// The root's certificate and key.
    pub root: RootCa,
    /// This signer's certificate and key.
    pub intermediate: Intermediate,
    /// This node's certificate.
    pub certificate: Arc<NodeCertificate>,
    /// Detected prefixes that were not granted.
    pub not_granted: Vec<IpNet>,
    /// The beginning of the signer's ledger, encoded.
    pub ledger: Vec<Vec<u8>>,
}

/// Makes a mesh. Its first host is admitted by the same rules as all others.
pub fn init_mesh(
    params: &InitParams,
    now: UnixTime,
    rng: &mut impl CryptoRng,
) -> Result<MeshInit, EnrolRefusal> {
    grants::check_pool(&params.ipv4_pool)?;
    grants::check_count(&params.prefixes)?;
    grants::check_count(&params.allow)?;
    grants::check_count(&params.pools)?;
    let mut mesh_id = MeshId([0; 16]);
    rng.fill_bytes(&mut mesh_id.0);
    params.allow.iter().try_for_each(|prefix| grants::check_allowed(prefix, &mesh_id))?;
    let key = params.identity.public();
    let (anchors, root, intermediate) =
        authority(&params.mesh, &mesh_id, (&key, &params.node), now, rng)?;

    let founded =
        LedgerEntry { time: now, event: LedgerEvent::Founded { ipv4_pool: params.ipv4_pool } };
    let signer = {
        let intermediate = intermediate.clone();
        Signer::found(anchors.clone(), intermediate, &params.identity, params.ipv4_pool)
    };
    let admission = Admission {
        key,
        name: &params.node,
        token: None,
        groups: &[],
        asked: Asked {
            exact: &params.prefixes,
            allow: &params.allow,
            pools: &params.pools,
            wanted: &params.wanted,
            keep: false,
        },
        before: None,
        voucher: None,
    };
    let admitted = signer.admit(&admission, &[], &[], now, rng)?;
    Ok(MeshInit {
        anchors,
        root,
        intermediate,
        certificate: admitted.certificate,
        not_granted: admitted.not_granted,
        ledger: vec![founded.encode(), admitted.entry.encode()],
    })
}

fn authority(
    mesh: &MeshName,
    mesh_id: &MeshId,
    (node, name): (&NodeKey, &NodeName),
    now: UnixTime,
    rng: &mut impl CryptoRng,
) -> Result<(Anchors, RootCa, Intermediate), EnrolRefusal> {
    let failed = |error: &CaError| {
        EnrolRefusal::new(Code::BadTerms, error.to_string(), "check this host's clock")
    };
    let mut seed = Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut *seed);
    let root = RootCa::create(&seed, mesh, mesh_id, now).map_err(|error| failed(&error))?;
    rng.fill_bytes(&mut *seed);
    let intermediate = root.issue_intermediate(&seed, now).map_err(|error| failed(&error))?;
    let first = SignerEntry {
        key: intermediate.public(),
        node: *node,
        name: name.clone(),
        certificate: intermediate.der().to_vec().into(),
        retiring: false,
    };
    let bundle = root.sign_signers(mesh_id, 1, &[first], &Succession::default());
    let anchors = Anchors::from_root(root.der())
        .and_then(|mut anchors| anchors.install_bundle(&bundle).map(|_| anchors))
        .map_err(|refusal| failed(&CaError::Unusable(refusal)))?;
    Ok((anchors, root, intermediate))
}
