"""What the operator's requests are to the API server's access rules."""

import pytest

from penstock.operator.client import access_of


@pytest.mark.parametrize(
    ("method", "path", "access"),
    [
        ("GET", "/api/v1/pods", ("list", "pods")),
        ("WATCH", "/api/v1/namespaces/a/pods", ("watch", "pods")),
        ("GET", "/api/v1/namespaces/a/pods/x/log", ("get", "pods/log")),
        ("PATCH", "/apis/apps/v1/namespaces/a/deployments/x", ("patch", "apps/deployments")),
        ("POST", "/api/v1/namespaces/a/events", ("create", "events")),
        ("PUT", "/apis/coordination.k8s.io/v1/namespaces/a/leases/x", ("update", "coordination.k8s.io/leases")),
        (
            "PATCH",
            "/apis/serving.penstock.dev/v1alpha1/namespaces/a/llmpools/x/status",
            ("patch", "serving.penstock.dev/llmpools/status"),
        ),
    ],
)
def test_requests_are_counted_as_roles_name_them(method: str, path: str, access: tuple[str, str]) -> None:
    assert access_of(method, path) == access
