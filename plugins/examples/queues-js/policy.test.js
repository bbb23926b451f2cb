import assert from "node:assert/strict";
import { test } from "node:test";

import { selector } from "./policy.js";

function shares(config, queued, candidates, calls) {
  selector.configure(config);
  selector.refresh({ version: 1n, shards: queued.map((queued, shard) => ({ shard, queued })) });
  const shares = {};
  for (let call = 0; call < calls; call++) {
    const shard = selector.select({ candidates });
    shares[shard] = (shares[shard] ?? 0) + 1;
  }
  return shares;
}

test("equal queues share evenly", () => {
  assert.deepEqual(shares("", [3, 3, 3], [2, 0, 1], 300), { 0: 100, 1: 100, 2: 100 });
});

test("a shard with the longer queue gets less, by the weights", () => {
  assert.deepEqual(shares("10", [0, 30, 0], [0, 1], 500), { 0: 400, 1: 100 });
  assert.deepEqual(shares("90", [0, 90, 0], [0, 1], 300), { 0: 200, 1: 100 });
});

test("one candidate takes all, and an unknown shard is no error", () => {
  assert.deepEqual(shares("", [5, 5], [1], 10), { 1: 10 });
  assert.deepEqual(shares("", [], [7], 10), { 7: 10 });
});

test("a config that is no patience is refused", () => {
  for (const config of ["0", "-1", "1.5", "x", "1000001"]) {
    assert.throws(() => selector.configure(config), (refused) => refused.includes(JSON.stringify(config)));
  }
});
