//! Handshakes that must not succeed, and the client certificate of those that may.

use std::sync::Arc;

use anyhow::Result;
use quinn::Connection;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{
    attack::Attack,
    foreign::Foreign,
    link::{self, ENROL, MESH, PATIENCE, Sent, Shown},
    member::{Member, private_key},
    scene::{Scene, Target},
};

/// A chain and a key for a client, whether or not they belong together.
pub(super) fn show(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<SingleCertAndKey>> {
    let key = link::provider().key_provider.load_private_key(key.clone_key())?;
    Ok(Arc::new(CertifiedKey::new(chain, key).into()))
}

/// Tries one, and says how the victim ended it.
pub(super) async fn attack(
    attack: Attack,
    member: &Member,
    scene: &Scene,
    target: &Target,
) -> Result<(Sent, Option<String>)> {
    let (alpn, shown) = match attack {
        Attack::OtherCaHandshake => {
            let other = Foreign::of_same_mesh(member)?;
            let identity = other.identity(member)?;
            let chain = vec![identity.certificate.der.to_vec().into(), other.intermediate()];
            (MESH, Shown::Certificate(show(chain, &private_key(&identity.key))?))
        }
        Attack::OthersCertificateHandshake => {
            let mut chain = member.chain()?;
            chain[0] = scene.other.certificate.to_vec().into();
            (MESH, Shown::Certificate(show(chain, &member.private_key())?))
        }
        Attack::NoCertificate => (MESH, Shown::Nothing),
        _ => (ENROL, Shown::Nothing),
    };
    let anchors = &member.anchors;
    let dialled =
        link::dial(target.victim, anchors.trust_anchors(), &anchors.server_name(), alpn, shown)
            .await;
    let (endpoint, connection) = match dialled {
        Ok(both) => both,
        Err(why) => return Ok((Sent::default(), Some(format!("{why:#}")))),
    };
    let sent = match attack {
        Attack::GarbageEnrolment => ask(&connection, &[0xff; 300]).await,
        Attack::OversizedEnrolment => ask(&connection, &[0; 20_000]).await,
        _ => Sent::default(),
    };
    let closed = tokio::time::timeout(PATIENCE, connection.closed()).await;
    drop(endpoint);
    Ok((sent, closed.ok().map(|reason| reason.to_string())))
}

/// Sends a request to enrol and reads the answer, whatever it is.
async fn ask(connection: &Connection, request: &[u8]) -> Sent {
    let talk = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(request).await?;
        send.finish()?;
        receive.read_to_end(1 << 20).await?;
        connection.close(quinn::VarInt::from_u32(0), b"");
        anyhow::Ok(())
    };
    // The victim may end it at any point: that is what is being tried.
    let _ = talk.await;
    Sent { frames: 1, datagrams: 0, bytes: request.len() as u64 }
}
