"""The kinds of objects the operator makes and watches: their paths in the API, their group for its Role."""

from dataclasses import dataclass

from penstock.operator.api import API_VERSION


@dataclass(frozen=True)
class Kind:
    """One kind of namespaced object."""

    api_version: str
    kind: str
    plural: str

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of a collection (of all namespaces when `namespace` is empty), an object or its subresource."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"
        parts = [root, *(["namespaces", namespace] if namespace else []), self.plural, name, subresource]
        return "/".join(part for part in parts if part)


LLM_DEPLOYMENT = Kind(API_VERSION, "LLMDeployment", "llmdeployments")
LLM_POOL = Kind(API_VERSION, "LLMPool", "llmpools")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
CONTROLLER_REVISION = Kind("apps/v1", "ControllerRevision", "controllerrevisions")
SERVICE = Kind("v1", "Service", "services")
POD = Kind("v1", "Pod", "pods")
SECRET = Kind("v1", "Secret", "secrets")
EVENT = Kind("v1", "Event", "events")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")

OWNED = (
    LLM_POOL,
    DEPLOYMENT,
    CONTROLLER_REVISION,
    SERVICE,
    Kind("v1", "ServiceAccount", "serviceaccounts"),
    Kind("v1", "ConfigMap", "configmaps"),
    Kind("rbac.authorization.k8s.io/v1", "Role", "roles"),
    Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
)
"""All that is watched because it is made here; the Secret is not: the operator must not read secrets."""

BY_NAME = {kind.kind: kind for kind in (*OWNED, SECRET)}
