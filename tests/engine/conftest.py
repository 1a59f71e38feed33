"""What engine tests run on."""

import pytest
import torch


@pytest.fixture(params=["tcp", "nixl"])
def transport(request: pytest.FixtureRequest) -> str:
    if request.param == "nixl":
        pytest.importorskip("nixl_cu12", reason="nixl is not installed: pip install nixl-cu12")
    return str(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]
