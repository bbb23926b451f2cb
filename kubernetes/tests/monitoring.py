"""Alert rules and dashboard must ask for metrics that the program has, and the README must explain every alert."""

import json
import os
import re
import signal
import subprocess
import tempfile
import urllib.request

import yaml

_SECONDS_TO_START = 60


def problems(kubernetes, program):
    """What is wrong, a sentence each. Starts the program on a free port of loopback, with a directory that is deleted."""
    known = metrics(program)
    rules = yaml.safe_load((kubernetes / "components/monitoring/quipu.rules.yaml").read_text())
    alerts = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    board = json.loads((kubernetes / "components/monitoring/quipu.json").read_text())
    asked = [(f"alert {alert}", expr) for alert, expr in alerts.items()]
    asked += [(f"panel {panel['title']}", target["expr"]) for panel in board["panels"] for target in panel["targets"]]
    for where, expr in asked:
        for metric in re.findall(r"\bquipu_[a-z_0-9]+", expr):
            if metric not in known:
                yield f"{where} asks for {metric}, which the program does not have"
    explained = set(re.findall(r"^\| `(Quipu[A-Za-z]+)` \|", (kubernetes / "README.md").read_text(), re.MULTILINE))
    for alert in sorted(explained ^ set(alerts)):
        yield f"alert {alert} is not both in the rules and in the table of README.md"


def metrics(program):
    """Names of the samples that the program exposes."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("QUIPU_")}
        flags = ["--listen", "127.0.0.1:0", "--data-dir", directory, "--policies", "off", "--log", "error"]
        node = subprocess.Popen([program, "serve", *flags], stdout=subprocess.PIPE, text=True, env=environment)
        # A node that never gets ready is ended, and its output with it.
        signal.signal(signal.SIGALRM, lambda *_: node.kill())
        signal.alarm(_SECONDS_TO_START)
        try:
            ready = node.stdout.readline()
            signal.alarm(0)
            address = re.search(r"http=(\S+)", ready)
            if not address:
                raise RuntimeError(f"{program} did not start: {ready!r}")
            with urllib.request.urlopen(f"http://{address[1]}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        finally:
            node.terminate()
            node.wait(30)
    kinds = re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE)
    # The samples of a counter are called _total, whether it has any yet or not.
    return {family + ("_total" if kind == "counter" else "") for family, kind in kinds}
