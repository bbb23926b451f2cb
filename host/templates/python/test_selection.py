import unittest

from app import Selector
from componentize_py_types import Err
from wit_world.exports.selector import Request
from wit_world.imports.types import ShardInfo, View


def choices(count, config, queued, candidates):
    shards = [ShardInfo(shard, True, False, 0.5, length) for shard, length in enumerate(queued)]
    Selector().configure(config)
    Selector().refresh(View(version=1, shards=shards))
    request = Request(counter="example/1", amount=1, key_hash=7, candidates=candidates)
    return [Selector().select(request) for _ in range(count)]


class SelectorTest(unittest.TestCase):
    def test_the_candidates_take_turns(self):
        self.assertEqual(choices(6, "", [0] * 12, [4, 9, 1]), [9, 1, 4, 9, 1, 4])

    def test_a_long_queue_is_passed_over(self):
        self.assertEqual(set(choices(10, "10", [0, 11, 10], [0, 1, 2])), {0, 2})
        self.assertEqual(set(choices(10, "10", [11, 11, 11], [0, 1, 2])), {0, 1, 2})

    def test_a_config_that_is_no_number_is_refused(self):
        with self.assertRaises(Err) as refused:
            Selector().configure("many")
        self.assertIn("'many'", refused.exception.value)


if __name__ == "__main__":
    unittest.main()
