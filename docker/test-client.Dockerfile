# What a user's application has: Python and the openai SDK; iptables for tests that break a pod's network. Only for
# tests/cluster.
ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends iptables && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /
RUN pip install --quiet --no-cache-dir --constraint /constraints.txt openai
USER 65532:65532
