# What a user's application has: Python and the openai SDK. Only for tests/cluster.
FROM docker.io/library/python:3.11-slim
COPY constraints.txt /
RUN pip install --quiet --no-cache-dir --constraint /constraints.txt openai
USER 65532:65532
