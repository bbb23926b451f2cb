"""Everything that a manifest names must exist: API servers take references to nothing, and the pod then waits for ever."""

from urllib.parse import urlsplit

from manifests import Refused, containers, find, labels, name, of_kind, selects, workloads


def check(objects, given):
    """Raises `Refused` at the first name that leads nowhere. `given` are the objects that whoever applies them has made."""
    seen = set()
    for one in objects:
        if (one["apiVersion"], name(one)) in seen:
            raise Refused(f"{name(one)} is there twice")
        seen.add((one["apiVersion"], name(one)))
    for workload, template in workloads(objects):
        _pod(objects, given, workload, template)
    for service in of_kind(objects, "Service"):
        _service(objects, service)
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        scaled = _exists(objects, scaler, target["kind"], target["name"])
        for container in containers(scaled["spec"]["template"]):
            if "cpu" not in container.get("resources", {}).get("requests", {}):
                raise Refused(f"{name(scaler)} scales by CPU, of which {name(scaled)} requests none")
        if "replicas" in scaled["spec"]:
            raise Refused(f"{name(scaled)} sets replicas, which {name(scaler)} decides")
    for one in of_kind(objects, "PodDisruptionBudget"):
        _selects_pods(objects, one, one["spec"]["selector"])
    for one in of_kind(objects, "NetworkPolicy"):
        _network(objects, one)
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        _exists(objects, binding, binding["roleRef"]["kind"], binding["roleRef"]["name"])
        for subject in binding.get("subjects", []):
            if subject["kind"] == "ServiceAccount":
                _exists(objects, binding, "ServiceAccount", subject["name"])


def _exists(objects, by, kind, called):
    found = find(objects, kind, called)
    if not found:
        raise Refused(f"{name(by)} names {kind}/{called}, which does not exist")
    return found


def _keys(objects, given, by, kind, called):
    """The keys of a ConfigMap or Secret."""
    found = find(objects, kind, called)
    if found:
        return set(found.get("data", {})) | set(found.get("stringData", {})) | set(found.get("binaryData", {}))
    if f"{kind}/{called}" in given:
        return set(given[f"{kind}/{called}"])
    raise Refused(f"{name(by)} names {kind}/{called}, which does not exist and is not given either")


def _require_key(objects, given, by, kind, called, key):
    if key not in _keys(objects, given, by, kind, called):
        raise Refused(f"{name(by)} names key {key} of {kind}/{called}, which has none")


def _pod(objects, given, workload, template):
    spec = template["spec"]
    selector = workload["spec"].get("selector")
    if selector and not selects(selector, labels(template)):
        raise Refused(f"{name(workload)} does not select its own pods")
    if workload["kind"] == "StatefulSet":
        service = _exists(objects, workload, "Service", workload["spec"]["serviceName"])
        if not selects(service["spec"]["selector"], labels(template)):
            raise Refused(f"{name(service)} does not select the pods of {name(workload)}, which are to be named by it")
    if "serviceAccountName" in spec:
        _exists(objects, workload, "ServiceAccount", spec["serviceAccountName"])
    for constraint in spec.get("topologySpreadConstraints", []):
        if not selects(constraint["labelSelector"], labels(template)):
            raise Refused(f"{name(workload)} spreads other pods than its own")
    volumes = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
    for volume in spec.get("volumes", []):
        volumes.add(volume["name"])
        for kind, field, key in (("Secret", "secret", "secretName"), ("ConfigMap", "configMap", "name")):
            if field in volume:
                _keys(objects, given, workload, kind, volume[field][key])
                for item in volume[field].get("items", []):
                    _require_key(objects, given, workload, kind, volume[field][key], item["key"])
    mounted = set()
    for container in containers(template):
        _container(objects, given, workload, container)
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                raise Refused(f"{name(workload)} mounts volume {mount['name']}, which does not exist")
            mounted.add(mount["name"])
    if volumes - mounted:
        raise Refused(f"{name(workload)} has a volume that nothing mounts: {min(volumes - mounted)}")


def _container(objects, given, workload, container):
    for source in container.get("envFrom", []):
        for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if field in source:
                _keys(objects, given, workload, kind, source[field]["name"])
    for variable in container.get("env", []):
        for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
            ref = variable.get("valueFrom", {}).get(field)
            if ref:
                _require_key(objects, given, workload, kind, ref["name"], ref["key"])
    ports = {port["name"] for port in container.get("ports", [])} | {
        port["containerPort"] for port in container.get("ports", [])
    }
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        for way in ("httpGet", "tcpSocket"):
            port = container.get(probe, {}).get(way, {}).get("port")
            if port is not None and port not in ports:
                raise Refused(f"{name(workload)}: the {probe} asks port {port}, which {container['name']} does not have")


def _service(objects, service):
    pods = [template for _, template in workloads(objects) if selects(service["spec"]["selector"], labels(template))]
    if not pods:
        raise Refused(f"{name(service)} selects no pods")
    for template in pods:
        ports = {port["name"] for container in containers(template) for port in container.get("ports", [])}
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports:
                raise Refused(f"{name(service)} leads to port {port['targetPort']}, which its pods do not have")


def _selects_pods(objects, by, selector):
    if not any(selects(selector, labels(template)) for _, template in workloads(objects)):
        raise Refused(f"{name(by)} selects no pods")


def _network(objects, policy):
    _selects_pods(objects, policy, policy["spec"]["podSelector"])
    for rule in policy["spec"].get("ingress", []) + policy["spec"].get("egress", []):
        for peer in rule.get("from", []) + rule.get("to", []):
            if "podSelector" in peer:
                _selects_pods(objects, policy, peer["podSelector"])


def check_addresses(objects, settings, given):
    """Hosts in the settings without a dot are Services, of this overlay or given."""
    for key in ("QUIPU_ETCD", "QUIPU_CASSANDRA"):
        for address in settings[key].split(","):
            host = urlsplit(address if "//" in address else f"//{address}").hostname
            if "." not in host and not find(objects, "Service", host) and f"Service/{host}" not in given:
                raise Refused(f"{key} names the host {host}, for which there is no Service")
