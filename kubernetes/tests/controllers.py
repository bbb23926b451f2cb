"""What real controllers make of overlays/production: as many pods as the autoscaler says, spread over nodes and zones, one
at a time evicted, and none that may do anything in the cluster.

    controllers.py STATE

`controllers` starts this with a control plane that KUBECONFIG leads to, and a certificate in the directory STATE for the
metrics API, which is usage.py.
"""

import http.client
import json
import pathlib
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

from usage import GROUP, Usage
from waiting import NotNow, wait

OVERLAY = pathlib.Path(__file__).parent.parent / "overlays" / "production"
SERVER, NAMESPACE, ZONES = "https://127.0.0.1:6443", "quipu", ("a", "b", "c")
SHARDS = "app.kubernetes.io/name=quipu,app.kubernetes.io/component=shard"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SCALER = f"/apis/autoscaling/v2/namespaces/{NAMESPACE}/horizontalpodautoscalers/quipu"
SET = f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/quipu"
BUDGET = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/quipu"
REVIEW = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": NAMESPACE}}
PATIENCE = 60
# Not there at this moment; too many requests; the server, or one behind it, is not ready.
PASSING = (404, 429, 500, 502, 503, 504)


def kubectl(*arguments, given=None):
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def answer_of(body):
    """The body of an error: a Status, or the words of whoever answers in the server's place."""
    try:
        return json.loads(body)
    except ValueError:
        return {"message": body.decode(errors="replace")}


class Api:
    """Requests in the name of whoever has the token; they answer the status and the body."""

    def __init__(self, token):
        self.token = token

    def ask(self, method, path, body=None, form="application/json"):
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": form}
        body = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(SERVER + path, body, headers, method=method)
        try:
            # kubectl does not check the certificate either: it was made a minute ago, by this server, for itself.
            with urllib.request.urlopen(request, timeout=10, context=ssl._create_unverified_context()) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, answer_of(error.read())
        except (OSError, http.client.HTTPException) as error:
            raise NotNow(f"{method} {path}: {error}") from error

    def get(self, path):
        """Fails as `NotNow` where the object may come, or the server answer, a moment later."""
        status, answer = self.ask("GET", path)
        if status in PASSING:
            raise NotNow(f"GET {path}: {status} {answer.get('message')}")
        assert status == 200, f"GET {path}: {status} {answer.get('message')}"
        return answer

    def create(self, path, body):
        status, answer = self.ask("POST", path, body)
        assert status == 201, f"POST {path}: {status} {answer.get('message')}"
        return answer

    def patch(self, path, body):
        status, answer = self.ask("PATCH", path, body, "application/merge-patch+json")
        assert status == 200, f"PATCH {path}: {status} {answer.get('message')}"

    def evict(self, pod):
        meta = {"name": pod, "namespace": NAMESPACE}
        return self.ask("POST", f"{PODS}/{pod}/eviction", {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta})

    def shards(self):
        return self.get(f"{PODS}?labelSelector={SHARDS}")["items"]


def condition(one, kind):
    return next((each for each in one.get("status", {}).get("conditions", []) if each["type"] == kind), {"status": "Unknown"})


def rolled_out(admin, count):
    """All pods of the newest revision, ready for minReadySeconds, and nothing on its way."""
    one = admin.get(SET)
    status = one.get("status", {})
    counts = [status.get(key, 0) for key in ("replicas", "readyReplicas", "availableReplicas", "updatedReplicas")]
    return status.get("observedGeneration") == one["metadata"]["generation"] and counts == [count] * 4


def spread(admin):
    """How many shard pods there are on each node and in each zone that has any."""
    nodes, zones = {}, {}
    for pod in admin.shards():
        node = pod["spec"].get("nodeName")
        if node is None:
            raise NotNow(f"{pod['metadata']['name']} has no node")
        zone = node.split("-")[1]
        nodes[node], zones[zone] = nodes.get(node, 0) + 1, zones.get(zone, 0) + 1
    return nodes, zones


def make_nodes(admin):
    """Two machines in each zone, of a usual size."""
    room = {"cpu": "4", "memory": "8Gi", "pods": "110"}
    for zone in ZONES:
        for number in (1, 2):
            name = f"node-{zone}-{number}"
            labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": zone}
            meta = {"name": name, "labels": labels}
            node = {"apiVersion": "v1", "kind": "Node", "metadata": meta, "status": {"capacity": room, "allocatable": room}}
            admin.create("/api/v1/nodes", node)
    nodes = 2 * len(ZONES)
    usable = lambda node: condition(node, "Ready")["status"] == "True" and not node["spec"].get("taints")
    wait("all nodes ready", lambda: sum(map(usable, admin.get("/api/v1/nodes")["items"])) == nodes)
    return f"{nodes} nodes in {len(ZONES)} zones"


