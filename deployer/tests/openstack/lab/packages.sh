# What is installed. Only libraries and clients: the packages of the services bring init scripts and
# questions, and that of nova-compute brings LXC, libvirt and firmware even for a driver of nothing.

PACKAGES_FAKE=(
  python3-keystone glance-common placement-common nova-common neutron-common python3-openstackclient
  uwsgi-plugin-python3 rabbitmq-server mariadb-server python3-pymysql curl iproute2 openssh-client
)
PACKAGES_REAL=(
  # Pinned to the release: with a newer one from elsewhere apt would remove it for qemu-system-x86.
  qemu-utils/bookworm
  qemu-system-x86 libvirt-daemon-system libvirt-clients python3-libvirt ipxe-qemu seabios genisoimage
  neutron-linuxbridge-agent neutron-dhcp-agent neutron-l3-agent neutron-metadata-agent ebtables
  conntrack bridge-utils iptables mmdebstrap e2fsprogs
)

is_installed() {
  dpkg-query -W -f='${Status}' "${1%%/*}" 2> /dev/null | grep -q 'ok installed'
}

install_packages() {
  local wanted=("${PACKAGES_FAKE[@]}") package missing=no
  if [ "$MODE" != fake ]; then wanted+=("${PACKAGES_REAL[@]}"); fi
  for package in "${wanted[@]}"; do is_installed "$package" || missing=yes; done
  if [ "$missing" = no ]; then return 0; fi
  keep_services_still
  # The whole list, so that the release of qemu-utils is decided together with the rest. Waits for
  # another apt, such as that of a script which installs other things meanwhile.
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive nice apt-get install -y -q --no-install-recommends --allow-downgrades \
    -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-unsafe-io \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "${wanted[@]}"
}

# MariaDB, RabbitMQ and libvirt must not start by themselves when they are installed. What policy the
# machine had is there again afterwards.
keep_services_still() {
  POLICY=/usr/sbin/policy-rc.d
  SAVED=$LAB/run/policy-rc.d.saved
  if [ -e "$POLICY" ] && [ ! -e "$SAVED" ]; then cp -p "$POLICY" "$SAVED"; fi
  printf '#!/bin/sh\nexit 101\n' > "$POLICY"
  chmod 755 "$POLICY"
  trap 'if [ -e "$SAVED" ]; then mv "$SAVED" "$POLICY"; else rm -f "$POLICY"; fi' EXIT
}
