"""A user who never stops asking: streams in a pod of the cluster, so that no failed request goes unnoticed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.cluster.kube import CLIENT_IMAGE, Kube, eventually

_ASK = """
import json, threading, time, uuid
from openai import OpenAI

client = OpenAI(base_url="http://%s.%s.svc/v1", api_key="%s", timeout=60, max_retries=0)
question = {"role": "user", "content": "What is the KV cache?"}

def ask():
    while True:
        said = {"ok": False, "text": "", "error": ""}
        try:
            stream = client.chat.completions.create(
                model="%s", messages=[question], stream=True, temperature=0, max_tokens=64,
                extra_body={"cache_salt": uuid.uuid4().hex},  # else no prompt would be computed but the first
            )
            choices = [chunk.choices[0] for chunk in stream if chunk.choices]
            said["text"] = "".join(choice.delta.content or "" for choice in choices)
            said["ok"] = choices[-1].finish_reason in ("stop", "length")
        except Exception as error:
            said["error"] = repr(error)
        print(json.dumps(said), flush=True)
        time.sleep(0.4)

for _ in range(2):
    threading.Thread(target=ask).start()
"""
_POD = "traffic"


class Request(NamedTuple):
    """What became of one request."""

    ok: bool
    text: str
    error: str


class Traffic:
    """Two endless conversations with one deployment, without retries."""

    def __init__(self, kube: Kube, deployment: str, model: str, key: str = "none") -> None:
        self._kube = kube
        container = {
            "name": "client",
            "image": CLIENT_IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-c", _ASK % (deployment, kube.namespace, key, model)],
        }
        spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": _POD, "labels": {"app": _POD}}, "spec": spec}
        kube.apply(json.dumps(pod))
        kube.run("wait", "--for=condition=Ready", f"pod/{_POD}", "--timeout=60s")
        eventually(self.requests, "the first request has ended")

    def requests(self) -> list[Request]:
        """All that have ended, oldest first."""
        lines = self._kube.run("logs", _POD).splitlines()
        return [Request(**json.loads(line)) for line in lines]

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """While the block lasts, and for a few requests after it, each one ends as it should, with the right text."""
        before = self.requests()
        yield
        during = len(self.requests())
        eventually(lambda: len(self.requests()) >= during + 4, "requests go on ending")
        after = self.requests()[len(before) :]
        failed = [request for request in after if not request.ok]
        assert not failed, f"{len(failed)} of {len(after)} requests failed, the first with {failed[0]}"
        assert {request.text for request in after} == {before[0].text}
        print(f"{len(after)} requests, none failed")