def roll_out(admin):
    """There is no metrics API yet: the autoscaler keeps its minimum."""
    kubectl("apply", "--server-side", "--filename", "-", given=kubectl("kustomize", str(OVERLAY)))
    wait("3 shard pods ready", lambda: rolled_out(admin, 3))
    nodes, zones = spread(admin)
    assert (len(nodes), len(zones)) == (3, 3), f"three pods are on {nodes}"
    gateways = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/quipu-gateway"
    wait("2 gateways available", lambda: admin.get(gateways).get("status", {}).get("availableReplicas") == 2)
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?labelSelector=kubernetes.io/service-name="
    for service, count in (("quipu", 2), ("quipu-peers", 3)):
        reached = lambda: sum(len(one.get("endpoints") or []) for one in admin.get(slices + service)["items"])
        wait(f"{count} pods behind the service {service}", lambda: reached() == count)
    return "StatefulSet 3/3, on 3 nodes in 3 zones; 2 gateways; services lead to them"


def evict(admin):
    before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in admin.shards()}
    may_go = lambda: admin.get(BUDGET).get("status", {}).get("disruptionsAllowed")
    wait("one eviction allowed", lambda: may_go() == 1)
    # It hands over its shards, say.
    admin.patch(f"{PODS}/quipu-0", {"metadata": {"annotations": {"quipu.test/ends": "later"}}})
    status, answer = admin.evict("quipu-0")
    assert status == 201, f"the first eviction: {status} {answer.get('message')}"
    for _ in range(3):
        status, answer = admin.evict("quipu-1")
        causes = [cause["reason"] for cause in answer.get("details", {}).get("causes", [])]
        assert (status, causes) == (429, ["DisruptionBudget"]), f"the second eviction: {status} {answer.get('message')}"
    leaving = admin.get(f"{PODS}/quipu-0")["metadata"]
    assert leaving["uid"] == before["quipu-0"] and "deletionTimestamp" in leaving, "quipu-0 was not evicted"
    admin.patch(f"{PODS}/quipu-0", {"metadata": {"annotations": None}})
    wait("quipu-0 replaced", lambda: rolled_out(admin, 3) and admin.get(f"{PODS}/quipu-0")["metadata"]["uid"] != before["quipu-0"])
    wait("an eviction allowed again", lambda: may_go() == 1)
    status, answer = admin.evict("quipu-1")
    assert status == 201, f"the eviction after the first was replaced: {status} {answer.get('message')}"
    wait("quipu-1 replaced", lambda: rolled_out(admin, 3) and admin.get(f"{PODS}/quipu-1")["metadata"]["uid"] != before["quipu-1"])
    assert admin.get(f"{PODS}/quipu-2")["metadata"]["uid"] == before["quipu-2"], "quipu-2 went too"
    return "one pod evicted; the second refused with 429 until the first was back"


def drain(admin):
    """The command of README.md, on the machine of one shard pod."""
    node = admin.get(f"{PODS}/quipu-2")["spec"]["nodeName"]
    kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={PATIENCE}s")
    wait("3 shard pods after the drain", lambda: rolled_out(admin, 3))
    nodes, _ = spread(admin)
    kubectl("uncordon", node)
    assert node not in nodes and len(nodes) == 3, f"after the drain of {node} the pods are on {nodes}"
    return f"{node} drained, its pod on another node"


