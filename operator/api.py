"""The API `serving.penstock.dev/v1alpha1` as types: the one source of both CRDs, of their reference page and of what
the operator decodes. Knows no Kubernetes client.

A user writes an LLMDeployment; the operator writes LLMPools. Rules that concern several fields are in rules.py.
"""

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct, field

GROUP = "serving.penstock.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

Role: TypeAlias = Literal["prefill", "decode", "router"]
ROLES: tuple[Role, ...] = ("prefill", "decode", "router")
WORKER_ROLES: tuple[Role, ...] = ("prefill", "decode")

Quantity = Annotated[
    str | int,
    Meta(
        description="A Kubernetes quantity.",
        extra_json_schema={
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "pattern": r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
        },
    ),
]
FreeForm = Annotated[dict[str, Any], Meta(extra_json_schema={"x-kubernetes-preserve-unknown-fields": True})]
Name = Annotated[str, Meta(max_length=253)]


class Node(Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of all types: camel case on the wire."""


class SecretKey(Node, frozen=True):
    """One key of a Secret in the LLMDeployment's namespace."""

    name: Annotated[str, Meta(description="Name of the Secret.", min_length=1, max_length=253)]
    key: Annotated[str, Meta(description="Key in the Secret.", min_length=1, max_length=253)] = "token"


class KeysSecret(Node, frozen=True):
    """A key file in a Secret of the LLMDeployment's namespace. Changes take effect without a restart."""

    name: Annotated[str, Meta(description="Name of the Secret.", min_length=1, max_length=253)]
    key: Annotated[str, Meta(description="Key in the Secret.", min_length=1, max_length=253)] = "keys.toml"


class RedisSecret(Node, frozen=True):
    """The URL of a Redis in a Secret of the LLMDeployment's namespace."""

    name: Annotated[str, Meta(description="Name of the Secret.", min_length=1, max_length=253)]
    key: Annotated[str, Meta(description="Key in the Secret.", min_length=1, max_length=253)] = "url"


class Cache(Node, frozen=True):
    """Where fetched models are kept, so that not every pod fetches them again. One of the two."""

    claim: Annotated[Name, Meta(description="A PersistentVolumeClaim that all workers can mount.")] = ""
    host_path: Annotated[
        str, Meta(description="A folder of the node, fetched once per node.", max_length=512, pattern="^(/.*)?$")
    ] = ""


class Model(Node, frozen=True):
    """The model to serve, named once."""

    uri: Annotated[
        str,
        Meta(
            description="Where the model is: file:///folder of the image, pvc://claim/folder, hf://org/name@revision "
            "or image://registry/name:tag.",
            min_length=1,
            max_length=512,
            pattern="^(file|pvc|hf|image)://.+$",
        ),
    ]
    served_name: Annotated[
        str,
        Meta(description="The model's name in the API. Default: the last part of the uri.", max_length=128),
    ] = ""
    revision: Annotated[
        str,
        Meta(description="Branch, tag or commit of a model of hf://, instead of @revision in the uri.", max_length=128),
    ] = ""
    token_secret: Annotated[SecretKey | None, Meta(description="Token for models of hf:// that are not public.")] = None
    cache: Annotated[Cache | None, Meta(description="Where models of hf:// are kept. Default: fetched per pod.")] = None


class Scaling(Node, frozen=True):
    """Bounds within which replicas may be scaled through the LLMPool's scale subresource."""

    min_replicas: Annotated[int, Meta(description="Fewest replicas.", ge=0, le=5000)] = 1
    max_replicas: Annotated[int, Meta(description="Most replicas.", ge=1, le=5000)] = 1


class Resources(Node, frozen=True):
    """Requests and limits of a container, beside its GPUs, which the operator adds."""

    requests: Annotated[dict[str, Quantity], Meta(description="Least resources, by name.", max_length=16)] = field(
        default_factory=dict
    )
    limits: Annotated[dict[str, Quantity], Meta(description="Most resources, by name.", max_length=16)] = field(
        default_factory=dict
    )


class Toleration(Node, frozen=True):
    """A taint that the pods tolerate."""

    key: Annotated[str, Meta(description="The taint's key; empty matches all with operator Exists.")] = ""
    operator: Annotated[Literal["Equal", "Exists"], Meta(description="How value is compared.")] = "Equal"
    value: Annotated[str, Meta(description="The taint's value.")] = ""
    effect: Annotated[
        Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"], Meta(description="The taint's effect; empty: all.")
    ] = ""
    toleration_seconds: Annotated[int | None, Meta(description="How long NoExecute is tolerated.")] = None


class Pods(Node, frozen=True):
    """What pools and router have in common."""

    replicas: Annotated[
        int,
        Meta(
            description="Replicas at the start. A later change here takes effect once; scaling through the LLMPool "
            "holds until then.",
            ge=0,
            le=5000,
        ),
    ] = 1
    resources: Annotated[Resources, Meta(description="Resources of each pod.")] = Resources()
    node_selector: Annotated[dict[str, str], Meta(description="Labels that nodes must have.", max_length=32)] = field(
        default_factory=dict
    )
    tolerations: Annotated[list[Toleration], Meta(description="Taints that pods tolerate.", max_length=32)] = field(
        default_factory=list
    )
    template: Annotated[
        FreeForm,
        Meta(
            description="Overrides of the pod template (metadata and spec). Lists merge by name: the container is "
            "called worker, or router."
        ),
    ] = field(default_factory=dict)


class Pool(Pods, frozen=True):
    """A pool of workers."""

    scaling: Annotated[Scaling | None, Meta(description="Bounds for scaling. Default: any number.")] = None
    gpus: Annotated[int, Meta(description="GPUs of each replica; 0 runs on the CPU.", ge=0, le=16)] = 1
    tensor_parallel: Annotated[int, Meta(description="Over how many GPUs each layer is split.", ge=1, le=16)] = 1


class Router(Pods, frozen=True):
    """The front door."""

    service_type: Annotated[
        Literal["ClusterIP", "NodePort", "LoadBalancer"], Meta(description="Type of the Service that clients use.")
    ] = "ClusterIP"
    keys_secret: Annotated[
        KeysSecret | None,
        Meta(description="Hashes of API keys, and their tenants' quotas. Default: anybody may ask."),
    ] = None
    redis_secret: Annotated[
        RedisSecret | None,
        Meta(
            description="URL of a Redis, through which several replicas share quotas and what is in flight. It may be "
            "lost at any time. Default: each replica goes by its own view."
        ),
    ] = None
    flags: Annotated[
        dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=256)]],
        Meta(
            description='Further flags of `penstock router` without dashes in front, for example max-wait-s: "10".',
            max_length=64,
        ),
    ] = field(default_factory=dict)


