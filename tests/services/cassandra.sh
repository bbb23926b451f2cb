# shellcheck shell=bash
# One or three Cassandra nodes: where the program comes from, how a node is configured and started, when it is ready.
# Sourced by `up`. Node N listens on .N of the network; its state is in cassandra/nodeN.
# shellcheck disable=SC2154 # the ports are set in lib.sh

# Prints the java to use. Cassandra 5.0 runs on 11 and 17 only.
java_program() {
  local java=${JAVA_HOME:+$JAVA_HOME/bin/}java major
  major=$("$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1) || true
  case $major in
    11 | 17) echo "$java" ;;
    *) die "Cassandra needs Java 11 or 17 and this is ${major:-none}; run .ci/setup services, or set JAVA_HOME" ;;
  esac
}

# Prints the directory of Cassandra's jars. They come from Maven, since no archive of Cassandra is published there.
cassandra_jars() {
  local jars=$QUIPU_CACHE_DIR/cassandra-$QUIPU_CASSANDRA_VERSION project
  if [ ! -d "$jars" ]; then
    command -v mvn >/dev/null || die "Maven fetches Cassandra and is missing; run .ci/setup services, or install maven"
    say "fetching Cassandra $QUIPU_CASSANDRA_VERSION, about 70 MB"
    mkdir -p "$QUIPU_CACHE_DIR"
    project=$(mktemp -d "$QUIPU_CACHE_DIR/cassandra.XXXXXX")
    cat >"$project/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>quipu.test</groupId><artifactId>cassandra</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.cassandra</groupId><artifactId>cassandra-all</artifactId>
      <version>$QUIPU_CASSANDRA_VERSION</version>
    </dependency>
  </dependencies>
</project>
POM
    mvn -B -q -f "$project/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
      -DincludeScope=runtime -DoutputDirectory="$project/jars" >&2 ||
      { rm -rf "$project"; die "Maven could not fetch Cassandra $QUIPU_CASSANDRA_VERSION"; }
    # Another run may have been faster: then its copy stays.
    mv -T "$project/jars" "$jars" 2>/dev/null || [ -d "$jars" ]
    rm -rf "$project"
  fi
  echo "$jars"
}

# The settings of node $1. `periodic` answers before the commit log is synced: quick, and enough where only Quipu is
# killed. The other two sync first, which a test that kills Cassandra needs.
write_yaml() {
  local i=$1 dir=$2 seeds='' n tokens=(-9223372036854775808 -3074457345618258603 3074457345618258602)
  for ((n = 1; n <= cassandra_nodes; n++)); do seeds+=${seeds:+,}$QUIPU_SERVICES_NETWORK.$n:$storage_port; done
  cat <<YAML
cluster_name: quipu
num_tokens: 1
initial_token: ${tokens[i - 1]}
auto_bootstrap: false
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: GossipingPropertyFileSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{seeds: "$seeds"}]
listen_address: $QUIPU_SERVICES_NETWORK.$i
rpc_address: $QUIPU_SERVICES_NETWORK.$i
broadcast_rpc_address: ${QUIPU_CASSANDRA_ADDRESS:-$QUIPU_SERVICES_NETWORK.$i}
storage_port: $storage_port
native_transport_port: $cql_port
data_file_directories: ["$dir/data"]
commitlog_directory: "$dir/commitlog"
hints_directory: "$dir/hints"
saved_caches_directory: "$dir/saved_caches"
cdc_raw_directory: "$dir/cdc"
auto_snapshot: false
paxos_variant: v2
commitlog_sync: $cassandra_sync
YAML
  ! secured || secure_yaml
  case $cassandra_sync in
    periodic) echo "commitlog_sync_period: 1000ms" ;;
    group) echo "commitlog_sync_group_window: 2ms" ;;
  esac
}

write_logback() {
  cat <<'XML'
<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d{HH:mm:ss.SSS} %-5level [%thread] %logger{0} %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="OUT"/></root>
</configuration>
XML
}

# The java flags of node $1.
write_jvm_flags() {
  local i=$1 dir=$2 jars=$3
  # shellcheck disable=SC2086 # several flags
  printf '%s\n' "-Xms$QUIPU_CASSANDRA_HEAP" "-Xmx$QUIPU_CASSANDRA_HEAP" -Xss512k $QUIPU_CASSANDRA_JAVA \
    -XX:+ExitOnOutOfMemoryError -XX:-UsePerfData \
    "-javaagent:$(echo "$jars"/jamm-*.jar)" -Djdk.attach.allowAttachSelf=true \
    -Dio.netty.tryReflectionSetAccessible=true "-Djava.io.tmpdir=$dir/tmp" "-Djna.tmpdir=$dir/tmp" \
    "-Dcassandra.config=file://$dir/conf/cassandra.yaml" "-Dcassandra.storagedir=$dir" \
    "-Dcassandra.jmx.local.port=$((jmx_port + i - 1))" -Dcassandra.ring_delay_ms=1000 \
    -Dcassandra.skip_wait_for_gossip_to_settle=0 -Dcassandra.superuser_setup_delay_ms=0 -Dcassandra-foreground=yes
  write_module_flags
}

