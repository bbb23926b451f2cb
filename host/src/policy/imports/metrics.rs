//! `quipu:policy/metrics`: CPU and load, from the view that the instance was refreshed with.

use super::generated::metrics::Host;
use crate::policy::state::State;
use crate::policy::view::ShardInfo;

impl State {
    /// What is known of a shard's owner; a shard without an owner has none.
    fn owned(&self, shard: u32) -> Option<&ShardInfo> {
        self.view.shard(shard).filter(|info| info.available)
    }
}

impl Host for State {
    fn node_cpu(&mut self) -> wasmtime::Result<f64> {
        self.host_call()?;
        let cpu = self.node.cpu();
        Ok(self.tape.as_ref().map_or(cpu, |tape| tape.node_cpu(cpu)))
    }

    fn shard_cpu(&mut self, shard: u32) -> wasmtime::Result<Option<f64>> {
        self.host_call()?;
        Ok(self.owned(shard).map(|info| info.owner_cpu).filter(|cpu| !cpu.is_nan()))
    }

    fn shard_queued(&mut self, shard: u32) -> wasmtime::Result<Option<u32>> {
        self.host_call()?;
        Ok(self.owned(shard).map(|info| info.queued))
    }
}
