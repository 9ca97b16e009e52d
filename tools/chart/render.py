"""Renders the chart with the Helm library, against an API server that only says what it has.

As a program it answers requests, one JSON object a line each way:

    {"chart": DIR, "values": {...}, "kube": "1.31", "crds": true}
    {"manifest": TEXT, "notes": TEXT} or {"error": TEXT}

A program of its own, because the library's Go runtime reads the environment once, when the process starts.
"""

import asyncio
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from os import environ

NAMESPACE = "search"
RELEASE = "sidelens"
KINDS = {
    "v1": ["ConfigMap", "PersistentVolumeClaim", "Pod", "Secret", "Service", "ServiceAccount"],
    "apps/v1": ["Deployment"],
    "batch/v1": ["Job"],
    "autoscaling/v2": ["HorizontalPodAutoscaler"],
    "networking.k8s.io/v1": ["Ingress", "NetworkPolicy"],
    "policy/v1": ["PodDisruptionBudget"],
}
CUSTOM_KINDS = {
    "monitoring.coreos.com/v1": ["PodMonitor", "PrometheusRule", "ServiceMonitor"],
    "keda.sh/v1alpha1": ["ScaledObject"],
    "gateway.networking.k8s.io/v1": ["HTTPRoute"],
}


class Cluster(BaseHTTPRequestHandler):
    """Discovery of the kinds above; nothing exists, and everything may be created."""

    protocol_version = "HTTP/1.1"
    kube = "1.31"
    kinds = KINDS

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        path = self.path.partition("?")[0]
        group_version = path.removeprefix("/apis/").removeprefix("/api/")
        major, minor = self.kube.split(".")
        if path == "/version":
            self.answer(200, {"major": major, "minor": minor, "gitVersion": f"v{self.kube}.0"})
        elif path == "/api":
            self.answer(200, {"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            groups = [
                {"name": name.partition("/")[0], "versions": [{"groupVersion": name, "version": name.partition("/")[2]}]}
                for name in self.kinds
                if "/" in name
            ]
            self.answer(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        elif group_version in self.kinds:
            resources = [
                {"name": plural(kind), "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": ["create", "get"]}
                for kind in self.kinds[group_version]
            ]
            self.answer(200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
        else:
            self.answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})

    def do_POST(self):
        self.answer(201, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))


def plural(kind):
    word = kind.lower()
    return word[:-1] + "ies" if word.endswith("y") else word + ("es" if word.endswith("s") else "s")


def serve():
    """Answers requests from stdin until it ends."""
    import yaml
    from helm_sdkpy import Configuration, Install, Lint

    # Whatever the library prints must not get between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kubeconfig = yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stand-in",
            "clusters": [{"name": "stand-in", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in", "user": "nobody"}}],
        }
    )
    for line in sys.stdin:
        request = json.loads(line)
        Cluster.kube = request["kube"]
        Cluster.kinds = KINDS | (CUSTOM_KINDS if request["crds"] else {})
        config = Configuration(namespace=NAMESPACE, kubeconfig=kubeconfig)
        try:
            if request.get("lint"):
                answer = {"lint": asyncio.run(Lint(config).run(request["chart"]))}
            else:
                install = Install(config).run(RELEASE, request["chart"], values=request["values"], wait=False)
                release = asyncio.run(install)
                hooks = [f"---\n# Source: {hook['path']}\n{hook['manifest']}" for hook in release.get("hooks") or []]
                answer = {"manifest": "\n".join([release["manifest"], *hooks]), "notes": release["info"].get("notes", "")}
        except Exception as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


class Helm:
    """The other end of `serve`."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ | {"HELM_DRIVER": "memory"},
        )

    def ask(self, **request):
        print(json.dumps({"values": {}, "kube": "1.31", "crds": True} | request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the Helm library ended; its last words are above")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


if __name__ == "__main__":
    serve()
