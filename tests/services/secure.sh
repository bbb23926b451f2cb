# shellcheck shell=bash
# Secured services, `up --secure`: etcd and Cassandra speak TLS, ask for the client's certificate, and for a password.
# Sourced by `up`. Everything is in secure/ of the services' directory:
#
#   ca.pem                       the authority that all trust
#   own.pem, own-key.pem         a certificate for servers, clients and nodes alike
#   other-ca.pem, other.pem, …   the same of an authority that nobody trusts
#   etcd-user, etcd-password, cassandra-user, cassandra-password

# shellcheck disable=SC2154 # secure_dir is set in `up`, the ports in lib.sh
secured() { [ -f "$secure_dir/cassandra-password" ]; }

secure_make() {
  ! secured || return 0
  command -v openssl >/dev/null || die "openssl makes the certificates and is missing; install openssl"
  if [ -d "$QUIPU_SERVICES_DIR/etcd" ] || [ -d "$QUIPU_SERVICES_DIR/cassandra" ]; then
    die "services were started here without --secure; run down first, or name another directory in QUIPU_SERVICES_DIR"
  fi
  mkdir -p "$secure_dir"
  authority ca own
  authority other-ca other
  printf root >"$secure_dir/etcd-user"
  printf 'of-etcd' >"$secure_dir/etcd-password"
  # The user that Cassandra makes itself.
  printf cassandra >"$secure_dir/cassandra-user"
  printf cassandra >"$secure_dir/cassandra-password"
}

# authority CA NAME: an authority, and a certificate that it signs for the loopback addresses. The keys are in PKCS #8.
authority() {
  local ca=$secure_dir/$1 name=$secure_dir/$2 new=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
  local network=$QUIPU_SERVICES_NETWORK
  {
    openssl req -x509 "${new[@]}" -days 30 -subj "/CN=an authority of tests" -keyout "$ca-key.pem" -out "$ca.pem"
    openssl req "${new[@]}" -subj "/CN=$2" -keyout "$name-key.pem" -out "$name.csr"
    openssl x509 -req -days 30 -in "$name.csr" -CA "$ca.pem" -CAkey "$ca-key.pem" -CAcreateserial -out "$name.pem" -extfile <(
      echo "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:$network.1,IP:$network.2,IP:$network.3"
      echo "extendedKeyUsage=serverAuth,clientAuth"
    )
  } 2>"$secure_dir/log" || die "openssl failed: $(tail -n 1 "$secure_dir/log")"
  rm -f "$name.csr"
  # What Cassandra reads: the key with its certificate.
  cat "$name-key.pem" "$name.pem" >"$name-both.pem"
}

secure_yaml() {
  cat <<YAML
authenticator: PasswordAuthenticator
client_encryption_options:
  enabled: true
  optional: false
  require_client_auth: true
  ssl_context_factory:
    class_name: org.apache.cassandra.security.PEMBasedSslContextFactory
  keystore: $secure_dir/own-both.pem
  truststore: $secure_dir/ca.pem
YAML
}

# etcd asks for passwords from here on. Its certificate's name is no user's, so a certificate alone opens nothing.
secure_etcd() {
  local ctl
  ctl=$(dirname "$(cat "$QUIPU_SERVICES_DIR/etcd/program")")/etcdctl
  [ ! -f "$secure_dir/etcd-asks" ] || return 0
  [ -x "$ctl" ] || die "etcdctl sets etcd's password and is not beside etcd, at $ctl"
  local call=("$ctl" --endpoints "https://$QUIPU_SERVICES_NETWORK.1:$etcd_port" --cacert "$secure_dir/ca.pem"
    --cert "$secure_dir/own.pem" --key "$secure_dir/own-key.pem")
  {
    "${call[@]}" user add "root:$(cat "$secure_dir/etcd-password")"
    "${call[@]}" user grant-role root root
    "${call[@]}" auth enable
  } >"$secure_dir/log" 2>&1 || die "etcd does not take its password: $(tail -n 1 "$secure_dir/log")"
  touch "$secure_dir/etcd-asks"
}
