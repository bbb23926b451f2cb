// How partials become a total. The contract is in wit/deps/quipu-policy/aggregation.wit.
//
// The exact sum: every shard is read, and integers of 64 bits and more are BigInts, which cannot overflow.

export const aggregator = {
  configure(config) {
    if (config !== "") throw `this policy needs no config; this one is ${JSON.stringify(config)}`;
  },

  refresh(_view) {},

  plan(_request) {
    return { tag: "all" };
  },

  combine(partials) {
    let total = 0n;
    for (const { value } of partials) total += value;
    return { hi: total >> 64n, lo: BigInt.asUintN(64, total) };
  },
};
