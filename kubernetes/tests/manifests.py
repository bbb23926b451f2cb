"""Renders overlays, and finds one's way in what comes out. Says nothing about whether it is right."""

import copy
import shutil
import subprocess

import yaml

#: Objects with pods in them, and where the pod's template is.
WORKLOADS = ("Deployment", "StatefulSet", "Job")


class Refused(Exception):
    """Something is wrong with a manifest; the text says what and where."""


def render(overlay, kustomize):
    """The objects of an overlay. `kustomize` is the command that renders a directory."""
    done = subprocess.run([*kustomize, str(overlay)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(f"{overlay.name} does not render: {done.stderr.strip()}")
    if done.stderr.strip():
        raise Refused(f"{overlay.name} renders with a warning: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def find_kustomize():
    """The installed command that renders, or None."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return ["kubectl", "kustomize"] if shutil.which("kubectl") else None


def name(thing):
    return f"{thing['kind']}/{thing['metadata']['name']}"


def of_kind(objects, *kinds):
    return [one for one in objects if one["kind"] in kinds]


def find(objects, kind, called):
    return next((one for one in of_kind(objects, kind) if one["metadata"]["name"] == called), None)


def workloads(objects):
    """Each object that makes pods, with its pod template."""
    return [(one, one["spec"]["template"]) for one in of_kind(objects, *WORKLOADS)]


def containers(template):
    return template["spec"]["containers"] + template["spec"].get("initContainers", [])


def labels(template):
    return template["metadata"].get("labels", {})


def selects(selector, pod_labels):
    """Whether a label selector takes these labels. Only what the manifests use: matchLabels, or the bare map of a Service."""
    wanted = selector.get("matchLabels", {}) if "matchLabels" in selector or not selector else selector
    return wanted.items() <= pod_labels.items()


def changed(objects, variant):
    """A copy of the objects in which one thing is otherwise; broken.yaml says how that is written."""
    objects = copy.deepcopy(objects)
    if "add" in variant:
        return [*objects, variant["add"]]
    kind, called = variant["object"].split("/", 1)
    # Generated names end in a hash.
    matching = [one for one in of_kind(objects, kind) if one["metadata"]["name"].startswith(called)]
    exact = [one for one in matching if one["metadata"]["name"] == called] or matching
    if not exact:
        raise KeyError(f"{variant['name']}: there is no {variant['object']}")
    place, keys = exact[0], variant["path"]
    if not keys:
        objects.remove(place)
        return objects
    for key in keys[:-1]:
        place = place[key]
    if "value" in variant:
        place[keys[-1]] = variant["value"]
    else:
        del place[keys[-1]]
    return objects
