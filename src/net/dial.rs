//! Keeps a link: dials again whenever the last one has ended.
//!
//! Owns: [`Dialer`] and its [`Backoff`]. The dialer has no task of its own: its owner asks for the next link when it
//! likes. Invariant: between two attempts there is always a pause, short after a link that lasted, doubling up to the
//! cap otherwise, and jittered, so that the nodes of a restarted master do not come back in step.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rand::RngExt as _;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{Connector, Link, NetError, ends::Ends};

/// Pauses between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// The longest.
    pub cap: Duration,
}

impl Default for Backoff {
    /// A restarted master is found again at once, a missing one costs an attempt a second.
    fn default() -> Self {
        Backoff { first: Duration::from_millis(50), cap: Duration::from_secs(1) }
    }
}

impl Backoff {
    /// The pause after so many failures in a row; `chance` lies in `0.0..1.0`. Between half and the whole of the
    /// doubled value, so never nothing.
    fn pause(self, failures: u32, chance: f64) -> Duration {
        let doubled = self.first.saturating_mul(2_u32.saturating_pow(failures)).min(self.cap);
        doubled.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }
}

/// Keeps one link to one peer.
pub struct Dialer {
    connector: Connector,
    address: String,
    server_name: String,
    backoff: Backoff,
    failures: u32,
    last: Option<Last>,
    turned_away: Option<TurnedAway>,
}

/// Hears why the peer does not want this side any more.
pub type TurnedAway = Arc<dyn Fn(&str) + Send + Sync>;

struct Last {
    since: Instant,
    ends: Arc<Ends>,
}

impl Dialer {
    /// A dialer for `address` (`HOST:PORT`; the name is resolved anew each time) and the peer called `server_name`.
    pub fn new(
        connector: Connector,
        address: impl Into<String>,
        server_name: impl Into<String>,
        backoff: Backoff,
    ) -> Dialer {
        Dialer {
            connector,
            address: address.into(),
            server_name: server_name.into(),
            backoff,
            failures: 0,
            last: None,
            turned_away: None,
        }
    }

    /// Has `hear` called whenever the peer does not accept this side's certificate. It is tried on all the same.
    #[must_use]
    pub fn on_turned_away(mut self, hear: TurnedAway) -> Dialer {
        self.turned_away = Some(hear);
        self
    }

    /// Waits for the end of the last link, then connects, again and again until it succeeds. Cancel-safe: a cancelled
    /// attempt is begun anew.
    pub async fn next<Out: Serialize, In: DeserializeOwned>(&mut self) -> Link<Out, In> {
        if let Some(last) = &self.last {
            last.ends.wait_closed().await;
            // A link that ends as soon as it begins (a peer that throws us out) counts as a failure.
            if last.since.elapsed() > self.backoff.cap {
                self.failures = 0;
            }
            self.last = None;
            self.pause().await;
        }
        loop {
            match self.attempt().await {
                Ok(link) => {
                    self.last = Some(Last { since: Instant::now(), ends: link.ends() });
                    return link;
                }
                Err(NetError::Unwelcome { problem, .. }) => {
                    tracing::error!(problem, "turned away by the master");
                    if let Some(hear) = &self.turned_away {
                        hear(&problem);
                    }
                }
                Err(error) if self.failures == 0 => tracing::warn!(%error, "no link; trying on"),
                Err(error) => tracing::debug!(%error, failures = self.failures, "no link"),
            }
            self.pause().await;
        }
    }

    async fn attempt<Out: Serialize, In: DeserializeOwned>(&self) -> Result<Link<Out, In>, NetError> {
        let failed = |problem: String| NetError::Connect { address: self.address.clone(), problem };
        let mut addresses: Vec<SocketAddr> = match self.address.parse() {
            Ok(address) => vec![address],
            Err(_) => {
                tokio::net::lookup_host(&self.address).await.map_err(|e| failed(e.to_string()))?.collect()
            }
        };
        // Another address of the name each time.
        let turn = self.failures as usize % addresses.len().max(1);
        addresses.rotate_left(turn);
        let address = addresses.first().ok_or_else(|| failed("the name has no address".into()))?;
        self.connector.connect(*address, &self.server_name).await
    }

    async fn pause(&mut self) {
        let pause = self.backoff.pause(self.failures, rand::rng().random());
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_never_vanish() {
        let backoff = Backoff::default();
        for (failures, chance, ms) in [
            (0, 0.0, 25.0),
            (0, 1.0, 50.0),
            (1, 1.0, 100.0),
            (4, 0.0, 400.0),
            (5, 1.0, 1000.0),
            (u32::MAX, 0.5, 750.0),
        ] {
            assert_eq!(backoff.pause(failures, chance).as_secs_f64() * 1000.0, ms, "{failures} {chance}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_pause_lies_between_half_of_the_first_and_the_cap(
            first in 1..100_000_u64, more in 0..100_000_u64, failures: u32, chance: f64,
        ) {
            let backoff =
                Backoff { first: Duration::from_micros(first), cap: Duration::from_micros(first + more) };
            let pause = backoff.pause(failures, chance);
            proptest::prop_assert!(backoff.first / 2 <= pause && pause <= backoff.cap, "{pause:?}");
            proptest::prop_assert!(pause <= backoff.pause(failures.saturating_add(1), chance));
        }
    }
}
