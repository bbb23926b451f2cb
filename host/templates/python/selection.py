"""Which shard takes an addition. The contract is in wit/deps/quipu-policy/selection.wit.

The candidates take additions in turn; one whose queue is longer than the rule's `config` says is passed over.
"""

from componentize_py_types import Err
from wit_world import exports

QUEUED_MAX_DEFAULT = 100


class Policy:
    """What an instance keeps. There are many instances, and each may vanish after any call."""

    def __init__(self, config):
        if config and not (config.isascii() and config.isdigit()):
            raise Err(f"the config is the longest queue that may still get additions, such as 100; this one is {config!r}")
        self.queued_max = int(config or QUEUED_MAX_DEFAULT)
        self.queued = []
        self.turn = 0

    def refresh(self, view):
        self.queued = [shard.queued for shard in view.shards]

    def select(self, candidates):
        self.turn += 1
        first = self.turn % len(candidates)
        for shard in candidates[first:] + candidates[:first]:
            if shard >= len(self.queued) or self.queued[shard] <= self.queued_max:
                return shard
        return candidates[first]


policy = None


class Selector(exports.Selector):
    """A new one is made for every call, so it keeps nothing itself."""

    def configure(self, config):
        global policy
        policy = Policy(config)

    def refresh(self, view):
        policy.refresh(view)

    def select(self, request):
        return policy.select(request.candidates)