class KVCache(Node, frozen=True):
    """The paged KV cache of each worker."""

    block_size: Annotated[int, Meta(description="Tokens per block.", ge=1, le=1024)] = 16
    size: Annotated[
        str,
        Meta(
            description="Memory for the cache of each worker, for example 8Gi. Default: 256Mi, with GPUs 4Gi.",
            max_length=32,
            pattern="^([0-9]+(Ki|Mi|Gi|k|M|G)?)?$",
        ),
    ] = ""
    memory_share: Annotated[
        Annotated[int, Meta(ge=1, le=90)] | None,
        Meta(description="The same as a percentage of limits.memory (workers without GPUs)."),
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Meta(description="Number format of weights and KV cache.")
    ] = "auto"


class KVTransfer(Node, frozen=True):
    """How KV blocks move from prefill to decode workers."""

    transport: Annotated[
        Literal["auto", "nixl", "tcp"], Meta(description="nixl is UCX (RDMA where there is any); auto prefers it.")
    ] = "auto"


class Spec(Node, frozen=True):
    """What to serve, and with how much."""

    model: Annotated[Model, Meta(description="The model. Everything else has a default.")]
    task: Annotated[
        Literal["generate", "embed", "score", "classify"],
        Meta(description="What the model is used for. Only generate is served by this version."),
    ] = "generate"
    prefill: Annotated[Pool, Meta(description="Workers that compute prompts.")] = Pool()
    decode: Annotated[Pool, Meta(description="Workers that produce tokens.")] = Pool()
    router: Annotated[Router, Meta(description="The HTTP API in front of the workers.")] = Router()
    kv_cache: Annotated[KVCache, Meta(description="KV cache of the workers.")] = KVCache()
    kv_transfer: Annotated[KVTransfer, Meta(description="Transfer of KV blocks between workers.")] = KVTransfer()
    engine: Annotated[
        dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=256)]],
        Meta(
            description="Further flags of `penstock prefill` and `penstock decode` without dashes in front, for "
            'example max-step-tokens: "1024".',
            max_length=64,
        ),
    ] = field(default_factory=dict)


