# shellcheck shell=bash
# One etcd: where its program comes from, how it is started, when it is ready. Sourced by `up`.
# shellcheck disable=SC2154 # the ports are set in lib.sh

# Prints the path of an etcd. Debian's packages are unpacked, not installed: that needs no root and starts nothing.
etcd_program() {
  if [ -n "$QUIPU_ETCD_BIN" ]; then echo "$QUIPU_ETCD_BIN"; return; fi
  if command -v etcd; then return; fi
  local release dir
  # shellcheck source=/dev/null
  release=$(. /etc/os-release && echo "$ID-${VERSION_ID:-rolling}")
  dir=$QUIPU_CACHE_DIR/etcd-$release
  if [ ! -x "$dir/usr/bin/etcd" ]; then
    command -v apt-get >/dev/null || die "there is no etcd; install one and put it on PATH or name it in QUIPU_ETCD_BIN"
    say "fetching the packages etcd-server and etcd-client"
    rm -rf "$dir.new"
    mkdir -p "$dir.new"
    (
      cd "$dir.new"
      apt-get -qq download etcd-server etcd-client 2>/dev/null ||
        { apt-get -qq update && apt-get -qq download etcd-server etcd-client; }
      for package in *.deb; do dpkg-deb -x "$package" .; done
      rm -f ./*.deb
    ) >&2 || die "could not fetch etcd; put one on PATH or name it in QUIPU_ETCD_BIN"
    rm -rf "$dir"
    mv "$dir.new" "$dir"
  fi
  echo "$dir/usr/bin/etcd"
}

# Started without a name of the form ETCD_* in its environment, which etcd would read as flags.
etcd_start() {
  local dir=$QUIPU_SERVICES_DIR/etcd program name without=()
  ! pid_of "$dir" >/dev/null || return 0
  require_free "$QUIPU_SERVICES_NETWORK.1" "$etcd_port" "$etcd_peer_port"
  program=$(etcd_program)
  while IFS= read -r name; do without+=(-u "$name"); done < <(compgen -e ETCD_)
  mkdir -p "$dir"
  echo "$program" >"$dir/program"
  local security=()
  if secured; then
    security=(--cert-file "$secure_dir/own.pem" --key-file "$secure_dir/own-key.pem" --client-cert-auth
      --trusted-ca-file "$secure_dir/ca.pem" --listen-metrics-urls "http://$QUIPU_SERVICES_NETWORK.1:$etcd_health_port")
  fi
  local client peer
  client=$(etcd_scheme)://$QUIPU_SERVICES_NETWORK.1:$etcd_port
  peer=http://$QUIPU_SERVICES_NETWORK.1:$etcd_peer_port
  setsid env "${without[@]}" "$program" --name quipu --data-dir "$dir/data" --logger zap --log-level warn \
    --listen-client-urls "$client" --advertise-client-urls "$client" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "quipu=$peer" "${security[@]}" \
    </dev/null >>"$dir/log" 2>&1 9>&- &
  echo $! >"$dir/pid"
}

etcd_scheme() { if secured; then echo https; else echo http; fi; }

# A secured etcd tells how it is at a port of its own, without TLS.
etcd_healthy() {
  local port=$etcd_port
  ! secured || port=$etcd_health_port
  # shellcheck disable=SC2016
  timeout 3 bash -c 'exec 3<>"/dev/tcp/$1/$2" && printf "GET /health HTTP/1.0\r\n\r\n" >&3 &&
    grep -q "\"health\":\"true\"" <&3' _ "$QUIPU_SERVICES_NETWORK.1" "$port" 2>/dev/null
}

etcd_wait() {
  wait_ready etcd "$QUIPU_SERVICES_DIR/etcd" etcd_healthy
  ! secured || secure_etcd
  say "etcd answers on $QUIPU_SERVICES_NETWORK.1:$etcd_port"
}
