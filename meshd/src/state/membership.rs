//! This host's membership and, on a signer, its authority.

use std::{fs, path::PathBuf};

use data_encoding::HEXLOWER_PERMISSIVE as HEX;
use meshd_core::{
    refusal::Code,
    trust::{Anchors, IdentityKey, LaneKey, NodeCertificate, pem},
};
use meshd_proto::wire::SignedBundle;
use prost::Message;
use zeroize::Zeroizing;

use super::{SMALL, StateDir, StateError, durable, durable::FileError};

/// A host that belongs to a mesh.
#[derive(Debug)]
pub struct Membership {
    /// The mesh's root and its intermediates.
    pub anchors: Anchors,
    /// This node's identity.
    pub identity: IdentityKey,
    /// Its certificate.
    pub certificate: NodeCertificate,
    /// Its WireGuard key.
    pub lane: LaneKey,
    /// Where to ask first, as `HOST:PORT`.
    pub seeds: Vec<String>,
}

/// What lets a host admit others.
pub struct Authority {
    /// Seed of the root's key, when the mesh is made. Not read back: it may be under a passphrase.
    pub root_seed: Option<Zeroizing<[u8; 32]>>,
    /// The intermediate's certificate, DER.
    pub intermediate: Vec<u8>,
    /// Seed of the intermediate's key.
    pub intermediate_seed: Zeroizing<[u8; 32]>,
}

/// What a leave keeps of a signer, and nothing else.
const AUTHORITY: [&str; 7] = [
    "pki/root.key",
    "pki/root-next.key",
    "pki/intermediate.crt",
    "pki/intermediate.key",
    "pki/pending.key",
    "pki/pending.pool",
    "pki/ledger",
];
const ROOT: &str = "pki/root.crt";
const MEMBERSHIP: [&str; 9] = [
    "guard",
    "pki/node.crt",
    "pki/bundle",
    "pki/revocations",
    "pki/time",
    "pki/seeds",
    ROOT,
    "keys/identity",
    "keys/lane0",
];
/// Those of a mesh's signers fit many times over.
const REVOCATIONS: u64 = 256 << 20;

impl StateDir {
    /// The identity key: that of the last attempt to join, so that the same request gets the same
    /// certificate, or a new one from `seed`, on disk before it is used.
    pub fn identity(&self, seed: &[u8; 32]) -> Result<IdentityKey, StateError> {
        let seed = match self.read_seed("keys/identity")? {
            Some(kept) => kept,
            None => {
                self.write_seed("keys/identity", seed)?;
                Zeroizing::new(*seed)
            }
        };
        Ok(IdentityKey::from_seed(&seed))
    }

    /// Keeps an identity key that was made elsewhere.
    pub fn save_identity(&self, identity: &IdentityKey) -> Result<(), StateError> {
        self.write_seed("keys/identity", &identity.seed())
    }

    /// The WireGuard key, as [`StateDir::identity`].
    pub fn lane(&self, seed: &[u8; 32]) -> Result<LaneKey, StateError> {
        let seed = match self.read_seed("keys/lane0")? {
            Some(kept) => kept,
            None => {
                self.write_seed("keys/lane0", seed)?;
                Zeroizing::new(*seed)
            }
        };
        Ok(LaneKey::from_seed(&seed))
    }

