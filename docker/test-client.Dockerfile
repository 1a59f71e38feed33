# What a user's application has: Python and the openai SDK; iptables for tests that break a pod's network; the
# redis-server that stands for the chart's, whose image no test can pull. Only for tests/cluster.
ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE}
# The policy: Debian starts what it installs, and a build may share the machine's network.
RUN printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d \
    && apt-get update -qq && apt-get install -y -qq --no-install-recommends iptables redis-server \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /
RUN pip install --quiet --no-cache-dir --constraint /constraints.txt openai
USER 65532:65532
