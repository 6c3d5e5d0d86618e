//! Connecting to one of several addresses, of which some may be silent.
//!
//! As in RFC 8305 the next is tried when the one before has not answered for a quarter of a second, and at once when it
//! failed. So a seed that is gone, or a name's IPv6 address where there is no IPv6, costs a join that time and not five seconds.
//! Requests are not raced: whoever calls sends to one member after the other.

use std::{collections::VecDeque, net::SocketAddr, pin::Pin, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use super::enrol::{EnrolClient, EnrolClientError, EnrolLink};

/// "Connection Attempt Delay" of RFC 8305, 8.
const DELAY: Duration = Duration::from_millis(250);

type Attempt = Pin<Box<dyn Future<Output = (SocketAddr, Outcome)> + Send>>;
type Outcome = Result<EnrolLink, EnrolClientError>;

/// Attempts to connect, in order.
pub struct Race {
    client: EnrolClient,
    config: quinn::ClientConfig,
    server_name: String,
    waiting: VecDeque<SocketAddr>,
    trying: VecDeque<SocketAddr>,
    attempts: FuturesUnordered<Attempt>,
    /// When the next is tried.
    next: Instant,
}

impl Race {
    pub(super) fn new(
        client: EnrolClient,
        config: quinn::ClientConfig,
        server_name: &str,
        addresses: Vec<SocketAddr>,
    ) -> Self {
        Self {
            client,
            config,
            server_name: server_name.to_owned(),
            waiting: addresses.into(),
            trying: VecDeque::new(),
            attempts: FuturesUnordered::new(),
            next: Instant::now(),
        }
    }

    /// The next that answered or failed; `None` after the last.
    pub async fn next(&mut self) -> Option<Outcome> {
        loop {
            if self.attempts.is_empty() && !self.begin() {
                return None;
            }
            tokio::select! {
                biased;
                Some((address, outcome)) = self.attempts.next() => {
                    self.trying.retain(|tried| *tried != address);
                    match &outcome {
                        Ok(_) => self.put_back(),
                        Err(_) => { self.begin(); }
                    }
                    return Some(outcome);
                }
                () = tokio::time::sleep_until(self.next), if !self.waiting.is_empty() => {
                    self.begin();
                }
            }
        }
    }

    /// Tries another, if there is one.
    fn begin(&mut self) -> bool {
        let Some(address) = self.waiting.pop_front() else { return false };
        let (client, config) = (self.client.clone(), self.config.clone());
        let name = self.server_name.clone();
        self.attempts
            .push(Box::pin(async move { (address, client.connect(address, config, &name).await) }));
        self.trying.push_back(address);
        self.next = Instant::now() + DELAY;
        true
    }

    /// While one is asked the others do not keep connections that members close when nothing comes: they are tried again if
    /// it refuses.
    fn put_back(&mut self) {
        self.attempts.clear();
        self.trying.append(&mut self.waiting);
        std::mem::swap(&mut self.trying, &mut self.waiting);
    }
}
