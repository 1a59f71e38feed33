# Router and operator: neither torch nor transformers.
#
#   docker build -f docker/control.Dockerfile -t penstock/control:0.1.0 .
#
# Every Python package is pinned by pyproject.toml and constraints.txt, and listed in /opt/penstock/packages.txt. A release
# pins the base image too: --build-arg BASE=docker.io/library/python@sha256:... The default is a tag because tests build on
# bases made from Debian's packages on the spot (no registry is within reach), which have no digest that others know.
ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE} AS build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends busybox-static && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python -m venv /opt/penstock
# First what changes rarely: all dependencies, asked for by an empty package of the same name.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir -p src/penstock && echo '__version__ = "0"' >src/penstock/__init__.py \
    && /opt/penstock/bin/pip install --quiet --constraint constraints.txt '.[router,redis,gateway,operator,tracing]' \
    && rm -r src
COPY . .
RUN /opt/penstock/bin/pip install --quiet --no-deps --force-reinstall . \
    && /opt/penstock/bin/pip freeze --exclude penstock >/opt/penstock/packages.txt \
    && dpkg-query --show --showformat='# ${Package}==${Version} (Debian)\n' busybox-static >>/opt/penstock/packages.txt \
    && /opt/penstock/bin/pip uninstall --quiet --yes pip \
    && mkdir /models && ln -s /opt/penstock/lib/python3*/site-packages/penstock/demo/model /models/penstock-demo

FROM ${BASE}
ARG BASE
LABEL org.opencontainers.image.title="Penstock router and operator" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.licenses="Apache-2.0"
# A static busybox copies models out of images that hold nothing but files (operator/model_pod.py).
COPY --from=build /bin/busybox /bin/busybox
COPY --from=build /opt/penstock /opt/penstock
COPY --from=build /models /models
# Works with a read-only root; what it writes goes to /tmp. The user has no entry in /etc/passwd, so USER says its name.
ENV PATH=/opt/penstock/bin:$PATH HOME=/tmp USER=penstock PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["penstock"]
