"""Names, labels and ports of everything that is derived from an LLMDeployment: one place, read by all others."""

from penstock.operator.api import GROUP, Role

FIELD_MANAGER = "penstock"
SEED_MANAGER = "penstock-seed"
"""Owns LLMPool.spec.replicas until somebody scales: the first manager must never apply that field."""

MANAGED_BY = "app.kubernetes.io/managed-by"
DEPLOYMENT = f"{GROUP}/deployment"
ROLE = f"{GROUP}/role"
REVISION = f"{GROUP}/revision"
MODEL = f"{GROUP}/model"
"""What a router must share with its workers, hashed."""
APPLIED = f"{GROUP}/applied"
"""Annotation: hash of the manifest as applied last. Losing it costs one apply and nothing else."""
ACCOUNT = f"{GROUP}/account"
"""Annotation of routers that outlived their ServiceAccount: the uid of the new one."""

SELECTOR = f"{MANAGED_BY}=penstock"
"""Selects all that the operator has made."""

WORKER_PORT = 8100
ROUTER_PORT = 8000
CONTAINER = {"prefill": "worker", "decode": "worker", "router": "router"}


def pool_name(deployment: str, role: Role) -> str:
    """Of the LLMPool, its PodDisruptionBudget and, for the router, all the router's objects."""
    return f"{deployment}-{role}"


def workload_name(deployment: str, role: Role, revision: str) -> str:
    """Of the Deployment of one role, and of its workers' headless Service; routers have no revision of their own."""
    return pool_name(deployment, role) if role == "router" else f"{deployment}-{role}-{revision}"


def revision_name(deployment: str, fingerprint: str) -> str:
    """Of the ControllerRevision."""
    return f"{deployment}-{fingerprint}"


def secret_name(deployment: str) -> str:
    """Of the Secret with the key of the block hashes."""
    return f"{deployment}-hash"


def url_of(deployment: str, namespace: str) -> str:
    """Where clients in the cluster find the API."""
    return f"http://{deployment}.{namespace}.svc/v1"


def labels(deployment: str, role: Role | None = None, revision: str = "", model: str = "") -> dict[str, str]:
    """The labels of a derived object."""
    found = {
        "app.kubernetes.io/name": "penstock",
        "app.kubernetes.io/instance": deployment,
        MANAGED_BY: "penstock",
        DEPLOYMENT: deployment,
    }
    if role is not None:
        found |= {"app.kubernetes.io/component": role, ROLE: role}
    if revision:
        found[REVISION] = revision
    if model:
        found[MODEL] = model
    return found


def selector(deployment: str, role: Role, revision: str = "") -> dict[str, str]:
    """The labels by which pods are found."""
    return {DEPLOYMENT: deployment, ROLE: role} | ({REVISION: revision} if revision else {})
