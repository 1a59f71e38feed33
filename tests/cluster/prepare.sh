#!/bin/sh
# Makes a cluster with this tree's images and prints the path of its kubeconfig: the shared cluster where it lies beside
# the repository, else kind. `make test-cluster` runs the cluster tests there. (For another cluster set KUBECONFIG and
# run tests/run.py cluster yourself; its nodes must have the four images below.) `prepare.sh build` only builds the images
# for the shared cluster, so that they are there sooner.
# Exit status 3: this machine can have no cluster (no kind, no packages, no rights); 1: the images cannot be built.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
shared=$root/../shared/cluster/cluster
state=${PENSTOCK_CLUSTER_STATE:-/tmp/penstock-cluster}
say() { echo "cluster tests: $*" >&2; }
impossible() {
    say "$*"
    exit 3
}

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

build_test_client() {
    image test-client penstock/test-client:test && return
    buildah inspect --type image docker.io/library/python:3.11-slim >/dev/null 2>&1 \
        || impossible "the base images cannot be made: is Debian's archive within reach?"
    exit 1
}

build_images() {
    # What earlier builds left is there for the next ones, until it fills the disk (KiB).
    if [ -x "$shared" ] && [ "$(df --output=avail /var/lib | tail -n 1)" -lt 20000000 ]; then
        buildah rmi --prune --force >&2
    fi
    image control penstock/control:test
    image worker penstock/worker:test
    image test-model penstock/test-model:test
}

# The shared cluster comes up, base images can be made, and a container really runs.
shared_cluster() {
    kubeconfig=$("$shared" up) || impossible "the shared cluster does not come up"
    build_test_client
    kubectl() { "$state/bin/kubectl" --kubeconfig "$kubeconfig" --namespace default "$@" >&2; }
    kubectl delete pod first --ignore-not-found
    kubectl run first --image=penstock/test-client:test --restart=Never --command -- true
    kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/first --timeout=60s \
        || impossible "the shared cluster runs no containers: $state/kubelet-0.log says why"
    kubectl delete pod first --wait=false
}

if [ "${1:-}" = build ]; then
    [ -x "$shared" ] || impossible "there is no shared cluster"
    mkdir -p "$state"
    build_test_client
    build_images
    exit
fi
if [ -x "$shared" ]; then
    shared_cluster
elif command -v kind >/dev/null && command -v docker >/dev/null; then
    kubeconfig=$root/build/kubeconfig
    mkdir -p "$root/build"
    kind get clusters 2>/dev/null | grep -qx penstock || kind create cluster --name penstock >&2
    kind get kubeconfig --name penstock >"$kubeconfig"
    image test-client penstock/test-client:test
else
    impossible "needs kind and docker (or a cluster of yours in KUBECONFIG, with the images)"
fi
build_images
echo "$kubeconfig"
