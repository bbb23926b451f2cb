"""A backup is made, goes on being written to, is destroyed and restored; then everything must be as it was at the backup.

    backup.py STATE

`backup` starts this in a network of its own, with the tools of both databases on PATH. What is done to the databases are the
commands of README.md; what it asks of Kubernetes is done to three processes here.
"""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from load import Load
from readme import commands
from waiting import NotNow, wait

STATE = pathlib.Path(sys.argv[1])
ROOT = pathlib.Path(__file__).parent.parent.parent
PROGRAM = os.environ["QUIPU_BIN"]
SERVICES = STATE / "services"
CASSANDRAS = 3
NODES = {f"quipu-{number}": f"127.0.0.{11 + number}" for number in range(3)}
#: One whose rule keeps it on one shard, one under an uploaded policy, one without a rule.
COUNTERS = ["stock/apples", "mine/a", "likes"]
PATIENCE = 60


def ask(method, path, body=None, headers=()):
    """Of the first node; answers the body and the headers."""
    body = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{NODES['quipu-0']}:8080{path}", body, dict(headers), method=method)
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        kind = NotNow if error.code in (429, 503) else AssertionError
        raise kind(f"{method} {path}: {error.code} {error.read().decode()}") from None
    except OSError as error:
        raise NotNow(f"{method} {path}: {error}") from error


def ready(address):
    try:
        with urllib.request.urlopen(f"http://{address}:8080/readyz", timeout=5):
            return True
    except OSError:
        return False


def owned(shards):
    return all(one.get("owner") in NODES for one in shards)


class Cluster:
    """Three nodes, which keep nothing but what they have compiled."""

    def __init__(self):
        self.running = {}

    def start(self):
        for node, address in NODES.items():
            flags = ["--node-id", node, "--etcd", "http://127.0.0.1:2379", "--cassandra", "127.0.0.1:9042"]
            flags += ["--listen", f"{address}:8080", "--peer-listen", f"{address}:7070", "--cache-dir", str(STATE / "cache")]
            log = (STATE / f"{node}.log").open("ab")
            self.running[node] = subprocess.Popen([PROGRAM, "serve", *flags], stdout=log, stderr=log)
        for node, address in NODES.items():
            wait(f"{node} is ready", lambda: ready(address) or self.ended(node))
        wait("every shard has an owner", lambda: owned(ask("GET", "/v1/cluster")[0]["shards"]))

    def ended(self, node):
        assert self.running[node].poll() is None, f"{node} ended by itself"

    def stop(self):
        for process in self.running.values():
            process.terminate()
        for node, process in self.running.items():
            assert process.wait(PATIENCE) == 0, f"{node} ended with {process.returncode}"
        self.running.clear()

    def kill(self):
        for process in self.running.values():
            process.kill()
            process.wait()
        self.running.clear()


def services(*arguments):
    done = subprocess.run([ROOT / "tests/services" / arguments[0], *arguments[1:]], capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stderr.strip()}"


def shell(command, number=1):
    """As on the machine of Cassandra node `number`."""
    home = STATE / f"machine{number}"
    home.mkdir(exist_ok=True)
    data = SERVICES / f"cassandra/node{number}/data"
    url = f"http://{NODES['quipu-0']}:8080"
    environment = os.environ | {"DATA": str(data), "NODETOOL_PORT": str(7198 + number), "QUIPU_URL": url}
    done = subprocess.run(["bash", "-euc", command], cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"


def carry_out(section, cluster):
    """What README.md says, command by command."""
    for command, everywhere in commands(section):
        if command.startswith("kubectl"):
            if "statefulset/quipu --replicas=0" in command:
                cluster.stop()
            elif "statefulset/quipu --replicas=3" in command:
                cluster.start()
            continue
        if command.startswith("etcdctl snapshot restore"):
            shell(command)
            (SERVICES / "etcd").mkdir()
            (STATE / "machine1/etcd-restored").rename(SERVICES / "etcd/data")
            services("up", "--etcd")
            continue
        machines = range(1, CASSANDRAS + 1) if everywhere else [1]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda number: shell(command, number), machines))


def path_of(counter, end=""):
    return f"/v1/counters/{urllib.parse.quote(counter, safe='')}{end}"


