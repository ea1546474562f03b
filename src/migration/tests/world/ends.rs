//! How nodes end, and start again.

use std::time::Duration;

use super::{Ev, RING, Side, View, World, millis};
use crate::migration::{MultiConfig, MultiCore};

/// How a node ends.
#[derive(Clone, Debug)]
pub(in super::super) enum Death {
    /// The actor panics over an input; its successor has what was durable before it.
    Actor,
    /// The process is killed over an input, and started again after a while, with this static configuration.
    Process(Static, Duration),
}

/// What the static configuration of a process says about stores.
#[derive(Clone, Debug)]
pub(in super::super) enum Static {
    /// There are both.
    Multi(Box<MultiConfig>),
    /// Gossip alone: the runtime file has nothing to say to such a node.
    GossipAlone,
}

impl From<MultiConfig> for Static {
    fn from(config: MultiConfig) -> Self {
        Self::Multi(Box::new(config))
    }
}

impl World {
    /// The actor dies and is restarted with what was durable.
    pub(in super::super) fn crash(&mut self, n: usize) {
        self.tally.fault("actor restarted");
        let now = self.now_of(n);
        let config = self.nodes[n].core.config.clone();
        let mut core = MultiCore::resume(config, self.nodes[n].core.durable(), now);
        core.fault = self.fault;
        self.new_life(n, core);
        // The runtime file is told again at each reading.
        let after = self.upto(10_000);
        self.push(after, Ev::Reload(n, self.nodes[n].life));
        self.drive(n);
    }

    fn new_life(&mut self, n: usize, core: MultiCore) {
        let node = &mut self.nodes[n];
        node.life += 1;
        node.failed += node.ops.len() as u64;
        node.ops.clear();
        node.core = core;
        node.tick_at = None;
    }

    /// `kill -9`: the process is gone with all that it held.
    pub(in super::super) fn kill(&mut self, n: usize) {
        self.tally.fault("process killed");
        self.end(n);
    }

    /// The process ends in peace: it goes when others have heard what it had to say.
    pub(in super::super) fn leave(&mut self, n: usize) {
        self.join_gossip(n);
        self.end(n);
    }

    /// The process ends, and what it held is gone with it.
    fn end(&mut self, n: usize) {
        let core = MultiCore::new(self.nodes[n].core.config.clone(), self.now_of(n));
        self.new_life(n, core);
        let node = &mut self.nodes[n];
        node.alive = false;
        node.blind = false;
        node.doomed = None;
        node.replica.forget();
        node.seen.clear();
        node.got.clear();
        node.buried.clear();
        node.carry.clear();
        self.gone_with_process(n);
    }

    /// A process that ended starts again, and reads its runtime file after a while.
    pub(in super::super) fn boot(&mut self, n: usize, config: impl Into<Static>, file_after: Duration) {
        let (config, alone) = match config.into() {
            Static::Multi(config) => (*config, false),
            // Its core idles.
            Static::GossipAlone => (self.nodes[n].core.config.clone(), true),
        };
        let mut core = MultiCore::new(config, self.now_of(n));
        core.fault = self.fault;
        self.new_life(n, core);
        let node = &mut self.nodes[n];
        (node.alive, node.drained, node.alone) = (true, false, alone);
        node.view = node.core.view();
        if alone {
            self.tally.fault("process started on gossip alone");
            node.view = View { primary: Side::B, mirror_enabled: false, waiting_for_runtime: false, ..node.view };
        }
        let life = node.life;
        self.push(millis(50), Ev::Join(n));
        self.push(file_after, Ev::Reload(n, life));
        for key in self.nodes[n].watch.keys().cloned().collect::<Vec<_>>() {
            self.watch(n, &key);
        }
        self.drive(n);
        self.put(n, RING, &format!("node-{n}"));
    }

    /// The node will die over the input after the next `inputs`.
    pub(in super::super) fn doom(&mut self, n: usize, inputs: u64, death: Death) {
        self.nodes[n].doomed = Some((inputs, death));
    }
}
