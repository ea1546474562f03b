//! Looking at the ring in Consul from outside, without a node.

use std::collections::BTreeMap;
use std::time::Duration;

use annulus::clock::Now;
use annulus::kv::Codec as _;
use annulus::ring::{Desc, InstanceState, RingCodec};
use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::support::consul::Consul;

/// The key of the ring in both stores and on both sides.
pub(crate) const RING_KEY: &str = "collectors/ring";

/// An entry is stale from this age on: five heartbeats of the benchmark.
const STALE: Duration = Duration::from_secs(10);

/// What was seen in Consul over time.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    pub(crate) looks: u64,
    /// Looks that found a stale entry.
    pub(crate) stale_looks: u64,
    /// Most entries that were stale at one time.
    pub(crate) most_stale: usize,
    /// The largest age of an entry, in seconds.
    pub(crate) oldest: i64,
    /// Fewest instances that were there and not LEFT.
    pub(crate) fewest: Option<usize>,
    /// Instances that were LEFT, with how often.
    pub(crate) left: BTreeMap<String, u64>,
}

impl Ages {
    /// Looks once.
    pub(crate) fn look(&mut self, consul: &Consul) -> Result<()> {
        let desc = ring(consul)?;
        let now = Now::read().unix_secs();
        let ages: Vec<i64> = desc.live().map(|(_, instance)| now - instance.timestamp).collect();
        let limit = i64::try_from(STALE.as_secs()).unwrap_or(i64::MAX);
        let stale = ages.iter().filter(|age| **age > limit).count();
        self.looks += 1;
        self.stale_looks += u64::from(stale > 0);
        self.most_stale = self.most_stale.max(stale);
        self.oldest = self.oldest.max(ages.iter().copied().max().unwrap_or_default());
        self.fewest = Some(self.fewest.map_or(ages.len(), |fewest| fewest.min(ages.len())));
        for (id, instance) in &desc.instances {
            if instance.state == InstanceState::Left {
                *self.left.entry(id.to_string()).or_default() += 1;
            }
        }
        Ok(())
    }
}

/// The ring as Consul has it now.
pub(crate) fn ring(consul: &Consul) -> Result<Desc> {
    let answer = consul.request("GET", &format!("/v1/kv/{RING_KEY}"), b"");
    let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    let entries: Value = serde_json::from_str(body).with_context(|| answer.clone())?;
    let bytes = BASE64_STANDARD.decode(entries[0]["Value"].as_str().context("no value")?)?;
    let value = RingCodec.decode(&bytes)?;
    Ok(value.downcast_ref::<Desc>().context("not a ring")?.clone())
}
