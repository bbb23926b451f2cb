// Which shard takes an addition. The contract is in wit/deps/quipu-policy/selection.wit.
//
// The candidates take additions in turn; one whose queue is longer than the rule's `config` says is passed over.

const QUEUED_MAX_DEFAULT = 100;

// The state of one instance. There are many instances, and each may vanish after any call.
let queuedMax = QUEUED_MAX_DEFAULT;
let queued = [];
let turn = 0;

export const selector = {
  configure(config) {
    if (config !== "" && !/^[0-9]{1,9}$/.test(config)) {
      throw `the config is the longest queue that may still get additions, such as 100; this one is ${JSON.stringify(config)}`;
    }
    queuedMax = config === "" ? QUEUED_MAX_DEFAULT : Number(config);
  },

  refresh(view) {
    queued = Array.from(view.shards, (shard) => shard.queued);
  },

  select({ candidates }) {
    turn = (turn + 1) % 2 ** 32;
    for (let step = 0; step < candidates.length; step++) {
      const shard = candidates[(turn + step) % candidates.length];
      if ((queued[shard] ?? 0) <= queuedMax) return shard;
    }
    return candidates[turn % candidates.length];
  },
};
