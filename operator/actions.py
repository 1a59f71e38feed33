"""What may be done to the cluster: the output of `plan`, the input of the executor."""

from dataclasses import dataclass
from typing import TypeAlias

from penstock.operator import api
from penstock.operator.render import Manifest


@dataclass(frozen=True)
class Create:
    """Apply an object that is not there, if its parent still is."""

    manifest: Manifest


@dataclass(frozen=True)
class Apply:
    """Apply an object over what is there, if it is still the same one."""

    manifest: Manifest
    uid: str


@dataclass(frozen=True)
class Seed:
    """Create an LLMPool with its replicas, under the manager that nobody uses afterwards."""

    manifest: Manifest


@dataclass(frozen=True)
class Rescale:
    """Let a changed number of replicas in the LLMDeployment take effect in its LLMPool, once."""

    name: str
    uid: str
    replicas: int


@dataclass(frozen=True)
class CreateSecret:
    """Create the Secret of the block hashes unless it exists."""


@dataclass(frozen=True)
class Delete:
    """Delete an object that is no longer wanted."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class WriteStatus:
    """Write the LLMDeployment's status."""

    status: api.Status


@dataclass(frozen=True)
class WritePoolStatus:
    """Write an LLMPool's status."""

    name: str
    uid: str
    status: api.PoolObjectStatus


Action: TypeAlias = Create | Apply | Seed | Rescale | CreateSecret | Delete | WriteStatus | WritePoolStatus
