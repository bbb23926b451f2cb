//! The clocks of machines. Real time passes for all of them alike, and their boot clocks follow it; their wall clocks need
//! not.

use std::time::Duration;

use quipu::shard::time::Clocks;

use super::super::Mutation;
use super::{BEGIN_MS, NODES, PEERS, World};

const DAY_MS: i64 = 24 * 3_600_000;

impl World {
    /// What the wall clock of a machine says.
    pub(super) fn wall_ms(&self, machine: usize) -> u64 {
        self.frozen_ms[machine].unwrap_or_else(|| self.now_ms.saturating_add_signed(self.wrong_ms[machine]))
    }

    pub(super) fn clocks(&self, machine: usize) -> Clocks {
        let [wall, boot] = [self.wall_ms(machine), self.now_ms - BEGIN_MS].map(Duration::from_millis);
        Clocks { wall, boot }
    }

    /// The journal time of an owner.
    pub(super) fn time_ms(&mut self, at: usize) -> u64 {
        let clocks = self.clocks(at);
        if self.mutation == Some(Mutation::AgesOfWallClocks) {
            return self.wall_ms(at);
        }
        let time = self.nodes[at].owner.as_mut().and_then(|owner| owner.time.as_mut());
        time.map_or(0, |time| time.advance(clocks))
    }

    /// A wall clock jumps ahead, back, home, or stops.
    pub(super) fn step_a_clock(&mut self) {
        self.summary.clock_steps += 1;
        let machine = self.rng.below(NODES + PEERS);
        let days = 1 + self.rng.below(30) as i64;
        self.frozen_ms[machine] = None;
        match self.rng.below(4) {
            0 => self.wrong_ms[machine] = days * DAY_MS,
            1 => self.wrong_ms[machine] = -days * DAY_MS,
            2 => self.wrong_ms[machine] = 0,
            _ => self.frozen_ms[machine] = Some(self.wall_ms(machine)),
        }
        let (wrong_ms, frozen_ms) = (self.wrong_ms[machine], self.frozen_ms[machine]);
        self.note(|_| format!("the clock of machine {machine} is wrong by {wrong_ms} ms, or stands at {frozen_ms:?}"));
    }
}
