"""What a pod of Quipu must be like, beyond what API servers ask for."""

import re

from manifests import Refused, containers, find, labels, name, of_kind, workloads

_SECONDS = {"s": 1, "m": 60}
#: `limits::HAND_OVER_TIMEOUT`, seconds.
HAND_OVER = 10


def check(objects, settings_known):
    """Raises `Refused` at the first pod that would not do. `settings_known` are the variables that the program reads."""
    for workload, template in workloads(objects):
        _restricted(workload, template)
        if labels(template).get("app.kubernetes.io/name") == "quipu":
            _node(objects, workload, template, settings_known)
    namespace = of_kind(objects, "Namespace")
    if [one["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") for one in namespace] != ["restricted"]:
        raise Refused("the namespace does not enforce the pod security standard `restricted`")
    for one in objects:
        if one["kind"] != "Namespace" and one["metadata"].get("namespace") != namespace[0]["metadata"]["name"]:
            raise Refused(f"{name(one)} is not in the namespace {namespace[0]['metadata']['name']}")
    for one in of_kind(objects, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
        raise Refused(f"{name(one)}: a node never calls the Kubernetes API, so nothing may be granted")
    for one in of_kind(objects, "Secret"):
        raise Refused(f"{name(one)}: a secret in the manifests is a secret no more")
    _gateways_are_nodes(objects)


def settings_of(objects, container):
    """The variables of a container that are known before it runs."""
    values = {}
    for source in container.get("envFrom", []):
        found = find(objects, "ConfigMap", source.get("configMapRef", {}).get("name"))
        values |= found["data"] if found else {}
    return values | {one["name"]: one.get("value", "") for one in container.get("env", [])}


def _restricted(workload, template):
    spec = template["spec"]
    pod = spec.get("securityContext", {})
    if spec.get("automountServiceAccountToken") is not False:
        raise Refused(f"{name(workload)}: its pods get a token for the Kubernetes API, and need none")
    if not pod.get("runAsNonRoot") or not pod.get("runAsUser"):
        raise Refused(f"{name(workload)}: its pods may run as root")
    for container in containers(template):
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities", {}).get("drop") != ["ALL"]:
            raise Refused(f"{name(workload)}: {container['name']} may gain rights")
        resources = container.get("resources", {})
        for field in ("requests", "limits"):
            if not {"cpu", "memory"} <= set(resources.get(field, {})):
                raise Refused(f"{name(workload)}: {container['name']} has no {field} for CPU and memory")


def _node(objects, workload, template, settings_known):
    spec, who = template["spec"], name(workload)
    if spec.get("enableServiceLinks") is not False:
        raise Refused(f"{who}: the variables of the service `quipu` would be read as settings; set enableServiceLinks: false")
    (container,) = containers(template)
    if not container.get("securityContext", {}).get("readOnlyRootFilesystem"):
        raise Refused(f"{who}: the root file system can be written to")
    _probes(who, container)
    settings = settings_of(objects, container)
    for variable in settings:
        if variable not in settings_known:
            raise Refused(f"{who}: the program knows no setting {variable}")
    _files_are_mounted(who, container, settings)
    _order_of_variables(who, container)
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if pause < 1:
        raise Refused(f"{who}: without a preStop pause clients meet a pod that has stopped accepting")
    needed = pause + HAND_OVER + _seconds(settings["QUIPU_DRAIN_TIMEOUT"])
    if spec.get("terminationGracePeriodSeconds", 30) < needed:
        raise Refused(f"{who}: stopping may take {needed} s, more than terminationGracePeriodSeconds")


def _probes(who, container):
    probes = {}
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        if kind not in container:
            raise Refused(f"{who} has no {kind}")
        probes[kind] = container[kind]["httpGet"]["path"]
    if probes["livenessProbe"] != "/healthz":
        raise Refused(f"{who}: a liveness probe at {probes['livenessProbe']} restarts nodes for faults of others")
    if probes["readinessProbe"] != "/readyz":
        raise Refused(f"{who}: a readiness probe at {probes['readinessProbe']} sends clients to nodes that do not serve")
    patience = {kind: container[kind]["failureThreshold"] * container[kind].get("periodSeconds", 10) for kind in probes}
    if not patience["readinessProbe"] < patience["livenessProbe"] < patience["startupProbe"]:
        raise Refused(f"{who}: probes must lose patience in the order readiness, liveness, startup, not {patience}")


def _files_are_mounted(who, container, settings):
    """Directories and files that settings name lie in a volume, since nothing else can be there."""
    mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    for variable, value in settings.items():
        if value.startswith("/") and not any(value == mount or value.startswith(mount + "/") for mount in mounts):
            raise Refused(f"{who}: {variable} is {value}, which no volume has")


def _order_of_variables(who, container):
    """`$(NAME)` is replaced only by variables that come before."""
    before = set()
    for variable in container.get("env", []):
        for used in re.findall(r"\$\(([A-Za-z_0-9]+)\)", variable.get("value", "")):
            if used not in before:
                raise Refused(f"{who}: {variable['name']} refers to {used}, which does not come before it")
        before.add(variable["name"])


def _seconds(text):
    number, unit = re.fullmatch(r"(\d+)([sm])", text).groups()
    return int(number) * _SECONDS[unit]


def _gateways_are_nodes(objects):
    """Gateways differ from shard pods in their role, labels and resources only: two files, one meaning."""
    shards, gateways = find(objects, "StatefulSet", "quipu"), find(objects, "Deployment", "quipu-gateway")
    if not gateways:
        return
    roles = {"gateway": gateways, "shard": shards}
    for role, workload in roles.items():
        (container,) = containers(workload["spec"]["template"])
        if settings_of(objects, container).get("QUIPU_ROLE") != role:
            raise Refused(f"{name(workload)}: its pods are not told the role {role}")
    if _likeness(shards) != _likeness(gateways):
        raise Refused("the pods of gateways and shards differ in more than role, labels and resources")


def _likeness(workload):
    spec = dict(workload["spec"]["template"]["spec"])
    spec.pop("topologySpreadConstraints")
    container = dict(spec.pop("containers")[0])
    container.pop("resources")
    container["env"] = [one for one in container["env"] if one["name"] not in ("QUIPU_ROLE", "QUIPU_ADVERTISE")]
    return spec, container
