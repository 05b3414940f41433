# The configuration of all services. Written anew at every `up`; a service reads it when it starts.

database() {
  # By the socket, which takes a tenth of the time of a connection to the port.
  echo "mysql+pymysql://lab:$PASSWORD@localhost/$1?charset=utf8&unix_socket=$SOCKET"
}

pool() {
  printf '%s\n' 'max_pool_size = 5' 'max_overflow = 20' 'connection_recycle_time = 3000'
}

messaging() {
  cat <<TEXT
[oslo_messaging_rabbit]
# Heartbeats and green threads do not go well together, and loopback needs none.
heartbeat_timeout_threshold = 0
rabbit_retry_interval = 1
rpc_conn_pool_size = 10
[oslo_messaging_notifications]
driver = noop
TEXT
}

# login USER: how a service logs in to Keystone.
login() {
  cat <<TEXT
auth_url = http://127.0.0.1:$PORT_KEYSTONE/v3
auth_type = password
project_domain_name = Default
user_domain_name = Default
project_name = service
username = $1
password = $PASSWORD
region_name = $REGION
TEXT
}

# validates USER: how a service checks the tokens it is shown.
validates() {
  cat <<TEXT
[keystone_authtoken]
www_authenticate_uri = http://127.0.0.1:$PORT_KEYSTONE/v3
$(login "$1")
service_token_roles_required = true
service_token_roles = service
token_cache_time = 300
TEXT
}

# calls SECTION USER: how a service calls another.
calls() {
  printf '[%s]\n%s\nvalid_interfaces = public\n' "$1" "$(login "$2")"
}

write_config() {
  local service
  mkdir -p "$ETC"/{keystone,glance,placement,nova,neutron} "$DATA"/{keystone,nova,neutron,locks} \
    "$DATA"/glance/{images,staging,tasks}
  for service in keystone glance placement nova neutron; do
    # An empty policy of ours, or that of the machine would be read.
    echo '{}' > "$ETC/$service/policy.yaml"
  done
  # Looked for beside the configuration when uwsgi loads a service.
  cp /usr/share/nova-common/api-paste.ini "$ETC/nova/"
  cp /usr/share/glance-common/glance-api-paste.ini "$ETC/glance/"
  keystone_config > "$ETC/keystone/keystone.conf"
  glance_config > "$ETC/glance/glance-api.conf"
  placement_config > "$ETC/placement/placement.conf"
  nova_config lab fake.FakeDriver nova > "$ETC/nova/nova.conf"
  local host
  for host in $(seq "$FAKE_HOSTS"); do
    nova_config "fake$host" fake.FakeDriver "nova-compute-fake$host" > "$ETC/nova/nova-fake$host.conf"
  done
  real_host_config > "$ETC/nova/nova-real.conf"
  neutron_config > "$ETC/neutron/neutron.conf"
  ml2_config > "$ETC/neutron/ml2.ini"
  agents_config > "$ETC/neutron/agents.ini"
  install_port_driver
}

keystone_config() {
  cat <<TEXT
[DEFAULT]
log_file = $LAB/log/keystone.log
max_token_size = 512
[database]
connection = $(database keystone)
$(pool)
[token]
provider = fernet
expiration = 86400
[fernet_tokens]
key_repository = $DATA/keystone/fernet-keys
[credential]
key_repository = $DATA/keystone/credential-keys
[identity]
password_hash_rounds = 4
[cache]
# A token is looked at by every service for every call: 12 ms with this, most of a second without.
enabled = true
backend = dogpile.cache.memory
[oslo_policy]
policy_file = $ETC/keystone/policy.yaml
[oslo_messaging_notifications]
driver = noop
TEXT
}

