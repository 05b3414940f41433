# Where everything is, and how processes of the lab are started, watched and stopped.

# The folder that holds all there is of a lab.
LAB=${SKY_OPENSTACK_LAB:-$(cd "$HERE/../../../.." && pwd)/target/openstack-lab}
case "$LAB" in /*) ;; *) LAB=$PWD/$LAB ;; esac
ETC=$LAB/etc
DATA=$LAB/data
MODE=$(cat "$LAB/run/mode" 2> /dev/null || echo fake)

# Ten ports in a row, all on loopback.
BASE=${SKY_LAB_PORT:-27000}
PORT_KEYSTONE=$BASE
PORT_GLANCE=$((BASE + 1))
PORT_PLACEMENT=$((BASE + 2))
PORT_NOVA=$((BASE + 3))
PORT_METADATA=$((BASE + 4))
PORT_NEUTRON=$((BASE + 5))
PORT_MARIADB=$((BASE + 6))
PORT_RABBIT=$((BASE + 7))
PORT_RABBIT_DIST=$((BASE + 8))
PORT_EPMD=$((BASE + 9))

# Names and networks that modes real and both make on the machine itself.
NAME=${SKY_LAB_NAME:-skylab}
PUBLIC=${SKY_LAB_PUBLIC:-172.31.242}
TUNNEL=${SKY_LAB_TUNNEL:-172.31.243}
BRIDGE_PUBLIC=br-$NAME-pub
BRIDGE_TUNNEL=br-$NAME-tun

FAKE_HOSTS=${SKY_LAB_FAKE_HOSTS:-3}
REGION=RegionOne
SOCKET=$LAB/run/mysqld.sock

say() {
  echo "[lab $(date +%H:%M:%S)] $*"
}

fail() {
  say "$*" >&2
  exit 1
}

need_root() {
  [ "$(id -u)" = 0 ] || fail "this needs root"
  grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release ||
    fail "this needs Debian 12 (bookworm): the packages and their versions are those of that release"
}

make_folders() {
  mkdir -p "$ETC" "$DATA" "$LAB"/{log,run,cache,image,python}
}

# Passwords of nobody else. They survive `--wipe`, because the saved schema has them in it.
read_secrets() {
  local file=$LAB/cache/secrets
  if [ ! -s "$file" ]; then
    (
      umask 077
      printf 'PASSWORD=%s\nMETADATA_SECRET=%s\n' "$(random_text)" "$(random_text)" > "$file.new"
    )
    mv "$file.new" "$file"
  fi
  . "$file"
}

random_text() {
  od -An -N12 -tx1 /dev/urandom | tr -d ' \n'
}

# step NAME FUNCTION: runs it with its output in a log of its own, and says how long it took.
step() {
  local name=$1 begun=$SECONDS log="$LAB/log/step-$1.log"
  # In a shell of its own with -e: a function called in a condition would go on after failures.
  set +e
  (
    set -e
    "$2"
  ) > "$log" 2>&1 8>&-
  local code=$?
  set -e
  if [ "$code" != 0 ]; then
    tail -n 25 "$log" >&2
    fail "$name failed after $((SECONDS - begun)) s; all of it is in $log"
  fi
  say "$name: $((SECONDS - begun)) s"
}

# The environment of the lab alone: no proxies, no OS_ variables of the caller.
CLEAN=(
  env -i PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin HOME="$DATA" LANG=C.UTF-8
  LC_ALL=C.UTF-8 TMPDIR=/tmp PYTHONPATH="$LAB/python" PYTHONWARNINGS=ignore
  OS_CLIENT_CONFIG_FILE="$ETC/clouds.yaml"
)

clean() {
  "${CLEAN[@]}" "$@"
}

# The time at which a process started, which tells it from a later one with the same number. The name
# of a process may hold blanks and brackets, so fields are counted from the last bracket.
started_at() {
  sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | awk '{print $20}'
}

# Whether the process of this name is the one that was started here.
alive() {
  local pid start
  [ -s "$LAB/run/$1.pid" ] || return 1
  read -r pid start < "$LAB/run/$1.pid"
  [ -n "$start" ] && [ "$(started_at "$pid")" = "$start" ] &&
    [ "$(sed 's/.*) //' "/proc/$pid/stat" | cut -c1)" != Z ]
}

# start NAME PROGRAM...: in the background, as the leader of a session, unless it runs.
start() {
  local name=$1 pid
  shift
  if alive "$name"; then return 0; fi
  # Descriptor 8 is the lock, which must not be held for as long as a service lives.
  setsid nice -n 5 "${CLEAN[@]}" "$@" >> "$LAB/log/$name.log" 2>&1 < /dev/null 8>&- &
  pid=$!
  echo "$pid $(started_at "$pid")" > "$LAB/run/$name.pid"
}

# stop NAME SECONDS: asks it to end, then ends it and what it started.
stop() {
  local name=$1 tries=$((${2:-10} * 10)) pid
  if alive "$name"; then
    read -r pid _ < "$LAB/run/$name.pid"
    kill -TERM "$pid" 2> /dev/null || true
    while alive "$name" && [ "$tries" -gt 0 ]; do
      sleep 0.1
      tries=$((tries - 1))
    done
    # It leads a session, so its number names the group of all that it started.
    kill -KILL -- "-$pid" 2> /dev/null || true
  fi
  rm -f "$LAB/run/$name.pid"
}

known_processes() {
  find "$LAB/run" -maxdepth 1 -name '*.pid' -printf '%f\n' 2> /dev/null | sed 's/\.pid$//' | sort
}

# Stops everything but what is named, side by side.
stop_all_but() {
  local name
  for name in $(known_processes); do
    case " $* " in *" $name "*) ;; *) stop "$name" 15 & ;; esac
  done
  wait
}

# until_holds SECONDS WHAT PROCESS COMMAND...: waits until the command succeeds; gives up early if the
# process has ended.
until_holds() {
  local within=$1 what=$2 process=$3 begun=$SECONDS
  shift 3
  until "$@" > /dev/null 2>&1; do
    if [ -n "$process" ] && ! alive "$process"; then
      tail -n 30 "$LAB/log/$process.log"
      echo "$process has ended"
      return 1
    fi
    if [ $((SECONDS - begun)) -gt "$within" ]; then
      echo "still not after $within s: $what"
      return 1
    fi
    sleep 0.2
  done
}

port_is_open() {
  (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null
}

# Whether something answers there with anything but a failure of its own.
answers() {
  local status
  status=$(curl -s --noproxy '*' -o /dev/null -m 5 -w '%{http_code}' "$1") || return 1
  [ "$status" -lt 500 ]
}

sql() {
  mariadb --no-defaults --user=root --socket="$SOCKET" "$@"
}

# A program of Nova that has no package of its own here.
nova_program() {
  local name=$1 module=$2
  shift 2
  start "$name" python3 -c \
    "import sys; sys.argv[0] = '$name'; from nova.cmd.$module import main; main()" "$@"
}