def register(admin, usage):
    """The metrics API, outside of the cluster: a service by name, which this server asks on loopback."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "usage"}}
    admin.create("/api/v1/namespaces/kube-system/services", service | {"spec": {"type": "ExternalName", "externalName": "localhost"}})
    group, version = GROUP.split("/")
    where = {"name": "usage", "namespace": "kube-system", "port": usage.port}
    spec = {"group": group, "version": version, "service": where, "insecureSkipTLSVerify": True}
    spec |= {"groupPriorityMinimum": 100, "versionPriority": 100}
    meta = {"name": f"{version}.{group}"}
    path = "/apis/apiregistration.k8s.io/v1/apiservices"
    admin.create(path, {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": meta, "spec": spec})
    wait("the metrics API", lambda: condition(admin.get(f"{path}/{meta['name']}"), "Available")["status"] == "True")


def measured(admin, share):
    """The autoscaler has seen it, and decides by it."""
    status = admin.get(SCALER).get("status", {})
    current = [one["resource"]["current"].get("averageUtilization") for one in status.get("currentMetrics") or [] if "resource" in one]
    return current == [round(share * 100)] and condition({"status": status}, "ScalingActive")["status"] == "True"


def grow(admin, usage):
    usage.share = 0.4
    register(admin, usage)
    wait("40 % of CPU seen", lambda: measured(admin, 0.4))
    assert rolled_out(admin, 3), "below 50 % of CPU the number of pods changed"
    usage.share = 1.0
    wait("6 shard pods ready", lambda: rolled_out(admin, 6))
    # At 100 % it wants twelve.
    limited = lambda: condition(admin.get(SCALER), "ScalingLimited").get("reason") == "TooManyReplicas"
    wait("the maximum reached", lambda: measured(admin, 1.0) and limited())
    nodes, zones = spread(admin)
    assert sorted(nodes.values()) == [1] * 6 and sorted(zones.values()) == [2] * 3, f"six pods are on {nodes}"
    return "3 pods at 40 % of CPU, 6 at 100 % and no more, one on each node"


def shrink(admin, usage):
    """Of the manifest only the five quiet minutes are left out. Without them the limit of one pod a minute does not show: the
    autoscaler counts the pods that it added within that minute."""
    admin.patch(SCALER, {"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}})
    usage.share = 0.05
    wait("3 shard pods left", lambda: rolled_out(admin, 3), patience=3 * PATIENCE)
    assert [pod["metadata"]["name"] for pod in admin.shards()] == ["quipu-0", "quipu-1", "quipu-2"]
    return "3 pods again at 5 % of CPU (the wait of five minutes before left out)"


def requests_of_a_pod(name):
    """Requests that would be of use to whoever has taken a pod over."""
    core, apps = f"/api/v1/namespaces/{NAMESPACE}", f"/apis/apps/v1/namespaces/{NAMESPACE}"
    scale = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "quipu", "namespace": NAMESPACE}}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}}
    token = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    for path in ("secrets", "secrets/quipu-admin", "configmaps", "pods", f"pods/{name}", "endpoints", "services", "serviceaccounts/quipu"):
        yield "GET", f"{core}/{path}", None
    yield "GET", f"{apps}/statefulsets/quipu", None
    yield "GET", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases", None
    yield "GET", "/api/v1/nodes", None
    yield "GET", "/api/v1/namespaces", None
    yield "GET", "/api/v1/namespaces/kube-system/secrets", None
    yield "POST", f"{core}/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}}
    yield "POST", f"{core}/pods/{name}/eviction", eviction
    yield "POST", f"{core}/serviceaccounts/quipu/token", token
    yield "DELETE", f"{core}/pods/{name}", None
    yield "PUT", f"{apps}/statefulsets/quipu/scale", scale | {"spec": {"replicas": 0}}


def rules(api):
    """What an account may do, as it says itself; in one order, which the server does not keep."""
    status = api.create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", REVIEW)["status"]
    return sorted(json.dumps(rule, sort_keys=True) for kind in ("resourceRules", "nonResourceRules") for rule in status[kind])


def access(admin):
    """Nodes never call the API of Kubernetes, so their account may do what any may and no more, and no pod has its token."""
    for pod in admin.get(PODS)["items"]:
        sources = [one for volume in pod["spec"]["volumes"] for one in volume.get("projected", {}).get("sources", [])]
        assert not any("serviceAccountToken" in one for one in sources), f"{pod['metadata']['name']} has a token"
        assert pod["spec"]["serviceAccountName"] == "quipu", pod["metadata"]["name"]
    token = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
    quipu = Api(admin.create(f"{accounts}/quipu/token", token)["status"]["token"])
    admin.create(accounts, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "any"}})
    other = Api(admin.create(f"{accounts}/any/token", token)["status"]["token"])
    who = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    user = quipu.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", who)["status"]["userInfo"]["username"]
    assert user == f"system:serviceaccount:{NAMESPACE}:quipu", user

    # Questions about oneself, discovery and health, which every account has from Kubernetes.
    mine, any_ones = rules(quipu), rules(other)
    assert mine and mine == any_ones, f"the account may do {mine}, and any account {any_ones}"
    refused = 0
    for method, path, body in requests_of_a_pod("quipu-0"):
        status, answer = quipu.ask(method, path, body)
        assert status == 403, f"{method} {path} with the token of a node: {status} {answer.get('message')}"
        refused += 1

    # The same with one right given, to see that it is rights that decide, and that this would be noticed.
    subject = {"kind": "ServiceAccount", "name": "quipu", "namespace": NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "too-much"}}
    bindings = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings"
    admin.create(bindings, binding | {"subjects": [subject], "roleRef": role})
    wait("a right that was given", lambda: quipu.ask("GET", PODS)[0] == 200)
    assert rules(quipu) != any_ones, "a right that was given is not listed"
    admin.ask("DELETE", f"{bindings}/too-much")
    wait("a right that was taken", lambda: quipu.ask("GET", PODS)[0] == 403)
    return f"no pod has a token; with one, {refused} requests of all kinds refused with 403"


def main():
    state = pathlib.Path(sys.argv[1])
    admin = Api((state / "tokens").read_text().split(",")[0])
    pods = lambda namespace, selector: admin.get(f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}")["items"]
    usage = Usage(state / "usage.crt", state / "usage.key", pods)
    steps = [make_nodes, roll_out, evict, drain, access, lambda admin: grow(admin, usage), lambda admin: shrink(admin, usage)]
    for step in steps:
        begun = time.monotonic()
        try:
            said = step(admin)
        except AssertionError as why:
            sys.exit(f"FAILED {why}")
        print(f"{said} ({time.monotonic() - begun:.1f} s)")


main()
