# shellcheck shell=bash
# A real Kubernetes control plane to test on, as far as admission goes: its API server, built from source, and an etcd.
# No scheduler, controllers or nodes. Sourced by `server`.
# shellcheck disable=SC2154 # set in lib.sh

control_plane_name() { echo "kubernetes-$QUIPU_KUBERNETES_VERSION"; }

# build_control_plane DIR: compiles the API server into DIR. Kubernetes' modules refer to each other by paths of its
# repository; the published modules of the same version stand in for them. Ten to thirty minutes on two cores.
build_control_plane() {
  local dir=$1 source version=$QUIPU_KUBERNETES_VERSION status=0
  local staged=v0.${version#1.} stamp=k8s.io/component-base/version
  source=$(mktemp -d)
  say "building the API server of Kubernetes $version; this takes a while, once"
  (
    set -e
    cd "$source"
    # Outside of a module: its own replacements are not for others.
    published=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's|^\t"GoMod": "\(.*\)",|\1|p')
    printf 'module quipu.test/control-plane\n' >go.mod
    go mod edit -require "k8s.io/kubernetes@v$version" -tool k8s.io/kubernetes/cmd/kube-apiserver
    while read -r module; do
      go mod edit -replace "$module=$module@$staged"
    done < <(sed -n 's|^\t\(k8s.io/[a-z-]*\) => \./staging/.*|\1|p' "$published")
    go mod tidy
    CGO_ENABLED=0 go build -trimpath -ldflags \
      "-s -w -X $stamp.gitVersion=v$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$(echo "$version" | cut -d. -f2)" \
      -o "$dir/" k8s.io/kubernetes/cmd/kube-apiserver
  ) || status=1
  rm -rf "$source"
  return $status
}
