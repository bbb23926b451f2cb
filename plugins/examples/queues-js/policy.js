// The shorter the queue of a shard's owner, the more additions the shard gets: a queue of n counts 1 / (n + patience).
//
// `config` is the patience, a whole number from 1 to 1000000, 10 when empty: the larger, the less the queues matter.
//
// Smooth weighted round robin, as in nginx: each candidate saves up its weight, the richest takes the addition and pays
// what all of them got. Shares are exact over some rounds without randomness, and nobody runs to one shard at once.

const PATIENCE_DEFAULT = 10;

// The state of one instance, by shard number.
let patience = PATIENCE_DEFAULT;
let weights = [];
let saved = [];

export const selector = {
  configure(config) {
    const number = config === "" ? PATIENCE_DEFAULT : Number(config);
    if (!Number.isInteger(number) || number < 1 || number > 1_000_000) {
      throw `the config is the patience, a whole number from 1 to 1000000; this one is ${JSON.stringify(config)}`;
    }
    patience = number;
  },

  refresh(view) {
    weights = Array.from(view.shards, ({ queued }) => 1 / (queued + patience));
    saved = weights.map(() => 0);
  },

  select({ candidates }) {
    let richest = candidates[0];
    let paid = 0;
    for (const shard of candidates) {
      const weight = weights[shard] ?? 0;
      saved[shard] = (saved[shard] ?? 0) + weight;
      paid += weight;
      if (saved[shard] > saved[richest]) richest = shard;
    }
    saved[richest] -= paid;
    return richest;
  },
};
