"""What `penstock render`, `status` and `doctor` can be told; light to import, for `--help`."""

from dataclasses import dataclass

from penstock.config import option


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """What to render."""

    file: str
    namespace: str = option("default", "Namespace of LLMDeployments that name none.")


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Of which deployment."""

    name: str
    namespace: str = option("default", "Its namespace.")


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Where the operator is."""

    operator_namespace: str = option("penstock-system", "Namespace of the operator.")
    lease_name: str = option("penstock-operator", "Name of the operator's Lease.")