glance_config() {
  cat <<TEXT
[DEFAULT]
log_file = $LAB/log/glance-api.log
bind_host = 127.0.0.1
bind_port = $PORT_GLANCE
workers = 0
enabled_backends = file:file
enabled_import_methods = [glance-direct]
node_staging_uri = file://$DATA/glance/staging
show_image_direct_url = false
[database]
connection = $(database glance)
$(pool)
[glance_store]
default_backend = file
[file]
filesystem_store_datadir = $DATA/glance/images
[os_glance_staging_store]
filesystem_store_datadir = $DATA/glance/staging
[os_glance_tasks_store]
filesystem_store_datadir = $DATA/glance/tasks
[paste_deploy]
flavor = keystone
config_file = $ETC/glance/glance-api-paste.ini
[oslo_policy]
policy_file = $ETC/glance/policy.yaml
[oslo_concurrency]
lock_path = $DATA/locks
$(validates glance)
[oslo_messaging_notifications]
driver = noop
TEXT
}

placement_config() {
  cat <<TEXT
[DEFAULT]
log_file = $LAB/log/placement-api.log
[api]
auth_strategy = keystone
[placement_database]
connection = $(database placement)
$(pool)
[oslo_policy]
policy_file = $ETC/placement/policy.yaml
$(validates placement)
TEXT
}

# nova_config HOST DRIVER LOG: each host has its own, the APIs share one.
nova_config() {
  local host=$1 driver=$2 log=$3 plugging=false within=0
  # Only a host with an agent hears from Neutron that a port is plugged in.
  if [ "$driver" = libvirt.LibvirtDriver ]; then plugging=true within=120; fi
  cat <<TEXT
[DEFAULT]
host = $host
my_ip = 127.0.0.1
transport_url = rabbit://lab:$PASSWORD@127.0.0.1:$PORT_RABBIT/
state_path = $DATA/nova
compute_driver = $driver
enabled_apis = osapi_compute,metadata
osapi_compute_listen = 127.0.0.1
metadata_listen = 127.0.0.1
reserved_host_memory_mb = 512
reserved_host_disk_mb = 0
cpu_allocation_ratio = 16.0
ram_allocation_ratio = 1.5
disk_allocation_ratio = 10.0
vif_plugging_is_fatal = $plugging
vif_plugging_timeout = $within
rpc_response_timeout = 60
service_down_time = 60
report_interval = 10
update_resources_interval = 0
instance_usage_audit = false
heal_instance_info_cache_interval = 60
sync_power_state_interval = 60
default_availability_zone = nova
$(if [ "$MODE" = both ]; then echo "default_schedule_zone = nova"; fi)
log_file = $LAB/log/$log.log
[api]
auth_strategy = keystone
use_forwarded_for = false
[api_database]
connection = $(database nova_api)
$(pool)
[database]
connection = $(database nova)
$(pool)
[conductor]
workers = 1
[scheduler]
workers = 1
discover_hosts_in_cells_interval = 20
[filter_scheduler]
track_instance_changes = false
enabled_filters = AvailabilityZoneFilter,ComputeFilter,ComputeCapabilitiesFilter,ImagePropertiesFilter,ServerGroupAntiAffinityFilter,ServerGroupAffinityFilter
[quota]
# A ring of 25 and the old ones beside it; the defaults end at ten servers, and ten in a group.
instances = 60
cores = 200
ram = 200000
server_groups = 20
server_group_members = 60
[glance]
api_servers = http://127.0.0.1:$PORT_GLANCE
[vnc]
enabled = false
[spice]
enabled = false
[key_manager]
fixed_key = 0000000000000000000000000000000000000000000000000000000000000000
[oslo_concurrency]
lock_path = $DATA/locks
[oslo_policy]
policy_file = $ETC/nova/policy.yaml
[wsgi]
api_paste_config = $ETC/nova/api-paste.ini
[workarounds]
skip_hypervisor_version_check_on_lm = true
$(validates nova)
$(calls placement nova)
$(calls service_user nova)
send_service_user_token = true
$(calls neutron nova)
service_metadata_proxy = true
metadata_proxy_shared_secret = $METADATA_SECRET
$(messaging)
TEXT
}

