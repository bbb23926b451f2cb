# shellcheck shell=bash
# Settings and tools of the tests of `kubernetes/`. Sourced by the scripts beside it.
# shellcheck disable=SC2034 # the scripts that source this one use them

: "${QUIPU_CACHE_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/quipu-tools}"  # what was downloaded or built, by version; safe to delete
: "${QUIPU_KUBERNETES:=}"                     # 1: build the control plane when it is missing, and fail without it
: "${QUIPU_KUBERNETES_VERSION:=1.37.2}"       # of the control plane
: "${QUIPU_IMAGE:=}"                          # an image to test, as `docker save` or `podman save` wrote it; empty: one of QUIPU_BIN
: "${QUIPU_KUBERNETES_WAIT_SECONDS:=120}"     # for a process or a container to become ready

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
: "${QUIPU_BIN:=$root/target/release/quipu}"  # the program whose settings and metrics are looked at

schemas_version=1.37.0    # of kubernetes-validate: the schemas of all supported versions
kustomize_version=5.8.1   # when neither kubectl nor kustomize is installed
kwok_version=0.8.0        # the simulated nodes
cqlsh_version=6.2.2       # the shell of Cassandra
readonly root schemas_version kustomize_version kwok_version cqlsh_version

say() { echo "kubernetes: $*" >&2; }
die() { say "$*"; exit 1; }
skip() { echo "skipped: $*"; }

# into_cache NAME COMMAND...: prints the directory NAME of the cache; COMMAND makes it, in a directory whose path is its
# last argument, when it is not there. Another run may be faster: then its copy stays.
into_cache() {
  local target=$QUIPU_CACHE_DIR/$1 new
  shift
  if [ ! -d "$target" ]; then
    mkdir -p "$QUIPU_CACHE_DIR"
    new=$(mktemp -d "$target.XXXXXX")
    "$@" "$new" >&2 || { rm -rf "$new"; return 1; }
    chmod 755 "$new"
    mv -T "$new" "$target" 2>/dev/null || rm -rf "$new"
  fi
  echo "$target"
}

# python_with PACKAGE VERSION WHAT: prints the Python of an environment with the package, which it makes when it is not
# there, saying that it fetches WHAT. An environment is bound to its place, so it is made where it stays.
python_with() {
  local venv=$QUIPU_CACHE_DIR/$1-$2
  if [ ! -f "$venv/complete" ]; then
    say "fetching $3"
    rm -rf "$venv"
    mkdir -p "$QUIPU_CACHE_DIR"
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check "$1==$2" >&2 || return 1
    touch "$venv/complete"
  fi
  echo "$venv/bin/python3"
}

# wait_for WHAT CHECK...: until CHECK passes.
wait_for() {
  local what=$1 deadline=$((SECONDS + QUIPU_KUBERNETES_WAIT_SECONDS))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || { say "$what: not after $QUIPU_KUBERNETES_WAIT_SECONDS s"; return 1; }
    sleep 0.1
  done
}
