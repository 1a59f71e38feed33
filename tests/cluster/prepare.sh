#!/bin/sh
# Makes a cluster with this tree's images and prints the path of its kubeconfig: the shared cluster where it lies beside
# the repository, else kind. `make test-cluster` runs the cluster tests there. (For another cluster set KUBECONFIG and
# run tests/run.py cluster yourself; its nodes must have the four images below.)
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
shared=$root/../shared/cluster/cluster
say() { echo "cluster tests: $*" >&2; }

# image DOCKERFILE TAG
image() {
    say "building $2"
    if [ -x "$shared" ]; then
        "$shared" build "$2" "$root" -f "$root/docker/$1.Dockerfile" >&2
    else
        docker build --quiet --tag "$2" --file "$root/docker/$1.Dockerfile" "$root" >&2
        kind load docker-image --name penstock "$2" >&2
    fi
}

if [ -x "$shared" ]; then
    kubeconfig=$("$shared" up)
elif command -v kind >/dev/null && command -v docker >/dev/null; then
    kubeconfig=$root/build/kubeconfig
    mkdir -p "$root/build"
    kind get clusters 2>/dev/null | grep -qx penstock || kind create cluster --name penstock >&2
    kind get kubeconfig --name penstock >"$kubeconfig"
else
    say "needs kind and docker (or a cluster of yours in KUBECONFIG, with the images)"
    exit 1
fi
image control penstock/control:test
image worker penstock/worker:test
image test-client penstock/test-client:test
image test-model penstock/test-model:test
echo "$kubeconfig"
