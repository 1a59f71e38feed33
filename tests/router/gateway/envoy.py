"""What Envoy does with an HTTP request whose endpoint is picked: its ext-proc filter with bodies FULL_DUPLEX_STREAMED,
as gateways of the Inference Extension set it up, and then the request to what was picked."""

import http.client
import json
import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import grpc

from penstock.router.gateway.messages import FULL_DUPLEX_STREAMED, ProcessingRequest, ProcessingResponse

DESTINATION = "x-gateway-destination-endpoint"
METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
PATIENCE_S = 20.0


@dataclass
class Answer:
    """What the client gets."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    sent_headers: dict[str, str] = field(default_factory=dict)
    """Those with which the request went to the endpoint; empty when it did not."""

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


class Call:
    """One HTTP request's gRPC call."""

    def __init__(self, process: Any) -> None:
        self._sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers = process(iter(self._sent.get, None), timeout=PATIENCE_S)

    def send(self, **message: Any) -> None:
        self._sent.put(ProcessingRequest(**message))

    def next(self) -> Any:
        """The picker's next message; None when it has closed the call. Raises grpc.RpcError."""
        return next(self._answers, None)

    def half_close(self) -> None:
        self._sent.put(None)

    def cancel(self) -> None:
        """As Envoy ends calls."""
        self._answers.cancel()
        self._sent.put(None)


class Envoy:
    """A gateway with one picker."""

    def __init__(self, port: int, credentials: grpc.ChannelCredentials | None = None) -> None:
        address = f"127.0.0.1:{port}"
        self.channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
        self._process = self.channel.stream_stream(
            METHOD, ProcessingRequest.SerializeToString, ProcessingResponse.FromString
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    @contextmanager
    def call(self) -> Iterator[Call]:
        call = Call(self._process)
        try:
            yield call
        finally:
            call.cancel()

    def post(self, path: str, body: Any, **options: Any) -> Answer:
        """A POST of JSON, or of bytes as they are."""
        return self.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), **options)

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        pieces: int = 3,
        trailers: bool = False,
        subset: Sequence[str] | None = None,
    ) -> Answer:
        """The whole way of a request. `trailers` come after its body."""
        asked = {"content-type": "application/json", **(headers or {})}
        with self.call() as call:
            call.send(**first_message(method, path, asked, end=not body, subset=subset))
            for piece, is_last in parts(body, pieces):
                call.send(request_body={"body": piece, "end_of_stream": is_last and not trailers})
            if trailers:
                call.send(request_trailers={"trailers": {"headers": [{"key": "checksum", "raw_value": b"1"}]}})
            first = call.next()
            if first.HasField("immediate_response"):
                return immediate(first.immediate_response)
            sent = changed(asked, first.request_headers.response.header_mutation)
            assert destination_of(first) == sent[DESTINATION], "header and metadata must not differ"
            assert first.request_headers.response.clear_route_cache
            if body:
                assert self._echo(call, trailers=trailers) == body, "the request's body came back changed"
            return self._pass_on(call, sent, method, path, body)

    def _echo(self, call: Call, *, trailers: bool) -> bytes:
        """The body that the picker gives back."""
        pieces = []
        while True:
            message = call.next()
            if message.HasField("request_trailers"):
                assert trailers
                return b"".join(pieces)
            streamed = message.request_body.response.body_mutation.streamed_response
            assert len(streamed.body) < 2**16
            pieces.append(streamed.body)
            if streamed.end_of_stream:
                assert not trailers
                return b"".join(pieces)

    def _pass_on(self, call: Call, sent: dict[str, str], method: str, path: str, body: bytes) -> Answer:
        host, _, port = sent[DESTINATION].rpartition(":")
        upstream = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
        try:
            upstream.request(method, path, body or None, sent)
            response = upstream.getresponse()
            names = [(":status", str(response.status)), *response.getheaders()]
            call.send(response_headers={"headers": header_map(dict(names))})
            mutation = call.next().response_headers.response.header_mutation
            came = changed({name.lower(): value for name, value in response.getheaders()}, mutation)
            pieces = []
            while piece := response.read1():
                pieces.append(self._through(call, piece, end=False))
            pieces.append(self._through(call, b"", end=True))
            return Answer(response.status, came, b"".join(pieces), sent)
        finally:
            upstream.close()

    def _through(self, call: Call, piece: bytes, *, end: bool) -> bytes:
        call.send(response_body={"body": piece, "end_of_stream": end})
        streamed = call.next().response_body.response.body_mutation.streamed_response
        assert (streamed.body, streamed.end_of_stream) == (piece, end)
        return piece


def first_message(
    method: str, path: str, headers: Mapping[str, str], *, end: bool, subset: Sequence[str] | None = None
) -> dict[str, Any]:
    """The headers, and how bodies are sent."""
    pseudo = {":method": method, ":path": path, ":authority": "gateway", ":scheme": "http"}
    message: dict[str, Any] = {
        "request_headers": {"headers": header_map(pseudo | dict(headers)), "end_of_stream": end},
        "protocol_config": {"request_body_mode": FULL_DUPLEX_STREAMED, "response_body_mode": FULL_DUPLEX_STREAMED},
    }
    if subset is not None:
        entry = {"key": "envoy.lb.subset_hint", "value": {f"{DESTINATION}-subset": list(subset)}}
        message["metadata_context"] = {"filter_metadata": [entry]}
    return message


def header_map(headers: Mapping[str, str]) -> dict[str, Any]:
    return {"headers": [{"key": name, "raw_value": value.encode()} for name, value in headers.items()]}


def parts(body: bytes, number: int) -> Iterator[tuple[bytes, bool]]:
    """`body` in pieces, each with whether it is the last."""
    size = max(1, -(-len(body) // number))
    for start in range(0, len(body), size):
        yield body[start : start + size], start + size >= len(body)


def changed(headers: Mapping[str, str], mutation: Any) -> dict[str, str]:
    """`headers` with what the picker sets and without what it removes."""
    kept = {name: value for name, value in headers.items() if name not in mutation.remove_headers}
    return kept | {one.header.key: one.header.raw_value.decode() for one in mutation.set_headers}


def destination_of(message: Any) -> str:
    """The endpoint in the metadata."""
    namespace = message.dynamic_metadata.fields["envoy.lb"].struct_value
    found: str = namespace.fields[DESTINATION].string_value
    return found


def immediate(message: Any) -> Answer:
    return Answer(message.status.code, changed({}, message.headers), message.body)
