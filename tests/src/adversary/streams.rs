//! Frames that are not right as frames.

use anyhow::{Result, bail};
use meshd_core::limits;
use meshd_proto::wire;
use prost::Message;

use super::{
    attack::Attack,
    link::Link,
    member::Member,
    records::{honest, sign},
    scene::Scene,
};

/// Sends one; says how the victim ended the connection, where it must.
pub(super) async fn attack(
    attack: Attack,
    member: &Member,
    scene: &Scene,
    link: &mut Link,
) -> Result<Option<String>> {
    let record = sign(member, &honest(scene));
    let push = wire::Push { records: vec![record], ..Default::default() };
    let body = wire::frame::Body::Push(push);
    let good = wire::Frame { body: Some(body.clone()) }.encode_to_vec();
    match attack {
        Attack::OversizedFrame => {
            // The victim may end the connection before all of it is sent.
            let _ = link.send_bytes(&vec![0; limits::FRAME + 1]).await;
            return link.closed().await.map(Some);
        }
        Attack::GarbageFrame => link.send_bytes(&[0xff; 64]).await?,
        Attack::TruncatedFrame => link.send_bytes(&good[..good.len() - 10]).await?,
        Attack::SlowStream => {
            // Dropped, it would be ended.
            let unended = link.send_without_end(&good[..good.len() / 2]).await?;
            let closed = link.closed().await;
            drop(unended);
            return closed.map(Some);
        }
        Attack::AbandonedFrame => {
            link.send_and_abandon(&good[..good.len() / 2]).await?;
            link.send(body).await?;
        }
        _ => bail!("{} is not about frames", attack.name()),
    }
    Ok(None)
}
