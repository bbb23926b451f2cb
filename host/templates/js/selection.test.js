import assert from "node:assert/strict";
import { test } from "node:test";

import { selector } from "./policy.js";

const choices = (count, candidates) => Array.from({ length: count }, () => selector.select({ candidates }));
const view = (...queued) => ({ version: 1n, shards: queued.map((queued, shard) => ({ shard, queued })) });

test("the candidates take turns", () => {
  selector.configure("");
  assert.deepEqual(choices(6, [4, 9, 1]), [9, 1, 4, 9, 1, 4]);
});

test("a long queue is passed over", () => {
  selector.configure("10");
  selector.refresh(view(0, 11, 10));
  assert.ok(!choices(10, [0, 1, 2]).includes(1));
  selector.refresh(view(11, 11, 11));
  assert.ok(choices(10, [0, 1, 2]).every((shard) => shard <= 2));
});

test("a config that is no number is refused", () => {
  assert.throws(() => selector.configure("many"), (refused) => refused.includes('"many"'));
});
