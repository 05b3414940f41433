# The services themselves: Keystone with its users, the APIs, and the hosts of nothing.

URL=http://127.0.0.1

# wsgi NAME PORT FILE PROCESSES THREADS VARIABLE=VALUE: a service within uwsgi. `--need-app`, or a
# service that cannot be loaded would look like one that runs.
wsgi() {
  local name=$1 port=$2 file=$3 processes=$4 threads=$5 folder=$6
  start "$name" env "$folder" uwsgi_python3 --plugins http,python3 \
    --http-socket "127.0.0.1:$port" --wsgi-file "$file" --procname-prefix-spaced "$name" \
    --master --lazy-apps --need-app --processes "$processes" --threads "$threads" --enable-threads \
    --die-on-term --no-orphans --thunder-lock --buffer-size 65535 --listen 100 \
    --http-auto-chunked --http-chunked-input --http-raw-body --socket-timeout 60 \
    --add-header "Connection: close" --disable-logging
}

# Keystone, its first user, and then everybody else and the catalog.
start_identity() {
  local manage=(clean keystone-manage --config-file "$ETC/keystone/keystone.conf")
  if [ ! -e "$DATA/keystone/is-bootstrapped" ]; then
    "${manage[@]}" fernet_setup --keystone-user root --keystone-group root
    "${manage[@]}" credential_setup --keystone-user root --keystone-group root
    "${manage[@]}" bootstrap --bootstrap-password "$PASSWORD" --bootstrap-username admin \
      --bootstrap-project-name admin --bootstrap-role-name admin \
      --bootstrap-service-name keystone --bootstrap-region-id "$REGION" \
      --bootstrap-public-url "$URL:$PORT_KEYSTONE/v3" \
      --bootstrap-internal-url "$URL:$PORT_KEYSTONE/v3" \
      --bootstrap-admin-url "$URL:$PORT_KEYSTONE/v3"
    touch "$DATA/keystone/is-bootstrapped"
  fi
  # One process: the cache is in its memory, and without it every token costs 400 queries.
  wsgi keystone "$PORT_KEYSTONE" /usr/bin/keystone-wsgi-public 1 8 \
    OS_KEYSTONE_CONFIG_DIR="$ETC/keystone"
  # These take a while to load, and need no user of theirs until they are asked something.
  start_apis
  until_holds 60 "Keystone answers" keystone answers "$URL:$PORT_KEYSTONE/v3"
  seed identity
}

# seed WHAT: makes what is missing of `identity` or `resources`.
seed() {
  clean LAB_ETC="$ETC" LAB_URL="$URL" LAB_REGION="$REGION" LAB_PASSWORD="$PASSWORD" \
    LAB_METADATA_SECRET="$METADATA_SECRET" LAB_PUBLIC="$PUBLIC" LAB_IMAGE="$LAB/image" \
    LAB_MODE="$MODE" LAB_KEYSTONE="$PORT_KEYSTONE" LAB_GLANCE="$PORT_GLANCE" \
    LAB_PLACEMENT="$PORT_PLACEMENT" LAB_NOVA="$PORT_NOVA" LAB_NEUTRON="$PORT_NEUTRON" \
    LAB_METADATA="$PORT_METADATA" python3 "$HERE/seed.py" "$1"
}

start_apis() {
  # Of all services nova-api alone reads what differs between the modes.
  if [ "$(cat "$LAB/run/mode" 2> /dev/null)" != "$MODE" ]; then stop nova-api 15; fi
  start neutron-server neutron-server --config-file "$ETC/neutron/neutron.conf" \
    --config-file "$ETC/neutron/ml2.ini"
  wsgi placement "$PORT_PLACEMENT" /usr/bin/placement-api 1 4 \
    OS_PLACEMENT_CONFIG_DIR="$ETC/placement"
  wsgi glance "$PORT_GLANCE" /usr/bin/glance-wsgi-api 1 4 OS_GLANCE_CONFIG_DIR="$ETC/glance"
  # Nova runs in green threads, which real ones would disturb.
  wsgi nova-api "$PORT_NOVA" /usr/bin/nova-api-wsgi 2 1 OS_NOVA_CONFIG_DIR="$ETC/nova"
  wsgi nova-metadata "$PORT_METADATA" /usr/bin/nova-metadata-wsgi 1 1 OS_NOVA_CONFIG_DIR="$ETC/nova"
}

start_services() {
  # These log in when they start, and end when they cannot.
  local name
  for name in conductor scheduler; do
    nova_program "nova-$name" "$name" --config-file "$ETC/nova/nova.conf" \
      --log-file "$LAB/log/nova-$name.log"
  done
  until_holds 90 "Placement answers" placement answers "$URL:$PORT_PLACEMENT/"
  until_holds 90 "Glance answers" glance answers "$URL:$PORT_GLANCE/"
  until_holds 90 "Nova answers" nova-api answers "$URL:$PORT_NOVA/"
  until_holds 90 "Nova's metadata answers" nova-metadata answers "$URL:$PORT_METADATA/"
  until_holds 90 "Neutron answers" neutron-server answers "$URL:$PORT_NEUTRON/"
}

# How many hypervisors of a kind have reported.
has_hypervisors() {
  local kind=$1 number=$2 found
  found=$(sql -N -e "select count(*) from nova.compute_nodes where deleted = 0 and hypervisor_type = '$kind'")
  [ "$found" -ge "$number" ]
}

discover_hosts() {
  clean nova-manage --config-file "$ETC/nova/nova.conf" cell_v2 discover_hosts --verbose
}

# Hosts whose servers are entries in a table. Several, because anti-affinity needs several.
start_fake_hosts() {
  local host
  for host in $(seq "$FAKE_HOSTS"); do
    nova_program "nova-compute-fake$host" compute --config-file "$ETC/nova/nova-fake$host.conf"
  done
  until_holds 90 "$FAKE_HOSTS fake hosts reported" nova-compute-fake1 has_hypervisors fake "$FAKE_HOSTS"
  discover_hosts
}

stop_fake_hosts() {
  local name
  for name in $(known_processes | grep '^nova-compute-fake' || true); do stop "$name" 15 & done
  wait
}

seed_resources() {
  seed resources
}
