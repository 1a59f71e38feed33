"""`penstock up --routers 2 --redis URL`."""

import hashlib
import re
import urllib.request
from pathlib import Path

import pytest

from tests.local.processes import running_up
from tests.redis_server import running_redis

pytestmark = pytest.mark.slow


@pytest.mark.redis
def test_two_routers_share_quotas_and_survive_the_loss_of_redis(tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[us]\nkey_sha256 = ["{hashlib.sha256(b"sk-us").hexdigest()}"]\nrequests_per_minute = 6\n')
    with running_redis(tmp_path) as redis:
        flags = ("--routers", "2", "--redis", redis.url, "--keys", str(keys), "--port", "0", "--prefill", "0")
        with running_up(str(tiny_model), *flags, "--kv-bytes", "8MiB") as up:
            up.wait_line(r"ready in \d+\.\d s: .*\n")
            urls = re.findall(r"router-[01] +ready in \S+ s +(http://\S+)", up.text)
            assert len(set(urls)) == 2
            left = [remaining(url) for url in urls]
            assert left[1] < left[0], "the second router knows of the first one's request"
            redis.kill()
            after = [remaining(url) for url in urls]
            assert after[0] < left[0]
            assert up.stop()


def remaining(url: str) -> int:
    """Asks one question; what is left of the quota."""
    body = b'{"model": "tiny", "prompt": "Who fills the cache?", "max_tokens": 4}'
    headers = {"authorization": "Bearer sk-us", "content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, headers), timeout=10) as reply:
        assert b'"usage"' in reply.read()
        return int(reply.headers["x-ratelimit-remaining-requests"])