# The host whose servers are real: qemu without KVM, as root, so every helper is called directly.
real_host_config() {
  local file=$ETC/nova/nova-real.conf section
  nova_config lab libvirt.LibvirtDriver nova-compute-real
  cat <<TEXT
[libvirt]
virt_type = qemu
cpu_mode = custom
cpu_models = ${SKY_LAB_CPU_MODEL:-Nehalem}
connection_uri = $(libvirt_uri)
images_type = qcow2
inject_partition = -2
inject_key = false
use_virtio_for_bridges = true
wait_soft_reboot_seconds = 10
[serial_console]
enabled = false
TEXT
  for section in nova_sys_admin vif_plug_linux_bridge_privileged vif_plug_ovs_privileged \
    privsep_osbrick; do
    printf '[%s]\nhelper_command = privsep-helper --config-file %s\n' "$section" "$file"
  done
}

neutron_config() {
  cat <<TEXT
[DEFAULT]
bind_host = 127.0.0.1
bind_port = $PORT_NEUTRON
host = lab
state_path = $DATA/neutron
core_plugin = ml2
service_plugins = router
transport_url = rabbit://lab:$PASSWORD@127.0.0.1:$PORT_RABBIT/
api_paste_config = /etc/neutron/api-paste.ini
api_workers = 1
rpc_workers = 1
rpc_state_report_workers = 0
allow_overlapping_ips = true
dhcp_agents_per_network = 1
notify_nova_on_port_status_changes = true
notify_nova_on_port_data_changes = true
agent_down_time = 60
dns_domain = lab.
global_physnet_mtu = 1450
rpc_response_timeout = 60
log_file = $LAB/log/neutron-server.log
[database]
connection = $(database neutron)
$(pool)
[agent]
root_helper = sudo
report_interval = 15
[experimental]
# This release calls the agent that, and refuses to start it otherwise.
linuxbridge = true
[oslo_concurrency]
lock_path = $DATA/locks
[oslo_policy]
policy_file = $ETC/neutron/policy.yaml
$(validates neutron)
$(calls nova neutron)
endpoint_type = public
$(calls placement neutron)
[quotas]
quota_network = 100
quota_subnet = 100
quota_port = 200
quota_router = 20
quota_floatingip = 60
quota_security_group = 50
quota_security_group_rule = 500
$(messaging)
TEXT
}

ml2_config() {
  cat <<TEXT
[ml2]
type_drivers = flat,vxlan
tenant_network_types = vxlan
mechanism_drivers = linuxbridge,sky_lab_ports
extension_drivers = port_security
path_mtu = 1450
[ml2_type_flat]
flat_networks = public
[ml2_type_vxlan]
vni_ranges = 1:1000
[securitygroup]
enable_security_group = true
enable_ipset = true
firewall_driver = iptables
[linux_bridge]
bridge_mappings = public:$BRIDGE_PUBLIC
[vxlan]
enable_vxlan = true
# On a bridge, because loopback has no multicast.
local_ip = $TUNNEL.1
l2_population = false
TEXT
}

agents_config() {
  cat <<TEXT
[DEFAULT]
interface_driver = linuxbridge
dhcp_driver = neutron.agent.linux.dhcp.Dnsmasq
enable_isolated_metadata = true
force_metadata = true
dnsmasq_config_file =
metadata_proxy_shared_secret = $METADATA_SECRET
nova_metadata_host = 127.0.0.1
nova_metadata_port = $PORT_METADATA
metadata_workers = 0
metadata_proxy_socket = $LAB/run/metadata_proxy
metadata_proxy_user =
metadata_proxy_group =
agent_mode = legacy
report_interval = 15
TEXT
}

# A module is found by the entry points of an installed package, so this looks like one.
install_port_driver() {
  local package=$LAB/python/sky_lab_ports-1.0.dist-info
  mkdir -p "$package"
  cp "$HERE/sky_lab_ports.py" "$LAB/python/"
  printf 'Metadata-Version: 2.1\nName: sky-lab-ports\nVersion: 1.0\n' > "$package/METADATA"
  printf '[neutron.ml2.mechanism_drivers]\nsky_lab_ports = sky_lab_ports:AgentlessPorts\n' \
    > "$package/entry_points.txt"
}
