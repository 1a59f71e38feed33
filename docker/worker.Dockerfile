# Prefill and decode workers.
#
#   docker build -f docker/worker.Dockerfile -t penstock/worker:0.1.0 .                            for CPUs
#   docker build -f docker/worker.Dockerfile -t penstock/worker:0.1.0-cuda --build-arg TORCH=cuda .   for NVIDIA GPUs
#
# Every Python package is pinned by pyproject.toml and constraints*.txt, and listed in /opt/penstock/packages.txt. A release
# pins the base image too: --build-arg BASE=docker.io/library/python@sha256:... The default is a tag because tests build on
# bases made from Debian's packages on the spot (no registry is within reach), which have no digest that others know.
# The CUDA build needs no CUDA base image: its libraries are wheels (constraints-cuda.txt), the driver comes from the node.
ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE} AS build
ARG TORCH=cpu
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends busybox-static && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python -m venv /opt/penstock
# First what changes rarely: torch (without CUDA's gigabytes unless asked for), then all other dependencies, asked for by
# an empty package of the same name. --no-compile: transformers' bytecode is 100 MB and hardly any of it is ever loaded.
COPY pyproject.toml constraints.txt constraints-cuda.txt README.md LICENSE install_torch.py ./
RUN PENSTOCK_TORCH=${TORCH} /opt/penstock/bin/python install_torch.py \
    && mkdir -p src/penstock && echo '__version__ = "0"' >src/penstock/__init__.py \
    && if [ "${TORCH}" = cuda ]; then extras=worker,tracing,zmq,nixl-cuda,gpu; else extras=worker,tracing,zmq,nixl; fi \
    && /opt/penstock/bin/pip install --quiet --no-compile --constraint constraints.txt --constraint constraints-cuda.txt \
        ".[${extras}]" \
    && rm -r src
COPY . .
# Bytecode of what a worker imports (a read-only root keeps none): found by importing it.
RUN /opt/penstock/bin/pip install --quiet --no-deps --force-reinstall . \
    && /opt/penstock/bin/pip freeze --exclude penstock >/opt/penstock/packages.txt \
    && dpkg-query --show --showformat='# ${Package}==${Version} (Debian)\n' busybox-static >>/opt/penstock/packages.txt \
    && /opt/penstock/bin/python -c 'import penstock.engine.process, penstock.worker.main, penstock.sources.hub, huggingface_hub' \
    && /opt/penstock/bin/pip uninstall --quiet --yes pip \
    && mkdir /models && ln -s /opt/penstock/lib/python3*/site-packages/penstock/demo/model /models/penstock-demo

FROM ${BASE}
ARG BASE
LABEL org.opencontainers.image.title="Penstock worker" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.licenses="Apache-2.0"
ARG TORCH=cpu
# Triton compiles the launcher of each kernel with the system's C compiler when it is first used.
RUN if [ "${TORCH}" = cuda ]; then apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; fi
# A static busybox copies models out of images that hold nothing but files (operator/model_pod.py).
COPY --from=build /bin/busybox /bin/busybox
COPY --from=build /opt/penstock /opt/penstock
COPY --from=build /models /models
# Works with a read-only root; what it writes goes to /tmp. The user has no entry in /etc/passwd, so USER says its name.
ENV PATH=/opt/penstock/bin:$PATH HOME=/tmp USER=penstock PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["penstock"]