def add(counter, key):
    """Answers whether the key was known."""
    answer, headers = ask("POST", path_of(counter, "/add"), {"amount": 3}, {"Idempotency-Key": key})
    assert answer["outcome"] == "applied", answer
    return headers.get("Idempotency-Replayed") == "true"


def add_all(keys):
    """Answers how many of the keys were known."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return sum(pool.map(lambda pair: add(*pair), [(counter, key) for counter in COUNTERS for key in keys]))


def everything():
    """Totals, partials, rules and policies, as the cluster answers them."""
    listed = [one["id"] for one in ask("GET", "/v1/counters?limit=1000")[0]["counters"]]
    totals = {one: ask("GET", path_of(one))[0]["value_str"] for one in listed}
    # Not whose they are: owners change.
    partials = {one: [(part["shard"], part["value"]) for part in ask("GET", path_of(one, "/shards"))[0]["partials"]] for one in COUNTERS}
    rules = ask("GET", "/v1/rules")[0]
    plugins = [(one["name"], one.get("builtin")) for one in ask("GET", "/v1/plugins")[0]["plugins"]]
    return {"totals": totals, "partials": partials, "rules": rules, "plugins": plugins}


def main():
    begun = time.monotonic()
    services("up", "--etcd", "--cassandra-nodes", str(CASSANDRAS))
    subprocess.run([PROGRAM, "store", "init", "--cassandra", "127.0.0.1:9042", "--replication", "3"], check=True, capture_output=True)
    cluster = Cluster()
    cluster.start()
    policy = (ROOT / "plugins/target/wasm32-wasip2/release/two_choices.wasm").read_bytes()
    ask("PUT", "/v1/plugins/mine", policy)
    ask("PUT", "/v1/rules", {"match": "mine/", "spread": 4, "selection": {"plugin": "mine"}})
    ask("PUT", "/v1/rules", {"match": "stock/", "spread": 1, "min": 0})
    print(f"three Cassandra nodes, etcd and three nodes of Quipu after {time.monotonic() - begun:.0f} s")

    before = [f"before-{number}" for number in range(200)]
    assert add_all(before) == 0
    load = Load(NODES.values(), clients=8, pause=0, keyed=False)
    load.start()
    wait("additions are acknowledged", lambda: load.acknowledged() > 3000)
    load.stop()
    assert load.failed() == 0, load.failures()
    kept = everything()
    for counter, (acknowledged, _) in load.expected().items():
        assert int(kept["totals"][counter]) == acknowledged, f"{counter} is {kept['totals'][counter]}, not {acknowledged}"
    begun = time.monotonic()
    carry_out("Back up", cluster)
    assert everything() == kept, "a backup changes nothing"
    print(f"backed up: {len(kept['totals'])} counters; nobody wrote for {time.monotonic() - begun:.0f} s")

    # What the backup does not have.
    after = [f"after-{number}" for number in range(50)]
    assert add_all(after) == 0
    ask("PUT", "/v1/rules", {"match": "stock/", "spread": 1, "min": -5})
    assert everything() != kept
    cluster.kill()
    services("down", "--kill")
    assert not (SERVICES / "cassandra").exists() and not (SERVICES / "etcd").exists()

    services("up", "--cassandra-nodes", str(CASSANDRAS))
    begun = time.monotonic()
    carry_out("Restore", cluster)
    found = everything()
    for what in kept:
        assert found[what] == kept[what], f"{what} were {kept[what]}, and are {found[what]}"
    print(f"destroyed and restored in {time.monotonic() - begun:.0f} s: totals, partials, rules and policies as they were")

    assert add_all(before) == len(COUNTERS) * len(before), "a key from before the backup counted again"
    assert everything()["totals"] == kept["totals"]
    assert add_all(after) == 0, "a key from after the backup was known"
    wanted = {counter: str(int(total) + 3 * len(after) * (counter in COUNTERS)) for counter, total in kept["totals"].items()}
    assert everything()["totals"] == wanted
    # What is counted now must not lose against anything that was restored: read it by other owners.
    cluster.kill()
    cluster.start()
    assert everything()["totals"] == wanted
    shell("quipu cluster verify")
    print(f"{3 * len(before)} keys from before are known, {3 * len(after)} from after count; all of it survives a crash")


if __name__ == "__main__":
    try:
        main()
    except Exception:
        for log in sorted(STATE.glob("quipu-*.log")):
            print(f"-- {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]), file=sys.stderr)
        raise
