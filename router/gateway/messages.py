"""Envoy's external processing and gRPC's health check, as far as a picker needs them. Pure.

Names and numbers are those of envoy/service/ext_proc/v3/external_processor.proto, envoy/config/core/v3/base.proto and
grpc/health/v1/health.proto. What is left out here is skipped when it comes. Enumerations are written as integers and
maps as lists of entries, which are the same bytes.

(No package instead: xds-protos has them all, but writes other versions over the files of googleapis-common-protos and
opentelemetry-proto, which come with the extra `tracing`.)
"""

from typing import Any

from google.protobuf import descriptor_pool, message_factory, struct_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

_PACKAGE = "penstock.gateway"
_STRUCT = struct_pb2.DESCRIPTOR
_SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "string": FieldDescriptorProto.TYPE_STRING,
}

NONE, FULL_DUPLEX_STREAMED = 0, 4
"""How the gateway sends bodies (ProcessingMode.BodySendMode)."""
OVERWRITE = 2
"""HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD."""
SERVING, NOT_SERVING = 1, 2
"""HealthCheckResponse.ServingStatus."""

FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "HeaderValue": {"key": (1, "string"), "value": (2, "string"), "raw_value": (3, "bytes")},
    "HeaderMap": {"headers": (1, "HeaderValue*")},
    "MetadataEntry": {"key": (1, "string"), "value": (2, "Struct")},
    "Metadata": {"filter_metadata": (1, "MetadataEntry*")},
    "HttpHeaders": {"headers": (1, "HeaderMap"), "end_of_stream": (3, "bool")},
    "HttpBody": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    "HttpTrailers": {"trailers": (1, "HeaderMap")},
    "ProtocolConfiguration": {"request_body_mode": (1, "int32"), "response_body_mode": (2, "int32")},
    "ProcessingRequest": {
        "request_headers": (2, "HttpHeaders"),
        "response_headers": (3, "HttpHeaders"),
        "request_body": (4, "HttpBody"),
        "response_body": (5, "HttpBody"),
        "request_trailers": (6, "HttpTrailers"),
        "response_trailers": (7, "HttpTrailers"),
        "metadata_context": (8, "Metadata"),
        "protocol_config": (11, "ProtocolConfiguration"),
    },
    "HeaderValueOption": {"header": (1, "HeaderValue"), "append_action": (3, "int32")},
    "HeaderMutation": {"set_headers": (1, "HeaderValueOption*"), "remove_headers": (2, "string*")},
    "StreamedBodyResponse": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    "BodyMutation": {"streamed_response": (3, "StreamedBodyResponse")},
    "CommonResponse": {
        "header_mutation": (2, "HeaderMutation"),
        "body_mutation": (3, "BodyMutation"),
        "clear_route_cache": (5, "bool"),
    },
    "HeadersResponse": {"response": (1, "CommonResponse")},
    "BodyResponse": {"response": (1, "CommonResponse")},
    "TrailersResponse": {"header_mutation": (1, "HeaderMutation")},
    "HttpStatus": {"code": (1, "int32")},
    "ImmediateResponse": {
        "status": (1, "HttpStatus"),
        "headers": (2, "HeaderMutation"),
        "body": (3, "bytes"),
        "details": (5, "string"),
    },
    "ProcessingResponse": {
        "request_headers": (1, "HeadersResponse"),
        "response_headers": (2, "HeadersResponse"),
        "request_body": (3, "BodyResponse"),
        "response_body": (4, "BodyResponse"),
        "request_trailers": (5, "TrailersResponse"),
        "response_trailers": (6, "TrailersResponse"),
        "immediate_response": (7, "ImmediateResponse"),
        "dynamic_metadata": (8, "Struct"),
    },
    "HealthCheckRequest": {"service": (1, "string")},
    "HealthCheckResponse": {"status": (1, "int32")},
}
"""Per message and field: its number and type, with a star where there may be several."""


def _classes() -> dict[str, Any]:
    file = FileDescriptorProto(name="penstock/gateway.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append(_STRUCT.name)
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            field = message.field.add(name=field_name, number=number)
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            kind = kind.removesuffix("*")
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type_name = f".{_STRUCT.package if kind == 'Struct' else _PACKAGE}.{kind}"
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in FIELDS}


_made = _classes()
ProcessingRequest = _made["ProcessingRequest"]
ProcessingResponse = _made["ProcessingResponse"]
HealthCheckRequest = _made["HealthCheckRequest"]
HealthCheckResponse = _made["HealthCheckResponse"]


def kind_of(request: Any) -> str:
    """What a ProcessingRequest tells of: "request_headers", "response_body", ...; "" for nothing known here."""
    found = (field.name for field, _ in request.ListFields() if field.name.startswith("re"))
    return next(found, "")


def mutation(headers: Any, remove: Any = ()) -> dict[str, Any]:
    """A HeaderMutation, as keyword arguments: `headers` (pairs of bytes) overwrite what is there."""
    options = [
        {"header": {"key": name.decode("latin-1"), "raw_value": value}, "append_action": OVERWRITE}
        for name, value in headers
    ]
    return {"set_headers": options, "remove_headers": list(remove)}
