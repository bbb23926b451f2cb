"""Waiting for what takes a while, with an end."""

import time


class NotNow(AssertionError):
    """What was asked for is not there at this moment, such as a pod that is being replaced. While one waits it means "not
    yet"; elsewhere it is the failure that it looks like."""


def wait(what, check, patience=90):
    """Asks until the answer is true, and gives it; fails after `patience` seconds, with the last reason why not."""
    deadline = time.monotonic() + patience
    while True:
        try:
            found, why = check(), ""
        except NotNow as not_now:
            found, why = None, f" ({not_now})"
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience} s: {what}{why}")
        time.sleep(0.05)
