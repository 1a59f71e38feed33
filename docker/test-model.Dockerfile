# A model image as image:// takes it: files and nothing else. Only for tests/cluster.
FROM scratch
COPY src/penstock/demo/model /models
