# shellcheck shell=bash
# Settings and helpers of `up` and `down`. Every setting can come from the environment.
# shellcheck disable=SC2034 # the files that source this one use them

: "${QUIPU_CACHE_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/quipu-tools}"  # what was downloaded, by version; safe to delete
: "${QUIPU_SERVICES_PORTS:=}"                 # the first of 8 ports in a row; empty: the services' usual ports
: "${QUIPU_SERVICES_DIR:=${TMPDIR:-/tmp}/quipu-services-$(id -u)${QUIPU_SERVICES_PORTS:+-$QUIPU_SERVICES_PORTS}}"
: "${QUIPU_SERVICES_NETWORK:=127.0.0}"         # etcd listens on .1 of it, Cassandra node N on .N
: "${QUIPU_SERVICES_WAIT_SECONDS:=180}"       # for each process to become ready
: "${QUIPU_ETCD_BIN:=}"                       # an etcd to use instead of the one on PATH or the downloaded one
: "${QUIPU_CASSANDRA_VERSION:=5.0.9}"         # of org.apache.cassandra:cassandra-all
: "${QUIPU_CASSANDRA_ADDRESS:=}"              # where one node tells its clients that it is, when that is not its own
: "${QUIPU_CASSANDRA_HEAP:=512M}"             # per node; a node takes about twice that
: "${QUIPU_CASSANDRA_JAVA:=-XX:+UseSerialGC -XX:TieredStopAtLevel=1}" # quick to start and small, not quick to work

if [ -n "$QUIPU_SERVICES_PORTS" ]; then
  case $QUIPU_SERVICES_PORTS in
    *[!0-9]*) echo "QUIPU_SERVICES_PORTS is $QUIPU_SERVICES_PORTS; give one port number, such as 21000" >&2; exit 2 ;;
  esac
  etcd_port=$QUIPU_SERVICES_PORTS etcd_peer_port=$((QUIPU_SERVICES_PORTS + 1))
  cql_port=$((QUIPU_SERVICES_PORTS + 2)) storage_port=$((QUIPU_SERVICES_PORTS + 3))
  etcd_health_port=$((QUIPU_SERVICES_PORTS + 4))
  jmx_port=$((QUIPU_SERVICES_PORTS + 5))
else
  etcd_port=2379 etcd_peer_port=2380 etcd_health_port=2381 cql_port=9042 storage_port=7000
  jmx_port=7199 # and the two after it, one for each node
fi
readonly etcd_port etcd_peer_port etcd_health_port cql_port storage_port jmx_port

say() { echo "services: $*" >&2; }
die() { say "$*"; exit 1; }

# One `up` or `down` at a time in a directory. Descriptor 9 holds the lock; children close it.
lock_dir() {
  mkdir -p "$QUIPU_SERVICES_DIR" || die "cannot make $QUIPU_SERVICES_DIR; name another in QUIPU_SERVICES_DIR"
  QUIPU_SERVICES_DIR=$(cd "$QUIPU_SERVICES_DIR" && pwd)
  exec 9>"$QUIPU_SERVICES_DIR/lock"
  flock 9
}

# pid_of DIR: prints the id of the process that was started for DIR, if it still runs. Its command line names DIR,
# so an id that the system has given to another process since is not mistaken for it.
pid_of() {
  local pid
  pid=$(cat "$1/pid" 2>/dev/null) && [ -n "$pid" ] || return 1
  tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$1/" || return 1
  echo "$pid"
}

# connects HOST PORT: something listens there.
connects() {
  # shellcheck disable=SC2016
  timeout 2 bash -c 'exec 3<>"/dev/tcp/$1/$2"' _ "$1" "$2" 2>/dev/null
}

# require_free HOST PORT...: fails when one is taken, since a stranger would then answer in the service's place.
require_free() {
  local host=$1 port
  shift
  for port; do
    ! connects "$host" "$port" ||
      die "$host:$port is in use by something else; stop it, or set QUIPU_SERVICES_PORTS to the first of 8 free ports"
  done
}

# wait_ready WHAT DIR CHECK...: until CHECK passes. Fails, with the end of the log, when the process is gone or late.
wait_ready() {
  local what=$1 dir=$2 deadline=$((SECONDS + QUIPU_SERVICES_WAIT_SECONDS)) why
  shift 2
  until "$@"; do
    why=''
    kill -0 "$(cat "$dir/pid")" 2>/dev/null || why="ended before it was ready"
    [ "$SECONDS" -lt "$deadline" ] || why="is not ready after $QUIPU_SERVICES_WAIT_SECONDS s"
    if [ -n "$why" ]; then
      tail -n 25 "$dir/log" | cut -c1-300 >&2
      die "$what $why; the end of $dir/log is above"
    fi
    sleep 0.1
  done
}
