"""Three containers under load: what they acknowledged must be there after a pause, a cut of the network and a kill, and a
rolling replacement must fail no request. Besides: a gateway, a CPU limit, TLS between nodes.

`containers` starts this with etcd and Cassandra on their usual ports of loopback, an image localhost/quipu:test and
an internal network `quipu`. The load is in load.py, the way from the containers to loopback in relay.py.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from load import Load
from relay import relay
from waiting import NotNow, wait

IMAGE, NETWORK, GATEWAY = "localhost/quipu:test", "quipu", "10.63.0.254"
NODES = ["quipu-0", "quipu-1", "quipu-2"]
TOKEN = "of-this-test-only"
#: As the manifests have it: `preStop` in seconds, and the rest of terminationGracePeriodSeconds.
PAUSE, GRACE = 5, 40


def podman(*arguments):
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"podman {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def get(address, path, token=TOKEN):
    request = urllib.request.Request(f"http://{address}:8080{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read().decode()


def ready(address, node=None):
    """Whether the node takes writes; with its name also an error when it has ended instead."""
    try:
        get(address, "/readyz")
        return True
    except OSError:
        if node and podman("inspect", "--format", "{{.State.Status}}", node) == "exited":
            raise AssertionError(f"{node} ended by itself") from None
        return False


def empty_directory():
    """As an emptyDir is: root's, open to the group of the pod, and in it all that is made belongs to that group."""
    directory = tempfile.mkdtemp()
    os.chown(directory, 0, 65532)
    os.chmod(directory, 0o2777)
    return directory


def start(node, *more, address=None, settings=()):
    """Runs the image with what the manifests give it, and answers its address."""
    flags = ["--detach", "--name", node, "--read-only", "--user", "65532:65532", "--cap-drop", "all"]
    flags += ["--security-opt", "no-new-privileges", "--memory", "1g", "--pids-limit", "512"]
    # No volume that comes with the image: a pod has only those that its manifest names.
    flags += ["--image-volume", "ignore", "--volume", f"{empty_directory()}:/var/cache/quipu"]
    flags += ["--network", f"{NETWORK}:ip={address}" if address else NETWORK]
    settings = {
        "QUIPU_ETCD": f"http://{GATEWAY}:2379",
        "QUIPU_CASSANDRA": f"{GATEWAY}:9042",
        "QUIPU_CREATE_SCHEMA": "on",
        "QUIPU_REPLICATION": "1",
        "QUIPU_ADMIN_TOKEN": TOKEN,
        "QUIPU_NODE_ID": node,
        "QUIPU_DRAIN_TIMEOUT": "20s",
        "QUIPU_RESIDENT_COUNTERS": "100000",
        **dict(settings),
    }
    for key, value in settings.items():
        flags += ["--env", f"{key}={value}"]
    podman("run", *flags, *more, IMAGE)
    return podman("inspect", "--format", f'{{{{(index .NetworkSettings.Networks "{NETWORK}").IPAddress}}}}', node)


def owners(address):
    """Which node owns how many shards, as the node at this address sees it."""
    shards = json.loads(get(address, "/v1/cluster"))["shards"]
    counts = {}
    for shard in shards:
        counts[shard.get("owner")] = counts.get(shard.get("owner"), 0) + 1
    return counts


def spread(address, nodes):
    """Every node owns a fair part of the shards, and nobody else has any."""
    try:
        counts = owners(address)
    except OSError:
        return False
    return set(counts) == set(nodes) and max(counts.values()) - min(counts.values()) <= 1


def check_restrictions(address):
    state = json.loads(podman("inspect", "quipu-0"))[0]
    assert state["HostConfig"]["ReadonlyRootfs"] and state["Config"]["User"] == "65532:65532"
    process = f"/proc/{state['State']['Pid']}/status"
    status = dict(line.split(":", 1) for line in open(process).read().splitlines())
    assert status["Uid"].split() == ["65532"] * 4, status["Uid"]
    assert int(status["CapEff"], 16) == 0 and status["NoNewPrivs"].strip() == "1"
    assert json.loads(get(address, "/healthz")) == {"status": "ok"}
    try:
        get(address, "/v1/cluster", token="wrong")
        raise AssertionError("a wrong token is let in")
    except urllib.error.HTTPError as error:
        assert error.code in (401, 403), error.code
    print("read-only, as user 65532, without a capability: serves")


