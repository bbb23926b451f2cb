import unittest

from app import Aggregator
from componentize_py_types import Err
from wit_world.exports.aggregator import Partial


def total(*values):
    total = Aggregator().combine([Partial(shard, value) for shard, value in enumerate(values)])
    return total.hi, total.lo


class AggregatorTest(unittest.TestCase):
    def test_totals_have_128_bits(self):
        self.assertEqual(total(), (0, 0))
        self.assertEqual(total(2, -3), (-1, 2**64 - 1))
        self.assertEqual(total(2**63 - 1, 2**63 - 1, 2), (1, 0))
        self.assertEqual(total(-(2**63), -(2**63)), (-1, 0))

    def test_a_config_is_refused(self):
        with self.assertRaises(Err):
            Aggregator().configure("x")


if __name__ == "__main__":
    unittest.main()
