import assert from "node:assert/strict";
import { test } from "node:test";

import { aggregator } from "./policy.js";

const total = (...values) => aggregator.combine(values.map((value, shard) => ({ shard, value })));

test("totals have 128 bits", () => {
  assert.deepEqual(total(), { hi: 0n, lo: 0n });
  assert.deepEqual(total(2n, -3n), { hi: -1n, lo: 2n ** 64n - 1n });
  assert.deepEqual(total(2n ** 63n - 1n, 2n ** 63n - 1n, 2n), { hi: 1n, lo: 0n });
  assert.deepEqual(total(-(2n ** 63n), -(2n ** 63n)), { hi: -1n, lo: 0n });
});

test("a config is refused", () => {
  assert.throws(() => aggregator.configure("x"));
});
