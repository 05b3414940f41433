# What the services keep their state in: MariaDB, RabbitMQ, and the schema.

DATABASES=(keystone glance placement nova_api nova nova_cell0 neutron)

start_mariadb() {
  local data=$DATA/mysql
  if [ ! -d "$data/mysql" ]; then
    rm -rf "$data.new"
    mkdir -p "$data.new"
    clean mariadb-install-db --no-defaults --user=root --datadir="$data.new" \
      --auth-root-authentication-method=normal --skip-test-db
    mv "$data.new" "$data"
  fi
  # Nothing here has to survive a power cut, so nothing waits for the disk.
  start mariadb mariadbd --no-defaults --user=root --datadir="$data" --socket="$SOCKET" \
    --pid-file="$DATA/mysqld.pid" --bind-address=127.0.0.1 --port="$PORT_MARIADB" \
    --skip-name-resolve --character-set-server=utf8mb3 --max-connections=400 \
    --innodb-buffer-pool-size=96M --innodb-log-file-size=64M --innodb-flush-log-at-trx-commit=0 \
    --innodb-doublewrite=0 --sync-binlog=0 --skip-log-bin --performance-schema=OFF \
    --default-storage-engine=InnoDB
  until_holds 60 "MariaDB answers" mariadb sql -e 'select 1'
  local host database
  {
    for host in 127.0.0.1 localhost; do
      echo "CREATE USER IF NOT EXISTS 'lab'@'$host' IDENTIFIED BY '$PASSWORD';"
      for database in "${DATABASES[@]}"; do
        echo "CREATE DATABASE IF NOT EXISTS $database CHARACTER SET utf8mb3;"
        echo "GRANT ALL ON $database.* TO 'lab'@'$host';"
      done
    done
  } | sql
}

start_rabbitmq() {
  local data=$DATA/rabbit
  mkdir -p "$data"/{mnesia,log,home}
  echo '[].' > "$data/plugins"
  cat > "$data/rabbitmq.conf" <<TEXT
listeners.tcp.1 = 127.0.0.1:$PORT_RABBIT
num_acceptors.tcp = 2
default_user = lab
default_pass = $PASSWORD
loopback_users = none
vm_memory_high_watermark.absolute = 400MB
disk_free_limit.absolute = 50MB
log.file.level = warning
log.console = false
TEXT
  # A port mapper of its own: that of the machine may belong to somebody else, or end with them.
  start epmd env ERL_EPMD_ADDRESS=127.0.0.1 epmd -port "$PORT_EPMD"
  until_holds 10 "epmd listens" epmd port_is_open "$PORT_EPMD"
  # Not the program in /usr/sbin, which changes to the user rabbitmq.
  start rabbitmq env HOME="$data/home" ERL_EPMD_PORT="$PORT_EPMD" ERL_EPMD_ADDRESS=127.0.0.1 \
    RABBITMQ_NODENAME="$NAME@localhost" RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 \
    RABBITMQ_DIST_PORT="$PORT_RABBIT_DIST" RABBITMQ_MNESIA_BASE="$data/mnesia" \
    RABBITMQ_LOG_BASE="$data/log" RABBITMQ_CONFIG_FILE="$data/rabbitmq.conf" \
    RABBITMQ_ENABLED_PLUGINS_FILE="$data/plugins" RABBITMQ_CONF_ENV_FILE=/dev/null \
    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none +S 2:2" \
    /usr/lib/rabbitmq/bin/rabbitmq-server
  until_holds 60 "RabbitMQ listens" rabbitmq port_is_open "$PORT_RABBIT"
}

# The slowest part of a new lab, so its result is kept. It names folders, ports and passwords (the
# cells of Nova are URLs) and depends on the versions, so its name is made of all that.
saved_schema() {
  local versions
  versions=$(dpkg-query -W -f='${Version} ' python3-{keystone,glance,placement,nova,neutron})
  echo "$LAB/cache/schema-$(echo "$LAB $BASE $PASSWORD $versions" | md5sum | cut -c1-12).sql.gz"
}

make_schema() {
  if [ -e "$DATA/schema-is-made" ]; then return 0; fi
  local saved
  saved=$(saved_schema)
  if [ -s "$saved" ]; then
    zcat "$saved" | sql
  else
    migrate
    mariadb-dump --no-defaults --user=root --socket="$SOCKET" --single-transaction \
      --databases "${DATABASES[@]}" | gzip -1 > "$saved.new"
    mv "$saved.new" "$saved"
  fi
  touch "$DATA/schema-is-made"
}

migrate() {
  local nova=(clean nova-manage --config-file "$ETC/nova/nova.conf") neutron
  # Neutron's has the most steps: beside all the others.
  clean neutron-db-manage --config-file "$ETC/neutron/neutron.conf" \
    --config-file "$ETC/neutron/ml2.ini" upgrade heads &
  neutron=$!
  clean keystone-manage --config-file "$ETC/keystone/keystone.conf" db_sync
  clean glance-manage --config-file "$ETC/glance/glance-api.conf" db_sync
  clean OS_PLACEMENT_CONFIG_DIR="$ETC/placement" \
    placement-manage --config-file "$ETC/placement/placement.conf" db sync
  "${nova[@]}" api_db sync
  "${nova[@]}" cell_v2 map_cell0 --database_connection \
    "mysql+pymysql://lab:$PASSWORD@127.0.0.1:$PORT_MARIADB/nova_cell0?charset=utf8"
  # 2: an interrupted earlier try has made it.
  "${nova[@]}" cell_v2 create_cell --name cell1 || [ $? = 2 ]
  "${nova[@]}" db sync
  wait "$neutron"
}
