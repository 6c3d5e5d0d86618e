//! Frames that are not right as frames.

use std::time::Duration;

use anyhow::{Result, bail};
use meshd_core::limits;
use meshd_proto::wire;
use prost::Message;

use super::{
    attack::Attack,
    link::{Link, PATIENCE},
    member::Member,
    records::{honest, sign},
    scene::Scene,
    swim,
};

/// How often somebody who is there says something.
const ALIVE_EVERY: Duration = Duration::from_millis(500);

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
            // Who is silent is taken for down, and its connections are closed before this one is.
            let mut patience = PATIENCE.as_millis() / ALIVE_EVERY.as_millis();
            let closed = loop {
                // It fails when the connection is closed, which is seen next.
                let _ = link.send_datagram(swim::ping(member, scene)).await;
                match tokio::time::timeout(ALIVE_EVERY, link.closed()).await {
                    Err(_) if patience > 0 => patience -= 1,
                    Err(_) => bail!("the victim waits for ever"),
                    Ok(closed) => break closed,
                }
            };
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
