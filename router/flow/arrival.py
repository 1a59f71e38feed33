"""What came with a request beside its body."""

import hashlib
from dataclasses import dataclass

from penstock.router.flow.patience import Patience
from penstock.router.flow.tenants import Tenant
from penstock.router.policy import Picked


@dataclass(slots=True)
class Arrival:
    """One API request that has just arrived."""

    request_id: str
    tenant: Tenant
    patience: Patience
    began: float
    """On the event loop's clock."""
    body: bytes = b""
    came_back: bool = False
    """It was refused before, and comes when it was told to."""
    is_first_try: bool = False
    """By its SDK's own account: no repetition of a request that was refused, even if it is equal to one."""
    picked: Picked | None = None
    """By the gateway that sent it."""
    _digest: bytes = b""

    def deadline(self, *, stream: bool) -> float:
        """On the event loop's clock."""
        return self.began + self.patience.limit_s(stream=stream)

    def digest(self) -> bytes:
        """The same for a repetition of this request by the same tenant."""
        if not self._digest:
            digest = hashlib.blake2b(f"{self.tenant.name}\0".encode(), digest_size=16)
            digest.update(self.body)
            self._digest = digest.digest()
        return self._digest

    def seal(self) -> None:
        """Keeps the digest and drops the body: whoever waits should not hold megabytes."""
        self.digest()
        self.body = b""
