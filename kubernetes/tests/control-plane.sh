# shellcheck shell=bash
# A real Kubernetes control plane to test on. Its programs are built from source: the API server for what is about admission,
# and for the rest the controllers, the scheduler, and kwok, which plays nodes on which pods only seem to run. Sourced by
# `run`, `server` and `controllers`.
# shellcheck disable=SC2154 # set in lib.sh

control_plane_name() { echo "kubernetes-$QUIPU_KUBERNETES_VERSION"; }
controllers_name() { echo "kubernetes-$QUIPU_KUBERNETES_VERSION-controllers-kwok-$kwok_version"; }

# Both print the directory where the programs are, after building them when they are not there.
built_api_server() {
  into_cache "$(control_plane_name)" build_kubernetes "the API server" k8s.io/kubernetes/cmd/kube-apiserver ||
    die "the API server could not be built (reason above)"
}
built_controllers() {
  into_cache "$(controllers_name)" build_kubernetes "the controllers and the scheduler" \
    k8s.io/kubernetes/cmd/kube-controller-manager k8s.io/kubernetes/cmd/kube-scheduler sigs.k8s.io/kwok/cmd/kwok ||
    die "the controllers could not be built (reason above)"
}

# build_kubernetes WHAT PACKAGE... DIR: compiles the programs into DIR. Kubernetes' modules refer to each other by paths of
# its repository; the published modules of the same version stand in for them. Ten to thirty minutes on two cores.
build_kubernetes() {
  local what=$1 dir=${!#} packages=("${@:2:$#-2}") version=$QUIPU_KUBERNETES_VERSION source status=0
  local staged=v0.${version#1.} stamp=k8s.io/component-base/version
  source=$(mktemp -d)
  say "building $what of Kubernetes $version; this takes a while, once"
  (
    set -e
    cd "$source"
    # Outside of a module: its own replacements are not for others.
    published=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's|^\t"GoMod": "\(.*\)",|\1|p')
    printf 'module quipu.test/control-plane\n' >go.mod
    go mod edit -require "k8s.io/kubernetes@v$version"
    for package in "${packages[@]}"; do
      case $package in sigs.k8s.io/kwok/*) go mod edit -require "sigs.k8s.io/kwok@v$kwok_version" ;; esac
      go mod edit -tool "$package"
    done
    while read -r module; do
      go mod edit -replace "$module=$module@$staged"
    done < <(sed -n 's|^\t\(k8s.io/[a-z-]*\) => \./staging/.*|\1|p' "$published")
    go mod tidy
    CGO_ENABLED=0 go build -trimpath -ldflags \
      "-s -w -X $stamp.gitVersion=v$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$(echo "$version" | cut -d. -f2)" \
      -o "$dir/" "${packages[@]}"
  ) || status=1
  rm -rf "$source"
  return $status
}

# isolate SCRIPT ARGUMENT...: starts the script again in a network of its own with loopback and a bridge that leads nowhere, and
# a process space that ends with it; then it goes on after this line. `programs` and `etcd` are found or built before.
isolate() {
  if [ -z "${QUIPU_ISOLATED:-}" ]; then
    local user=()
    command -v kubectl >/dev/null || die "kubectl is not installed"
    programs=$(built_api_server)
    etcd=$(etcd_program)
    [ "$(id -u)" = 0 ] || user=(--map-root-user)
    export programs etcd QUIPU_ISOLATED=1
    exec unshare "${user[@]}" --net --pid --fork --kill-child --mount-proc "$@"
  fi
  : "${programs:?}" "${etcd:?}"
  ip link set lo up
  # The server refuses to advertise a loopback address.
  ip link add name quipu type bridge && ip addr add 10.63.0.1/24 dev quipu && ip link set quipu up
  ip route add default via 10.63.0.254
}

# start_api_server DIR: with an etcd; what both keep and log is in DIR. Sets KUBECONFIG, for an administrator.
start_api_server() {
  local state=$1 begun=$SECONDS token
  export KUBECONFIG=$state/kubeconfig HOME=$state
  "$etcd" --data-dir "$state/etcd" --unsafe-no-fsync --logger zap --log-level error --listen-peer-urls http://127.0.0.1:2380 \
    >"$state/etcd.log" 2>&1 &
  token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  echo "$token,test,test,system:masters" >"$state/tokens"
  openssl genrsa -out "$state/accounts.key" 2048 2>/dev/null
  # An etcd of 3.4, as Debian 12 has it, cannot do what watches that begin with a list need: the server would break them off,
  # and kwok hear of changes minutes late.
  "$programs/kube-apiserver" --feature-gates WatchList=false --etcd-servers http://127.0.0.1:2379 --secure-port 6443 \
    --cert-dir "$state/certificates" --advertise-address 10.63.0.1 --service-cluster-ip-range 10.64.0.0/24 --token-auth-file "$state/tokens" \
    --authorization-mode Node,RBAC --endpoint-reconciler-type none --service-account-issuer https://quipu.test \
    --service-account-key-file "$state/accounts.key" --service-account-signing-key-file "$state/accounts.key" \
    >"$state/server.log" 2>&1 &
  server=$!
  kubectl config set-cluster test --server https://127.0.0.1:6443 --insecure-skip-tls-verify >/dev/null
  kubectl config set-credentials test --token "$token" >/dev/null
  kubectl config set-context test --cluster test --user test >/dev/null
  kubectl config use-context test >/dev/null
  wait_for "the API server" api_server_answers "$state/server.log"
  echo "Kubernetes $(kubectl version -o json 2>/dev/null | sed -n '/serverVersion/,$s/.*"gitVersion": "\(.*\)".*/\1/p') answers after $((SECONDS - begun)) s"
}
api_server_answers() {
  kill -0 "$server" 2>/dev/null || { tail -n 20 "$1" | cut -c1-300 >&2; die "the API server ended (its log is above)"; }
  kubectl get --raw /readyz >/dev/null 2>&1
}
