//! What a daemon has counted, by the control API itself: `meshctl` has no verb for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hyper_util::rt::TokioIo;
use meshd_proto::control::CountersRequest;
use meshd_proto::control::control_client::ControlClient;
use tonic::transport::{Endpoint, Uri};

use super::host::Host;
use super::place::Place;

/// A daemon that does not answer for this long hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Counters since the daemon's start.
#[derive(Debug, Clone, Default)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// One counter; `reason` is the value of its label of that name. What was never counted is 0.
    pub fn value(&self, name: &str, reason: Option<&str>) -> u64 {
        self.0.get(&label(name, reason)).copied().unwrap_or(0)
    }

    /// Those that have grown since `earlier`, with the growth.
    pub fn since(&self, earlier: &Self) -> BTreeMap<String, u64> {
        let grown = |(name, value): (&String, &u64)| {
            let more = value.saturating_sub(earlier.0.get(name).copied().unwrap_or(0));
            (more > 0).then(|| (name.clone(), more))
        };
        self.0.iter().filter_map(grown).collect()
    }
}

fn label(name: &str, value: Option<&str>) -> String {
    value.map_or_else(|| name.to_owned(), |value| format!("{name}{{{value}}}"))
}

impl Host {
    /// What the daemon of this host has counted.
    pub fn counters(&self) -> Result<Counters> {
        // The socket as this host's mount namespace has it.
        let path = PathBuf::from(format!("/proc/{}/root/run/meshd/meshd.sock", self.space().pid()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask(path)).await });
        let what = || format!("the counters of {}", self.name());
        asked
            .map_err(|_| anyhow!("no answer within {PATIENCE:?}"))
            .with_context(what)?
            .with_context(what)
    }
}

async fn ask(path: PathBuf) -> Result<Counters> {
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is only there because HTTP wants one.
    let channel = Endpoint::from_static("http://meshd").connect_with_connector(connector).await?;
    let reply = ControlClient::new(channel).counters(CountersRequest {}).await?.into_inner();
    let counters = reply.counters.into_iter().map(|counter| {
        let value = counter.labels.values().next().map(String::as_str);
        (label(&counter.name, value), counter.value)
    });
    Ok(Counters(counters.collect()))
}