def check_gateway():
    """A node with the role of the gateways in `split` serves requests, and shards never."""
    address = start("gateway", settings={"QUIPU_ROLE": "gateway"})
    wait("the gateway is ready", lambda: ready(address, "gateway"))
    load = Load([address], clients=2, pause=0.005, keyed=False)
    load.start()
    wait("additions by the gateway are acknowledged", lambda: load.acknowledged() > 200)
    load.stop()
    assert load.failed() == 0, load.failures()
    assert spread(address, NODES), owners(address)
    check_sums(load, address, "gateway")
    begun = time.monotonic()
    podman("stop", "--time", str(GRACE), "gateway")
    podman("rm", "gateway")
    print(f"gateway: stopped in {time.monotonic() - begun:.1f} s")


def disturb(load, addresses, what, do, undo):
    """Does something to one node in the middle of the load, and waits until the cluster is whole again."""
    before, begun = load.acknowledged(), time.monotonic()
    do()
    # The others carry on without it: more is acknowledged than was under way.
    wait(f"additions go on after {what}", lambda: load.acknowledged() > before + 20 * load.clients)
    took_over = time.monotonic() - begun
    undo()
    wait(f"all nodes are ready after {what}", lambda: all(map(ready, addresses.values())))
    wait(f"shards are spread again after {what}", lambda: spread(addresses[NODES[0]], NODES))
    print(f"{what}: goes on after {took_over:.1f} s, whole after {time.monotonic() - begun:.1f} s")


def replace(load, addresses):
    """Stops and replaces each node as a rolling update does; returns when the last is ready."""
    for node in NODES:
        # Kubernetes takes the pod out of the service and begins its preStop pause at once.
        load.remove(addresses[node])
        settled = time.monotonic() + PAUSE
        wait("the pause", lambda: time.monotonic() > settled)
        begun = time.monotonic()
        podman("stop", "--time", str(GRACE), node)
        stopped = time.monotonic() - begun
        code = podman("inspect", "--format", "{{.State.ExitCode}}", node)
        assert code == "0", f"{node} ended with {code}"
        podman("rm", node)
        addresses[node] = start(node)
        wait(f"the new {node} is ready", lambda: ready(addresses[node], node))
        load.add(addresses[node])
        print(f"replaced {node}: stopped in {stopped:.1f} s, ready {time.monotonic() - begun - stopped:.1f} s later")


def check_sums(load, address, what):
    """Each counter is what was acknowledged of it; unkeyed additions whose outcome is unknown may be in it."""
    for counter, (acknowledged, unknown) in load.expected().items():
        value = json.loads(get(address, f"/v1/counters/{counter}"))["value"]
        assert acknowledged <= value <= acknowledged + unknown, f"{what}: {counter} is {value}, not {acknowledged} (+{unknown})"
    print(f"{what}: {load}; every counter is exact")


def check_tls():
    """With a certificate as `components/tls` wants it nodes talk to each other by name, and only so."""
    secret = certificate("*.quipu-peers.quipu.svc")
    lines = (pathlib.Path(__file__).parent.parent / "components/tls/settings.env").read_text().split()
    peers = dict(line.split("=", 1) for line in lines if line.startswith("QUIPU_PEER_"))
    addresses = {node: f"10.63.0.{10 + number}" for number, node in enumerate(NODES)}
    names = [flag for node in NODES for flag in ("--add-host", f"{node}.quipu-peers.quipu.svc:{addresses[node]}")]
    podman("rm", "--force", "--time", "0", *NODES)
    for node, address in addresses.items():
        settings = {**peers, "QUIPU_CLUSTER": "secured", "QUIPU_ADVERTISE": f"{node}.quipu-peers.quipu.svc:7070"}
        start(node, "--volume", f"{secret}:/etc/quipu/peer:ro", *names, address=address, settings=settings)
    for node, address in addresses.items():
        wait(f"{node} is ready", lambda: ready(address, node))
    wait("shards are spread", lambda: spread(addresses["quipu-0"], NODES))
    load = Load([addresses["quipu-0"]], clients=4, pause=0.005, keyed=False)
    load.start()
    wait("additions are acknowledged", lambda: load.acknowledged() > 400)
    load.stop()
    assert load.failed() == 0, load.failures()
    check_sums(load, addresses["quipu-1"], "with TLS between nodes")
    plain = subprocess.run(
        ["curl", "--silent", "--max-time", "3", "--http2-prior-knowledge", f"http://{addresses['quipu-0']}:7070/"], check=False
    )
    assert plain.returncode != 0, "a connection without TLS is served by the port for nodes"


