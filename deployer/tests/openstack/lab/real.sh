# Real servers: libvirt and qemu in software, with Neutron's bridges, DHCP, routers and metadata. One
# such lab on a machine: Neutron's agents share the names of their firewall chains.

LIBVIRT=$LAB/run/libvirt

libvirt_uri() {
  echo "qemu+unix:///system?socket=$LIBVIRT/libvirt-sock"
}

virsh_lab() {
  clean virsh -c "$(libvirt_uri)" "$@"
}

# Whether this lab has ever had a host of real servers since it was wiped.
was_real() {
  [ -d "$LIBVIRT" ]
}

start_real() {
  mkdir -p "$LIBVIRT" "$DATA/nova/instances"
  # The one carries floating IPs, with this machine as the gateway; tunnels end at the other.
  make_bridge "$BRIDGE_PUBLIC" "$PUBLIC.1/24"
  make_bridge "$BRIDGE_TUNNEL" "$TUNNEL.1/24"
  start_libvirt
  local config=(
    --config-file "$ETC/neutron/neutron.conf" --config-file "$ETC/neutron/ml2.ini"
    --config-file "$ETC/neutron/agents.ini"
  ) agent
  for agent in linuxbridge dhcp l3 metadata; do
    start "neutron-$agent" "neutron-$agent-agent" "${config[@]}" \
      --log-file "$LAB/log/neutron-$agent.log"
  done
  nova_program nova-compute-real compute --config-file "$ETC/nova/nova-real.conf"
  until_holds 120 "the real host reported" nova-compute-real has_hypervisors QEMU 1
  discover_hosts
  until_holds 90 "Neutron's four agents reported" neutron-linuxbridge agents_live
}

make_bridge() {
  ip link show "$1" > /dev/null 2>&1 || ip link add "$1" type bridge
  ip link set "$1" up
  ip -o addr show dev "$1" | grep -q " $2 " || ip addr add "$2" dev "$1"
}

agents_live() {
  local number
  number=$(sql -N -e 'select count(*) from neutron.agents
    where heartbeat_timestamp > utc_timestamp() - interval 40 second')
  [ "$number" -ge 4 ]
}

# A libvirt of our own: in a mount namespace where its folders of the system are folders of the lab.
start_libvirt() {
  local own=$DATA/libvirt
  mkdir -p "$own"/{lib,cache,log,run}
  if [ ! -d "$own/etc" ]; then
    cp -a /etc/libvirt "$own/etc"
    rm -rf "$own/etc/qemu/networks/autostart"
  fi
  cat > "$own/etc/libvirtd.conf" <<TEXT
unix_sock_dir = "$LIBVIRT"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:stderr"
log_filters = "4:rpc"
max_workers = 8
TEXT
  # Neither virtlogd, nor control groups, nor security labels: none of them runs here.
  cat > "$own/etc/qemu.conf" <<TEXT
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = [ ]
namespaces = [ ]
TEXT
  start libvirtd unshare --mount --propagation private sh -ec '
    mount --bind "$1/etc" /etc/libvirt
    mkdir -p /run/libvirt
    for folder in /var/lib /var/cache /var/log /run; do
      mount --bind "$1/${folder##*/}" "$folder/libvirt"
    done
    exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$2/libvirtd.own-pid"
  ' sh "$own" "$LIBVIRT"
  until_holds 30 "libvirt answers" libvirtd virsh_lab list
}

# Ends servers and agents, then removes what they made on this machine. Only what this lab's own
# database names is removed.
stop_real() {
  if ! was_real; then return 0; fi
  stop nova-compute-real 15
  local domain agent
  if alive libvirtd; then
    for domain in $(virsh_lab list --name); do virsh_lab destroy "$domain" || true; done
  fi
  for agent in l3 dhcp metadata linuxbridge; do stop "neutron-$agent" 15 & done
  wait
  end_helpers
  stop libvirtd 10
  remove_devices
  remove_rules
  rm -rf "$LIBVIRT"
}

# What the agents leave in their namespaces: dnsmasq, haproxy, keepers of addresses. They wrote down
# their numbers, and carry the folder of the lab in their command lines.
end_helpers() {
  local file pid
  while read -r file; do
    pid=$(cat "$file" 2> /dev/null || true)
    if [[ "$pid" =~ ^[0-9]+$ ]] && grep -qaF "$LAB" "/proc/$pid/cmdline" 2> /dev/null; then
      kill "$pid" 2> /dev/null || true
    fi
  done < <(find "$DATA/neutron" -type f \( -name pid -o -name '*.pid*' \) 2> /dev/null)
}

remove_devices() {
  local device namespace network router number
  if alive mariadb; then
    for network in $(sql -N -e 'select id from neutron.networks'); do
      ip netns del "qdhcp-$network" 2> /dev/null || true
      ip link del "brq${network:0:11}" 2> /dev/null || true
    done
    for router in $(sql -N -e 'select id from neutron.routers'); do
      ip netns del "qrouter-$router" 2> /dev/null || true
    done
    for number in $(sql -N -e 'select vxlan_vni from neutron.ml2_vxlan_allocations where allocated'); do
      device=vxlan-$number
      # Another lab may have a tunnel of this number, with its own address.
      if ip -d link show "$device" 2> /dev/null | grep -qF " local $TUNNEL.1 "; then
        ip link del "$device"
      fi
    done
  fi
  for device in "$BRIDGE_PUBLIC" "$BRIDGE_TUNNEL"; do ip link del "$device" 2> /dev/null || true; done
}

# The chains of the linuxbridge agent. Their names tell nothing of the lab, so they stay if another
# agent lives that may have made them.
remove_rules() {
  if pgrep -f neutron-linuxbridge-agent > /dev/null; then
    echo "another linuxbridge agent runs on this machine: its firewall rules stay, and ours with them"
    return 0
  fi
  local table chain rule
  for table in filter mangle nat raw; do
    while read -r rule; do
      # Words with blanks are quoted in the listing, as xargs understands it.
      xargs iptables -w -t "$table" <<< "-D ${rule#-A }" 2> /dev/null || true
    done < <(iptables -w -t "$table" -S 2> /dev/null | grep '^-A.*neutron-' || true)
    for chain in $(iptables -w -t "$table" -S 2> /dev/null | awk '/^-N neutron-/ {print $2}'); do
      iptables -w -t "$table" -F "$chain" || true
    done
    for chain in $(iptables -w -t "$table" -S 2> /dev/null | awk '/^-N neutron-/ {print $2}'); do
      iptables -w -t "$table" -X "$chain" || true
    done
  done
  for chain in $(ipset list -n 2> /dev/null | grep -E '^N(IPv4|IPv6)' || true); do
    ipset destroy "$chain" || true
  done
  for table in filter nat; do
    for chain in $(bridge_chains "$table"); do ebtables -t "$table" -F "$chain" || true; done
    while read -r rule; do
      xargs ebtables -t "$table" -D PREROUTING <<< "$rule" 2> /dev/null || true
    done < <(ebtables -t "$table" -L PREROUTING 2> /dev/null | grep -e '-j neutron' || true)
    for chain in $(bridge_chains "$table"); do ebtables -t "$table" -X "$chain" || true; done
  done
}

bridge_chains() {
  ebtables -t "$1" -L 2> /dev/null | awk '/Bridge chain: neutron/ {sub(",", "", $3); print $3}'
}