class Condition(Node, frozen=True):
    """One aspect of the state."""

    type: Annotated[str, Meta(description="Which aspect.", max_length=64)]
    status: Annotated[Literal["True", "False", "Unknown"], Meta(description="Whether it holds.")]
    reason: Annotated[str, Meta(description="Why, as one word.", max_length=128)]
    message: Annotated[str, Meta(description="Why, as a sentence.", max_length=4096)] = ""
    observed_generation: Annotated[int, Meta(description="metadata.generation that this is about.")] = 0
    last_transition_time: Annotated[
        str, Meta(description="When status last changed.", extra_json_schema={"format": "date-time"})
    ] = ""


class PoolCount(Node, frozen=True):
    """Pods of one role."""

    replicas: Annotated[int, Meta(description="Pods wanted.")] = 0
    ready: Annotated[int, Meta(description="Pods ready.")] = 0
    summary: Annotated[str, Meta(description="ready/replicas, for tables.")] = ""


class Status(Node, frozen=True):
    """What the operator saw at its last visit."""

    observed_generation: Annotated[int, Meta(description="metadata.generation of the spec that was acted upon.")] = 0
    conditions: Annotated[
        list[Condition],
        Meta(
            description="Ready, PrefillAvailable, DecodeAvailable, RouterAvailable, KVTransferVerified, Progressing, "
            "Scaling, CapacityLimited, PredictionsDrift, Degraded.",
            extra_json_schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = field(default_factory=list)
    url: Annotated[str, Meta(description="Where clients in the cluster find the API.")] = ""
    model: Annotated[str, Meta(description="The model's name in the API.")] = ""
    revision: Annotated[str, Meta(description="The revision that serves.")] = ""
    next_revision: Annotated[str, Meta(description="The revision that is being rolled out, if any.")] = ""
    prefill: Annotated[PoolCount, Meta(description="The prefill pool.")] = PoolCount()
    decode: Annotated[PoolCount, Meta(description="The decode pool.")] = PoolCount()
    router: Annotated[PoolCount, Meta(description="The router.")] = PoolCount()


class PoolObjectSpec(Node, frozen=True):
    """One pool of one LLMDeployment. Written by the operator, except replicas."""

    deployment: Annotated[str, Meta(description="The LLMDeployment.", max_length=253)]
    role: Annotated[Role, Meta(description="What the pods do.")]
    replicas: Annotated[
        int, Meta(description="Pods wanted. Belongs to whoever scales: HPA, KEDA, kubectl scale.", ge=0, le=5000)
    ] = 1
    declared_replicas: Annotated[
        int, Meta(description="replicas of the LLMDeployment that have taken effect here.", ge=0, le=5000)
    ] = 1
    min_replicas: Annotated[int, Meta(description="Fewest replicas that take effect.", ge=0, le=5000)] = 0
    max_replicas: Annotated[int, Meta(description="Most replicas that take effect.", ge=0, le=5000)] = 5000


class PoolObjectStatus(Node, frozen=True):
    """The pool's pods."""

    replicas: Annotated[int, Meta(description="Pods that exist.")] = 0
    ready_replicas: Annotated[int, Meta(description="Pods that are ready.")] = 0
    selector: Annotated[str, Meta(description="Label selector of the pods, for autoscalers.")] = ""
    revision: Annotated[str, Meta(description="The revision that serves.")] = ""
