"""The metrics API of Kubernetes, as far as an autoscaler asks: how much CPU each pod uses. What it says is what a test has set."""

import datetime
import http.server
import json
import ssl
import threading
import urllib.parse

GROUP = "metrics.k8s.io/v1beta1"


class Usage:
    """Serves on a port of loopback, over TLS, until the process ends. `pods` answers the pods of a namespace and a label
    selector; every container of a pod uses `share` of the CPU that it requests."""

    def __init__(self, certificate, key, pods):
        self.share, self.pods = 0.0, pods
        usage = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                status, answer = usage.answer(self.path)
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def answer(self, path):
        url = urllib.parse.urlsplit(path)
        parts = url.path.strip("/").split("/")
        if url.path == f"/apis/{GROUP}":
            pods = {"name": "pods", "namespaced": True, "kind": "PodMetrics", "verbs": ["get", "list"]}
            return 200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP, "resources": [pods]}
        if len(parts) == 6 and parts[3] == "namespaces" and parts[5] == "pods":
            selector = urllib.parse.parse_qs(url.query).get("labelSelector", [""])[0]
            items = [self._pod(pod) for pod in self.pods(parts[4], selector)]
            return 200, {"kind": "PodMetricsList", "apiVersion": GROUP, "metadata": {}, "items": items}
        return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}

    def _pod(self, pod):
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        containers = [
            {"name": one["name"], "usage": {"cpu": f"{self.share * millicores(one):.0f}m", "memory": "64Mi"}}
            for one in pod["spec"]["containers"]
        ]
        metadata = {key: pod["metadata"][key] for key in ("name", "namespace", "labels")}
        return {"metadata": metadata, "timestamp": now, "window": "15s", "containers": containers}


def millicores(container):
    """What the container requests, of which autoscalers take their percentage."""
    cpu = container["resources"]["requests"]["cpu"]
    return int(cpu[:-1]) if cpu.endswith("m") else 1000 * int(cpu)