# What Cassandra and its tools need to be let into.
write_module_flags() {
  local module
  for module in java.base/jdk.internal.misc java.base/java.lang.ref java.rmi/sun.rmi.registry java.rmi/sun.rmi.server \
    java.management.rmi/com.sun.jmx.remote.internal.rmi java.sql/java.sql jdk.unsupported/sun.misc; do
    echo "--add-exports=$module=ALL-UNNAMED"
  done
  for module in java.base/java.{io,lang,lang.module,lang.reflect,util} java.base/sun.nio.ch \
    java.base/jdk.internal.{loader,math,module,ref,reflect,util.jar} jdk.management/com.sun.management.internal; do
    echo "--add-opens=$module=ALL-UNNAMED"
  done
}

node_dir() { echo "$QUIPU_SERVICES_DIR/cassandra/node$1"; }

node_start() {
  local i=$1 java=$2 jars=$3 dir
  dir=$(node_dir "$i")
  ! pid_of "$dir" >/dev/null || return 0
  require_free "$QUIPU_SERVICES_NETWORK.$i" "$cql_port" "$storage_port"
  require_free 127.0.0.1 "$((jmx_port + i - 1))"
  mkdir -p "$dir/conf" "$dir/tmp"
  write_yaml "$i" "$dir" >"$dir/conf/cassandra.yaml"
  write_logback >"$dir/conf/logback.xml"
  write_jvm_flags "$i" "$dir" "$jars" >"$dir/conf/jvm.flags"
  printf 'dc=dc1\nrack=rack%s\n' "$i" >"$dir/conf/cassandra-rackdc.properties"
  (
    cd "$dir" || exit
    exec setsid "$java" "@$dir/conf/jvm.flags" -cp "$dir/conf:$jars/*" org.apache.cassandra.service.CassandraDaemon \
      </dev/null >"$dir/log" 2>&1 9>&-
  ) &
  echo $! >"$dir/pid"
}

# known_peers HOST: prints how many other nodes HOST tells drivers of. It speaks CQL: STARTUP and its answer of 9 bytes,
# then a query without metadata, whose answer has the number of rows in its bytes 22 to 25.
known_peers() {
  # shellcheck disable=SC2016
  timeout 5 bash -c 'exec 3<>"/dev/tcp/$1/$2" || exit
    printf "\x04\0\0\0\x01\0\0\0\x16\0\x01\0\x0bCQL_VERSION\0\x053.0.0" >&3
    head -c 9 <&3 >/dev/null
    printf "\x04\0\0\0\x07\0\0\0\x27\0\0\0\x20SELECT peer FROM system.peers_v2\0\x01\x02" >&3
    head -c 25 <&3 | od -An -v -tu1 -w1 | tail -n 1 | tr -d " "' _ "$1" "$cql_port" 2>/dev/null
}

# sees I N: the last that node I logged about node N is that it is up.
sees() {
  grep -F "$QUIPU_SERVICES_NETWORK.$2:$storage_port is now" "$(node_dir "$1")/log" | tail -n 1 | grep -q UP
}

# node_ready I: it has started, tells drivers of all others, and it and every other running node see each other.
node_ready() {
  local i=$1 n
  grep -q "Startup complete" "$(node_dir "$i")/log" || return 1
  if secured; then
    # A single node, whose user must be there.
    grep -q "Created default superuser" "$(node_dir "$i")/log"
    return
  fi
  [ "$(known_peers "$QUIPU_SERVICES_NETWORK.$i")" = $((cassandra_nodes - 1)) ] || return 1
  for ((n = 1; n <= cassandra_nodes; n++)); do
    if [ "$n" != "$i" ] && pid_of "$(node_dir "$n")" >/dev/null; then
      sees "$i" "$n" && sees "$n" "$i" || return 1
    fi
  done
}

# cassandra_up NODES SYNC: starts what does not run yet. cassandra_up '' '' N: starts node N of what was started before.
cassandra_up() {
  local base=$QUIPU_SERVICES_DIR/cassandra only=${3:-} first=1 last java jars i
  if [ -n "$only" ]; then
    [ -f "$base/shape" ] || die "no Cassandra was started in $QUIPU_SERVICES_DIR, so node $only cannot come back"
    read -r cassandra_nodes cassandra_sync <"$base/shape"
    [ "$only" -le "$cassandra_nodes" ] || die "there are nodes 1 to $cassandra_nodes, not $only"
  else
    cassandra_nodes=$1 cassandra_sync=$2
    [ ! -f "$base/shape" ] || [ "$(cat "$base/shape")" = "$1 $2" ] ||
      die "Cassandra was started here with nodes and sync \"$(cat "$base/shape")\", not \"$1 $2\"; run down first"
  fi
  java=$(java_program)
  jars=$(cassandra_jars)
  mkdir -p "$base"
  echo "$cassandra_nodes $cassandra_sync" >"$base/shape"
  last=$cassandra_nodes
  [ -z "$only" ] || first=$only last=$only
  for ((i = first; i <= last; i++)); do node_start "$i" "$java" "$jars"; done
  for ((i = first; i <= last; i++)); do
    wait_ready "Cassandra node $i" "$(node_dir "$i")" node_ready "$i"
    say "Cassandra $QUIPU_CASSANDRA_VERSION node $i answers on $QUIPU_SERVICES_NETWORK.$i:$cql_port"
  done
}