def certificate(name):
    """A directory with ca.crt, tls.crt and tls.key as a Secret has them: root's, readable by the group of the pod."""
    directory = pathlib.Path(empty_directory())

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=directory)

    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=ca",
            "-keyout", "ca.key", "-out", "ca.crt")  # fmt: skip
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=quipu",
            "-keyout", "tls.key", "-out", "tls.csr")  # fmt: skip
    (directory / "names").write_text(f"subjectAltName = DNS:{name}\nextendedKeyUsage = serverAuth, clientAuth\n")
    openssl("x509", "-req", "-days", "1", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-extfile", "names", "-out", "tls.crt")  # fmt: skip
    (directory / "ca.key").unlink()
    for file in directory.iterdir():
        file.chmod(0o440)
    return directory


def check_cpu():
    """A node that may use a quarter of a core says that it is busy when it is, and only then.

    The use of the machine would be an eighth of that on two quiet cores, and much on busy ones.
    """
    address = start("limited", "--cpus", "0.25")
    wait("the limited node is ready", lambda: ready(address, "limited"))
    load = Load([address], clients=4, pause=0, keyed=False)
    load.start()

    def ratio():
        try:
            metrics = get(address, "/metrics")
        except OSError as error:
            raise NotNow(f"the metrics of the limited node: {error}") from error
        return float(next(line.split()[1] for line in metrics.splitlines() if line.startswith("quipu_cpu_ratio ")))

    try:
        wait("a busy node at its limit reads at least 0.8", lambda: ratio() >= 0.8, 30)
    finally:
        load.stop()
    wait("an idle node at its limit reads at most 0.4", lambda: ratio() <= 0.4, 30)
    podman("rm", "--force", "--time", "0", "limited")
    print("with a limit of a quarter core: quipu_cpu_ratio is above 0.8 when busy, below 0.4 when idle")


def main():
    relay(GATEWAY, 2379)
    relay(GATEWAY, 9042)
    begun = time.monotonic()
    addresses = {node: start(node) for node in NODES}
    for node, address in addresses.items():
        wait(f"{node} is ready", lambda: ready(address, node))
    wait("shards are spread", lambda: spread(addresses["quipu-0"], NODES))
    print(f"three containers are a cluster after {time.monotonic() - begun:.1f} s: {owners(addresses['quipu-0'])}")
    check_restrictions(addresses["quipu-0"])
    check_gateway()

    load = Load(addresses.values(), clients=8, pause=0.005, keyed=True)
    load.start()
    wait("additions are acknowledged", lambda: load.acknowledged() > 100)
    victim = "quipu-1"
    disturb(load, addresses, "pause", lambda: podman("pause", victim), lambda: podman("unpause", victim))
    disturb(
        load,
        addresses,
        "cut of the network",
        lambda: podman("network", "disconnect", NETWORK, victim),
        lambda: podman("network", "connect", "--ip", addresses[victim], NETWORK, victim),
    )
    disturb(
        load,
        addresses,
        "kill",
        lambda: podman("kill", victim),
        lambda: (podman("rm", victim), start(victim, address=addresses[victim])),
    )
    load.stop()
    check_sums(load, addresses["quipu-0"], "disturbed")

    load = Load(addresses.values(), clients=8, pause=0.005, keyed=False)
    load.start()
    wait("additions are acknowledged", lambda: load.acknowledged() > 100)
    replace(load, addresses)
    before = load.acknowledged()
    wait("additions go on", lambda: load.acknowledged() > before + 100)
    load.stop()
    check_sums(load, addresses["quipu-0"], "rolling replacement")
    assert load.failed() == 0, f"{load.failed()} requests failed in a rolling replacement: {load.failures()}"
    check_cpu()
    check_tls()


if __name__ == "__main__":
    try:
        main()
    except Exception:
        for node in [*NODES, "gateway", "limited"]:
            log = subprocess.run(["podman", "logs", "--tail", "15", node], capture_output=True, text=True)
            if log.returncode == 0:
                print(f"-- {node}\n{log.stdout}{log.stderr}", file=sys.stderr)
        raise
