# The image of real guests: Debian with cloud-init and Docker as one file system without partitions,
# booted by its kernel and initrd directly. Small and quick, because guests run in software.

IMAGE=$LAB/image

GUEST_PACKAGES=(
  linux-image-cloud-amd64 initramfs-tools lz4 systemd-sysv systemd-resolved udev dbus cloud-init
  docker.io iptables iproute2 iputils-ping isc-dhcp-client openssh-server curl ca-certificates
  e2fsprogs sudo procps netcat-openbsd
)
# What would only cost time at the boot of a guest that lives for minutes.
GUEST_WITHOUT=(
  apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer
  e2scrub_reap.service systemd-timesyncd.service getty@tty1.service cloud-init-hotplugd.socket
  ldconfig.service systemd-journal-catalog-update.service systemd-update-done.service
  systemd-pstore.service systemd-binfmt.service man-db.timer systemd-sysupdate.timer
)

build_image() {
  if [ -s "$IMAGE/debian.qcow2" ] && [ "${1:-}" != --again ]; then
    say "it is there: $IMAGE/debian.qcow2; --again makes it anew"
    return 0
  fi
  need_root
  make_folders
  MODE=real
  step packages install_packages
  step image make_image
  say "made $IMAGE/debian.qcow2; the next \`lab up real\` or \`lab up both\` uploads it"
}

make_image() {
  local work disk
  work=$(mktemp -d -p "$IMAGE")
  # Named now: the variable is gone when the trap is run.
  trap "rm -rf $(printf %q "$work")" EXIT
  guest_files "$work/files"
  bootstrap "$work/files" "$work/root.tar"
  mkdir "$work/root"
  tar -C "$work/root" --numeric-owner -xf "$work/root.tar"
  rm "$work/root.tar"
  disk=$work/disk.raw
  truncate -s "${SKY_LAB_IMAGE_SIZE:-2500M}" "$disk"
  # The guest grows its file system with its own tools, which may be older than those here: without
  # what they do not know. Old tools here do not know these names either.
  mke2fs -q -F -t ext4 -L rootfs -m 1 -O '^metadata_csum_seed,^orphan_file' -d "$work/root" "$disk" ||
    mke2fs -q -F -t ext4 -L rootfs -m 1 -d "$work/root" "$disk"
  cp "$work"/root/boot/vmlinuz-* "$IMAGE/vmlinuz"
  cp "$work"/root/boot/initrd.img-* "$IMAGE/initrd.img"
  nice qemu-img convert -f raw -O qcow2 "$disk" "$work/debian.qcow2"
  mv "$work/debian.qcow2" "$IMAGE/"
}

# Files of the guest, laid out as in its root.
guest_files() {
  local etc=$1/etc bridge='"bridge": "none", "iptables": false, "ip6tables": false,'
  mkdir -p "$etc"/{initramfs-tools/conf.d,cloud/cloud.cfg.d,docker}
  printf 'MODULES=list\nCOMPRESS=lz4\nFSTYPE=ext4\n' > "$etc/initramfs-tools/conf.d/lab"
  # cloud-init looks for a configuration drive before udev has loaded what reads one, so that is in
  # the initrd as well.
  printf '%s\n' virtio_pci virtio_blk virtio_net ext4 crc32c_generic virtio_scsi sr_mod isofs \
    > "$1/modules"
  # Agents use the network of the guest, so Docker needs none: it starts sooner without.
  if [ -n "${SKY_LAB_DOCKER_BRIDGE:-}" ]; then bridge=; fi
  echo "{$bridge \"storage-driver\": \"overlay2\", \"userland-proxy\": false}" > "$etc/docker/daemon.json"
  cat > "$etc/cloud/cloud.cfg.d/90_lab.cfg" <<'TEXT'
datasource_list: [ConfigDrive, OpenStack, None]
datasource: {OpenStack: {max_wait: 60, timeout: 10, retries: 5}}
locale: C.UTF-8
manage_etc_hosts: true
ssh_genkeytypes: [ed25519]
ssh_deletekeys: true
no_ssh_fingerprints: true
cloud_init_modules: [seed_random, bootcmd, write-files, growpart, resizefs, set_hostname, update_hostname, update_etc_hosts, users-groups, ssh]
cloud_config_modules: [set-passwords, ntp, timezone, runcmd]
cloud_final_modules: [scripts-vendor, scripts-per-once, scripts-per-boot, scripts-per-instance, scripts-user, ssh-authkey-fingerprints, final-message, power-state-change]
system_info:
  default_user: {name: debian, lock_passwd: true, sudo: ["ALL=(ALL) NOPASSWD:ALL"], shell: /bin/bash}
  network: {renderers: [networkd]}
TEXT
}

# bootstrap FILES TAR: the whole system of the guest as an archive.
bootstrap() {
  local files=$1 packages without part excluded=()
  packages=$(IFS=, && echo "${GUEST_PACKAGES[*]}")
  without=${GUEST_WITHOUT[*]}
  for part in doc man locale info; do
    excluded+=("--dpkgopt=path-exclude=/usr/share/$part/*")
  done
  nice mmdebstrap --mode=root --variant=minbase --include="$packages" \
    --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io "${excluded[@]}" \
    --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"' \
    --essential-hook="copy-in $files/etc/initramfs-tools /etc" \
    --customize-hook="copy-in $files/etc/cloud $files/etc/docker /etc" \
    --customize-hook="cat $files/modules >> \"\$1/etc/initramfs-tools/modules\"" \
    --customize-hook='chroot "$1" update-initramfs -u -k all' \
    --customize-hook='echo "/dev/vda / ext4 noatime,errors=remount-ro 0 1" > "$1/etc/fstab"' \
    --customize-hook='echo debian > "$1/etc/hostname"; : > "$1/etc/machine-id"' \
    --customize-hook='chroot "$1" systemctl enable systemd-networkd systemd-resolved ssh docker' \
    --customize-hook="for unit in $without; do chroot \"\$1\" systemctl mask \$unit || true; done" \
    --customize-hook='ln -sf /run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"' \
    --customize-hook='rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*' \
    bookworm "$2"
}
