"""On quiet days fewer shards take additions, so that each write to the journal carries more of them.

The rule's `config` is a JSON object: how many of a counter's candidates take its additions on each day of the week, in UTC.
`default` holds for the days that are not named; a number beyond the rule's spread means all candidates.

    {"default": 6, "sat": 2, "sun": 1}

Among those candidates they go in turn. Every shard that a counter was ever written on is still read, whatever the day.
"""

import json
from datetime import datetime, timezone

from componentize_py_types import Err
from wit_world import exports

DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def parse(config):
    """How many candidates, by weekday from Monday on."""
    try:
        settings = json.loads(config)
    except ValueError as error:
        raise Err(f'the config is a JSON object such as {{"default": 6, "sun": 1}}; this one is none: {error}')
    if not isinstance(settings, dict) or "default" not in settings:
        raise Err('the config is a JSON object with a member "default", such as {"default": 6, "sun": 1}')
    for day, count in settings.items():
        if day != "default" and day not in DAYS:
            raise Err(f'{day!r} is neither a day ({", ".join(DAYS)}) nor "default"')
        if type(count) is not int or not 1 <= count <= 4096:
            raise Err(f"{day!r} needs a whole number from 1 to 4096; this one is {count!r}")
    return [settings.get(day, settings["default"]) for day in DAYS]


class Policy:
    """What an instance keeps."""

    def __init__(self, config):
        self.counts = parse(config)
        self.turn = 0

    def select(self, candidates):
        self.turn += 1
        count = self.counts[datetime.now(timezone.utc).weekday()]
        return candidates[self.turn % min(count, len(candidates))]


policy = None


class Selector(exports.Selector):
    """A new one is made for every call, so it keeps nothing itself."""

    def configure(self, config):
        global policy
        policy = Policy(config)

    def refresh(self, view):
        pass

    def select(self, request):
        return policy.select(request.candidates)
