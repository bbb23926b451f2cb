"""Waiting for what takes a while, with an end."""

import time


def wait(what, check, patience=90):
    """Asks until the answer is true, and gives it; fails after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (found := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience} s: {what}")
        time.sleep(0.05)
    return found
