"""The operator, killed as by `kill -9` right after its Nth request that changes something (beside the Lease).

python -m tests.cluster.faults.crashing_operator N operator FLAGS
"""

import os
import signal
import sys
from typing import Any

from penstock.cli import main
from penstock.operator.client import Client


def crash_after(num: int) -> None:
    left = num
    send = Client._bytes

    async def counted(self: Client, method: str, path: str, *rest: Any) -> bytes:
        nonlocal left
        answer = await send(self, method, path, *rest)
        if method != "GET" and "/leases" not in path:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return answer

    Client._bytes = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    crash_after(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
