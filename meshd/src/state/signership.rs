//! A host that becomes a signer, or ceases to be one, on disk.

use ipnet::Ipv4Net;
use meshd_core::trust::{Anchors, IdentityKey, LedgerEntry, LedgerEvent, Signer};
use meshd_proto::MeshId;
use zeroize::Zeroizing;

use super::{Authority, SMALL, StateDir, StateError, durable};

/// The seed of a key that waits to be certified, and the addresses of its mesh.
pub type Pending = (Zeroizing<[u8; 32]>, Ipv4Net);

impl StateDir {
    /// The seed of the key that waits to be certified: that of the last invitation, or `fresh`, on disk.
    pub fn pending_signer(
        &self,
        fresh: &[u8; 32],
        pool: Ipv4Net,
    ) -> Result<Zeroizing<[u8; 32]>, StateError> {
        if let Some((seed, kept)) = self.read_pending_signer()?
            && kept == pool
        {
            return Ok(seed);
        }
        durable::write(&self.file("pki/pending.pool"), format!("{pool}\n").as_bytes())?;
        self.write_seed("pki/pending.key", fresh)?;
        Ok(Zeroizing::new(*fresh))
    }

    /// What waits to be certified, and the addresses of the mesh.
    pub fn read_pending_signer(&self) -> Result<Option<Pending>, StateError> {
        let Some(seed) = self.read_seed("pki/pending.key")? else { return Ok(None) };
        let path = self.file("pki/pending.pool");
        let text = durable::read(&path, SMALL)?.unwrap_or_default();
        let pool = String::from_utf8_lossy(&text)
            .trim()
            .parse()
            .map_err(|why| StateError::damaged(&path, why))?;
        Ok(Some((seed, pool)))
    }

    /// Keeps the certificate of the key that waited. `first` begins the ledger of a host that never had one.
    pub fn become_signer(
        &self,
        certificate: &[u8],
        seed: &[u8; 32],
        first: &[u8],
    ) -> Result<(), StateError> {
        if self.read_ledger()?.is_empty() {
            self.append_ledger(&[first.to_vec()])?;
        }
        let authority = Authority {
            root_seed: None,
            intermediate: certificate.to_vec(),
            intermediate_seed: Zeroizing::new(*seed),
        };
        self.save_authority(&authority)?;
        self.forget_pending_signer()
    }

    /// Deletes a key that waits for nothing any more.
    pub fn forget_pending_signer(&self) -> Result<(), StateError> {
        durable::remove(&self.file("pki/pending.key"))?;
        Ok(durable::remove(&self.file("pki/pending.pool"))?)
    }

    /// IPv4 addresses inside the mesh, as the first entry of the ledger has them.
    pub fn ipv4_pool(&self, mesh: &MeshId) -> Result<Ipv4Net, StateError> {
        let path = self.file("pki/ledger");
        let missing = || StateError::damaged(&path, "it does not say what addresses the mesh has");
        let first = self.read_ledger()?.into_iter().next().ok_or_else(missing)?;
        match LedgerEntry::decode(&first, mesh).map(|entry| entry.event) {
            Ok(LedgerEvent::Founded { ipv4_pool }) => Ok(ipv4_pool),
            _ => Err(missing()),
        }
    }

    /// The signer from what is on disk.
    pub fn open_signer(
        &self,
        anchors: &Anchors,
        identity: &IdentityKey,
    ) -> Result<Signer, StateError> {
        let path = self.file("pki/intermediate.crt");
        let authority = self
            .authority()?
            .ok_or_else(|| StateError::damaged(&path, "it or its key is missing"))?;
        let ledger = self.read_ledger()?;
        Signer::open(
            anchors.clone(),
            &authority.intermediate,
            &authority.intermediate_seed,
            identity,
            ledger.iter().map(Vec::as_slice),
        )
        .map_err(|why| StateError::damaged(&path, why))
    }

    /// Deletes an intermediate that counts for nothing any more. The ledger stays: it says who was admitted.
    pub fn forget_intermediate(&self) -> Result<(), StateError> {
        durable::remove(&self.file("pki/intermediate.key"))?;
        Ok(durable::remove(&self.file("pki/intermediate.crt"))?)
    }
}