    /// Whether there is a membership, sound or not.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.file("pki/node.crt").exists()
    }

    /// Whether there is what a membership leaves, but not its certificate: somebody has lost it.
    #[must_use]
    pub fn lacks_certificate(&self) -> bool {
        // Both are written before the certificate, and removed after it.
        !self.is_member() && self.file("pki/bundle").exists() && self.file("pki/root.crt").exists()
    }

    /// The membership, or `None` while this host waits for one.
    pub fn membership(&self) -> Result<Option<Membership>, StateError> {
        // Written last: without it there is no membership.
        let path = self.file("pki/node.crt");
        let Some(text) = durable::read(&path, SMALL)? else { return Ok(None) };
        let der = pem::decode(&text).map_err(|why| StateError::damaged(&path, why))?;
        let certificate =
            NodeCertificate::parse(&der).map_err(|why| StateError::damaged(&path, why))?;
        let root_path = self.file("pki/root.crt");
        let root = self.need("pki/root.crt")?;
        let root = pem::decode(&root).map_err(|why| StateError::damaged(&root_path, why))?;
        let mut anchors =
            Anchors::from_root(&root).map_err(|why| StateError::damaged(&root_path, why))?;
        let bundle_path = self.file("pki/bundle");
        let bundle = SignedBundle::decode(self.need("pki/bundle")?.as_slice())
            .map_err(|why| StateError::damaged(&bundle_path, why))?;
        anchors.install_bundle(&bundle).map_err(|why| StateError::damaged(&bundle_path, why))?;
        if let Some(stored) = durable::read(&self.file("pki/revocations"), REVOCATIONS)?
            && let Err(why) = anchors.restore_revocations(&stored)
        {
            // They come back with the first exchange; a host must not be without its mesh for that long.
            tracing::error!(%why, "pki/revocations is damaged");
        }
        if let Some(stored) = durable::read(&self.file("pki/time"), SMALL)?
            && let Err(why) = anchors.restore_time(&stored)
        {
            // Without it certificates do not end; the next one comes within the hour.
            tracing::warn!(%why, "pki/time is not usable");
        }
        let identity = IdentityKey::from_seed(&*self.need_seed("keys/identity")?);
        if identity.public() != certificate.key {
            return Err(StateError::damaged(&path, "it is for another key than keys/identity"));
        }
        match anchors.check_chain(&certificate.der, None) {
            // Its signer was taken out: the host keeps its kernel, and asks another for a certificate.
            Err(refusal) if refusal.code == Code::UnknownIssuer => {}
            checked => drop(checked.map_err(|why| StateError::damaged(&path, why))?),
        }
        let lane = LaneKey::from_seed(&*self.need_seed("keys/lane0")?);
        let seeds = durable::read(&self.file("pki/seeds"), SMALL)?.unwrap_or_default();
        let seeds = String::from_utf8_lossy(&seeds).lines().map(str::to_owned).collect();
        Ok(Some(Membership { anchors, identity, certificate, lane, seeds }))
    }

    /// Why the revocations on disk could not be read when `anchors` were, if so: who was revoked may be let in until the
    /// first exchange.
    #[must_use]
    pub fn revocations_lost(&self, anchors: &Anchors) -> Option<String> {
        if anchors.all_revocations().next().is_some() {
            // They are all read or none.
            return None;
        }
        match durable::read(&self.file("pki/revocations"), REVOCATIONS) {
            Ok(stored) => {
                let stored = stored?;
                anchors.clone().restore_revocations(&stored).err().map(|why| why.to_string())
            }
            Err(error) => Some(error.to_string()),
        }
    }

    /// Keeps a membership; keys must be on disk already.
    pub fn save_membership(
        &self,
        anchors: &Anchors,
        certificate: &NodeCertificate,
        seeds: &[String],
    ) -> Result<(), StateError> {
        self.save_root_certificate(anchors)?;
        self.save_bundle(&anchors.signed_bundle().encode_to_vec())?;
        let seeds: String = seeds.iter().map(|seed| format!("{seed}\n")).collect();
        durable::write(&self.file("pki/seeds"), seeds.as_bytes())?;
        self.save_certificate(certificate)
    }

    /// Keeps the newest root's certificate. The bundle, which leads there from the one before, is on disk already.
    pub fn save_root_certificate(&self, anchors: &Anchors) -> Result<(), StateError> {
        let text = pem::encode(anchors.root_der());
        Ok(durable::write(&self.file("pki/root.crt"), text.as_bytes())?)
    }

    /// Keeps a newer bundle of intermediates, encoded.
    pub fn save_bundle(&self, bundle: &[u8]) -> Result<(), StateError> {
        Ok(durable::write(&self.file("pki/bundle"), bundle)?)
    }

    /// Keeps the revocations, encoded.
    pub fn save_revocations(&self, revocations: &[u8]) -> Result<(), StateError> {
        Ok(durable::write(&self.file("pki/revocations"), revocations)?)
    }

    /// Keeps the signers' time, encoded.
    pub fn save_time(&self, time: &[u8]) -> Result<(), StateError> {
        Ok(durable::write(&self.file("pki/time"), time)?)
    }

    /// Keeps this node's next certificate.
    pub fn save_certificate(&self, certificate: &NodeCertificate) -> Result<(), StateError> {
        let text = pem::encode(&certificate.der);
        Ok(durable::write(&self.file("pki/node.crt"), text.as_bytes())?)
    }

    /// The authority of a signer, or `None` on other hosts.
    pub fn authority(&self) -> Result<Option<Authority>, StateError> {
        let Some(intermediate_seed) = self.read_seed("pki/intermediate.key")? else {
            return Ok(None);
        };
        let path = self.file("pki/intermediate.crt");
        let intermediate = pem::decode(&self.need("pki/intermediate.crt")?)
            .map_err(|why| StateError::damaged(&path, why))?;
        Ok(Some(Authority { root_seed: None, intermediate, intermediate_seed }))
    }

    /// Keeps an authority. Comes before [`StateDir::save_membership`].
    pub fn save_authority(&self, authority: &Authority) -> Result<(), StateError> {
        if let Some(root_seed) = &authority.root_seed {
            self.write_seed("pki/root.key", root_seed)?;
        }
        let text = pem::encode(&authority.intermediate);
        durable::write(&self.file("pki/intermediate.crt"), text.as_bytes())?;
        self.write_seed("pki/intermediate.key", &authority.intermediate_seed)
    }

    /// Ends the membership: node keys and certificate go, the authority of a signer is set aside.
    /// Returns where to, if there was one. After an error as much is gone as could be.
    pub fn forget_membership(&self) -> Result<Option<PathBuf>, StateError> {
        // The certificate first, so that a crash in between leaves a host that waits rather than half a member. What
        // is removed makes room for what is set aside; that takes a copy of the root's certificate along.
        let (root, others): (Vec<&str>, Vec<&str>) =
            MEMBERSHIP.into_iter().partition(|name| *name == ROOT);
        let remove = |names: Vec<&str>| {
            let mut all = Ok(());
            for name in names {
                // The next is tried whatever becomes of this one.
                let one = durable::remove(&self.file(name));
                all = all.and(one);
            }
            all
        };
        let removed = remove(others);
        let devices = self.forget_devices();
        let aside = self.set_authority_aside()?;
        removed.and_then(|()| remove(root))?;
        devices?;
        Ok(aside)
    }

    /// Moves a signer's authority to a directory of its own, if there is one, and returns where.
    pub fn set_authority_aside(&self) -> Result<Option<PathBuf>, StateError> {
        if !AUTHORITY.iter().any(|name| self.file(name).exists()) {
            return Ok(None);
        }
        let Some(aside) =
            (1..1_000).map(|n| self.file(&format!("former-ca-{n}"))).find(|p| !p.exists())
        else {
            return Err(StateError::damaged(
                &self.path,
                "a thousand former CAs lie here; move some",
            ));
        };
        super::private_directory(&aside)
            .map_err(|source| FileError::new("make", &aside, source))?;
        for name in AUTHORITY {
            let (from, to) = (self.file(name), aside.join(name.trim_start_matches("pki/")));
            match fs::rename(&from, &to) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(FileError::new("move", &from, source).into());
                }
                _ => {}
            }
        }
        // Last, since a full disk may have no room for it; a link needs less, but some file systems have none.
        let (root, copy) = (self.file(ROOT), aside.join("root.crt"));
        if root.exists() && fs::hard_link(&root, &copy).is_err() {
            fs::copy(&root, &copy).map_err(|source| FileError::new("copy", &root, source))?;
        }
        Ok(Some(aside))
    }

    pub(super) fn need(&self, name: &str) -> Result<Vec<u8>, StateError> {
        let path = self.file(name);
        durable::read(&path, SMALL)?.ok_or_else(|| StateError::damaged(&path, "it is missing"))
    }

    fn need_seed(&self, name: &str) -> Result<Zeroizing<[u8; 32]>, StateError> {
        self.read_seed(name)?.ok_or_else(|| StateError::damaged(&self.file(name), "it is missing"))
    }

    pub(super) fn read_seed(&self, name: &str) -> Result<Option<Zeroizing<[u8; 32]>>, StateError> {
        let path = self.file(name);
        let Some(text) = durable::read(&path, SMALL)?.map(Zeroizing::new) else { return Ok(None) };
        let bytes = HEX
            .decode(text.trim_ascii())
            .map(Zeroizing::new)
            .map_err(|_| StateError::damaged(&path, "it is not 64 hexadecimal digits"))?;
        let seed = <[u8; 32]>::try_from(bytes.as_slice())
            .map_err(|_| StateError::damaged(&path, "it is not 64 hexadecimal digits"))?;
        Ok(Some(Zeroizing::new(seed)))
    }

    pub(super) fn write_seed(&self, name: &str, seed: &[u8; 32]) -> Result<(), StateError> {
        let text = Zeroizing::new(format!("{}\n", HEX.encode(seed)));
        Ok(durable::write(&self.file(name), text.as_bytes())?)
    }
}
