//! What `cert show` and `cert issue` print: stable as [`crate::views`]. Every text of a certificate passes `safe`.

use data_encoding::{HEXLOWER, HEXUPPER};
use meshd_core::{
    now::UnixTime,
    refusal::Refusal,
    trust::{Description, NodeDescription, describe},
};
use serde::Serialize;

use crate::text::{safe, safe_all};

/// An element of `meshctl cert show`.
#[derive(Debug, Serialize)]
pub(crate) struct ShownView {
    pub(crate) kind: &'static str,
    pub(crate) subject: String,
    pub(crate) issuer: String,
    pub(crate) serial: String,
    pub(crate) mesh: Option<String>,
    pub(crate) mesh_id: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) spiffe_id: Option<String>,
    pub(crate) public_key: String,
    pub(crate) not_before: String,
    pub(crate) not_after: String,
    pub(crate) state: &'static str,
    pub(crate) remaining_seconds: i64,
    pub(crate) renewal_from: Option<String>,
    pub(crate) renewal_until: Option<String>,
    pub(crate) mesh_addresses: Vec<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) grants: Vec<String>,
    pub(crate) pools: Vec<PoolView>,
    pub(crate) limits: Vec<String>,
    pub(crate) address_blocks: Option<Vec<String>>,
    pub(crate) path_length: Option<u32>,
    pub(crate) fingerprint: String,
}

/// Pieces of `length` of `prefix` may be claimed.
#[derive(Debug, Serialize)]
pub(crate) struct PoolView {
    pub(crate) prefix: String,
    pub(crate) length: u8,
}

/// `meshctl cert issue`.
#[derive(Debug, Serialize)]
pub(crate) struct IssuedView {
    pub(crate) out: String,
    pub(crate) files: Vec<String>,
    #[serde(flatten)]
    pub(crate) shown: ShownView,
}

impl ShownView {
    /// Of a certificate, DER. `renewal`: when its node asks for the next one, where that is known.
    pub(crate) fn of(der: &[u8], now: UnixTime, renewal: Option<String>) -> Result<Self, Refusal> {
        let description = describe(der)?;
        let state = match () {
            () if now < description.not_before => "not_yet_valid",
            () if now > description.not_after => "expired",
            () => "valid",
        };
        let public_key = HEXLOWER.encode(&description.public_key);
        let mut view = Self {
            kind: description.kind.as_str(),
            subject: safe(&description.subject),
            issuer: safe(&description.issuer),
            serial: safe(&description.serial),
            mesh: description.mesh.as_ref().map(|mesh| safe(mesh.as_str())),
            mesh_id: description.mesh_id.map(|id| id.to_string()),
            node: None,
            id: None,
            spiffe_id: None,
            public_key,
            not_before: date(description.not_before),
            not_after: date(description.not_after),
            state,
            remaining_seconds: description.not_after.since(now),
            renewal_from: None,
            renewal_until: None,
            mesh_addresses: Vec::new(),
            groups: Vec::new(),
            grants: Vec::new(),
            pools: Vec::new(),
            limits: Vec::new(),
            address_blocks: description.address_blocks.as_deref().map(safe_all),
            path_length: description.path_length,
            fingerprint: fingerprint(&description),
        };
        if let Some(node) = description.node {
            view.fill(node, renewal);
        }
        Ok(view)
    }

    fn fill(&mut self, node: NodeDescription, renewal: Option<String>) {
        let (from, until) = node.renewal;
        self.node = Some(safe(node.name.as_str()));
        self.id = Some(node.key.to_string());
        self.spiffe_id = Some(safe(&node.spiffe_id));
        self.renewal_from = Some(renewal.clone().unwrap_or_else(|| date(from)));
        self.renewal_until = Some(renewal.unwrap_or_else(|| date(until)));
        self.mesh_addresses = node.mesh_addresses.iter().map(|a| a.addr().to_string()).collect();
        self.groups = safe_all(&node.groups);
        self.limits = node.limits.iter().map(ToString::to_string).collect();
        for grant in node.grants {
            match grant.claim_len {
                None => self.grants.push(grant.prefix.to_string()),
                Some(length) => {
                    self.pools.push(PoolView { prefix: grant.prefix.to_string(), length });
                }
            }
        }
    }
}

fn date(at: UnixTime) -> String {
    // What no calendar names is shown as it is.
    at.rfc3339().unwrap_or_else(|| format!("{} s after 1970", at.0))
}

/// As `openssl x509 -fingerprint -sha256` has it.
fn fingerprint(description: &Description) -> String {
    let bytes: Vec<String> =
        description.fingerprint.iter().map(|byte| HEXUPPER.encode(&[*byte])).collect();
    bytes.join(":")
}
