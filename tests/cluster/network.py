"""Breaks a pod's network for a while: packet filter rules in its own network namespace, set by an ephemeral container.

So it needs nothing of the node, works on any cluster, and nobody else notices. The rules go by themselves, too.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.kube import CLIENT_IMAGE, Kube, Object, eventually

_numbers = itertools.count(1)
_SCRIPT = """
set -e
restore() { iptables -F CUT; exit; }
trap restore TERM
iptables -N CUT 2>/dev/null || iptables -F CUT
RULES
iptables -C INPUT -j CUT 2>/dev/null || { iptables -I INPUT -j CUT; iptables -I OUTPUT -j CUT; }
echo cut
sleep SECONDS &
wait
restore
"""


def all_but_http_of(others: list[Object], http_port: int) -> list[str]:
    """Rules: with the other pods only HTTP is exchanged, on that port of either side."""
    calls = [f"-p tcp --{which}port {http_port} -j RETURN" for which in ("s", "d")]
    addresses = [other["status"]["podIP"] for other in others]
    return calls + [f"-{which} {address} -j DROP" for address in addresses for which in ("s", "d")]


API_SERVER = ["-d $KUBERNETES_SERVICE_HOST -j DROP", "-s $KUBERNETES_SERVICE_HOST -j DROP"]
"""Rules: the pod does not reach the API server."""


@contextmanager
def cut(kube: Kube, pod: str, rules: list[str], *, at_most_s: int = 120) -> Iterator[None]:
    """While the block lasts, packets that the rules name are dropped silently."""
    name = f"cut-{next(_numbers)}"
    appended = "\n".join(f"iptables -A CUT {rule}" for rule in rules)
    script = _SCRIPT.replace("RULES", appended).replace("SECONDS", str(at_most_s))
    container = {
        "name": name,
        "image": CLIENT_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "securityContext": {"runAsUser": 0, "runAsNonRoot": False, "capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}},
    }
    body = kube.get("pod", pod)
    body["spec"].setdefault("ephemeralContainers", []).append(container)
    path = f"/api/v1/namespaces/{kube.namespace}/pods/{pod}/ephemeralcontainers"
    kube.run("replace", "--raw", path, "--filename", "-", text=json.dumps(body))
    eventually(lambda: _state(kube, pod, name) != "waiting", f"{name} of {pod} starts", within_s=30)
    eventually(lambda: "cut" in kube.run("logs", pod, "--container", name), "the rules are in force", within_s=10)
    try:
        yield
    finally:
        kube.run("exec", pod, "--container", name, "--", "sh", "-c", "kill 1")
        eventually(lambda: _state(kube, pod, name) == "terminated", "the rules are gone", within_s=10)


def _state(kube: Kube, pod: str, container: str) -> str:
    for status in kube.get("pod", pod)["status"].get("ephemeralContainerStatuses", []):
        if status["name"] == container:
            return str(next(iter(status["state"]), "waiting"))
    return "waiting"
