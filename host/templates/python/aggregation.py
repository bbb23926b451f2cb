"""How partials become a total. The contract is in wit/deps/quipu-policy/aggregation.wit.

The exact sum: every shard is read, and Python's integers cannot overflow.
"""

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.aggregator import ReadPlan_All, Total


class Aggregator(exports.Aggregator):
    def configure(self, config):
        if config:
            raise Err(f"this policy needs no config; this one is {config!r}")

    def refresh(self, view):
        pass

    def plan(self, request):
        return ReadPlan_All()

    def combine(self, partials):
        total = sum(partial.value for partial in partials)
        return Total(hi=total >> 64, lo=total & (2**64 - 1))
