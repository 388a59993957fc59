#!/bin/sh
# Starts both units as they are under a systemd of its own, in namespaces of its own, and checks that what they forbid takes
# nothing from the agent: it must hear every connection, name its process, and reach the server by all that it may use.
#
#   deploy/try-units.sh [FOLDER WITH THE PROGRAMS]
#
# Takes root, a cgroup v2 and systemd; without one of them it says so and is good. Nothing outside is changed.
set -eu
units=$(cd "$(dirname "$0")/systemd" && pwd)

# Boots, as the first process of the new namespaces: $2 is a folder of the outside, with the programs in it.
if [ "${1:-}" = --boot ]; then
    place=$2
    mount --make-rprivate /
    mount -t tmpfs none "$place/memory"
    mkdir "$place/memory/upper" "$place/memory/work"
    mount -t overlay overlay -o "lowerdir=/etc,upperdir=$place/memory/upper,workdir=$place/memory/work" /etc
    mount -t overlay overlay -o "lowerdir=$place/bin:/usr/bin" /usr/bin
    for folder in /run /var/lib; do mount -t tmpfs -o mode=755 none "$folder"; done
    if mountpoint -q /sys/fs/cgroup; then umount -R /sys/fs/cgroup; fi
    mount -t cgroup2 none /sys/fs/cgroup
    mount -t proc proc /proc
    # A first process sets some numbers of the kernel, which are everybody's.
    mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro /proc/sys
    [ -e /sys/kernel/tracing/events ] || mount -t tracefs none /sys/kernel/tracing
    # As on a host: what is mounted later reaches the units.
    mount --make-rshared /
    rm -rf /etc/systemd/system
    mkdir -p /etc/systemd/system /etc/systemd/system-generators
    for generator in /lib/systemd/system-generators/*; do
        ln -sf /dev/null "/etc/systemd/system-generators/${generator##*/}"
    done
    echo 'fleetsock:x:990:990::/nonexistent:/usr/sbin/nologin' >>/etc/passwd
    echo 'fleetsock:x:990:' >>/etc/group
    echo 0123456789abcdef0123456789abcdef >/etc/machine-id
    printf '[Unit]\nDefaultDependencies=no\n' >/etc/systemd/system/try.target
    for side in agent server; do
        cp "$place/units/fleetsock-$side.service" /etc/systemd/system/
        mkdir "/etc/systemd/system/fleetsock-$side.service.d"
        # Nothing of a whole system is started, and there is no journal.
        printf '[Unit]\nDefaultDependencies=no\n[Service]\nStandardOutput=append:/run/%s.log\nStandardError=append:/run/%s.log\n' \
            "$side" "$side" >"/etc/systemd/system/fleetsock-$side.service.d/try.conf"
    done
    exec env -i container=try PATH="$PATH" /lib/systemd/systemd --system --unit=try.target --show-status=0
fi

skip() {
    echo "skipped: $*" >&2
    exit 0
}
programs=${1:-${CARGO_TARGET_DIR:-target}/debug}
[ "$(id -u)" = 0 ] || skip "a systemd of its own takes root"
for need in /lib/systemd/systemd unshare nsenter python3; do
    command -v "$need" >/dev/null || skip "$need is not there"
done
cgroup=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$cgroup" ] || skip "there is no cgroup v2"
mkdir "$cgroup/fleetsock-try-$$" 2>/dev/null || skip "cgroups cannot be made here"
cgroup=$cgroup/fleetsock-try-$$

place=$(mktemp -d)
end() {
    [ -z "${first:-}" ] || kill -9 "$first" 2>/dev/null || :
    wait 2>/dev/null || :
    sleep 1
    find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null || :
    rm -rf "$place"
}
trap end EXIT
mkdir "$place/bin" "$place/units" "$place/memory"
chmod 755 "$place"
cp "$programs/fleetsock-agent" "$programs/fleetsock-server" "$programs/fleetctl" "$place/bin/"
cp "$units"/*.service "$place/units/"
sh -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' sh "$cgroup" \
    unshare --mount --net --cgroup --uts --ipc --pid --fork --kill-child sh "$0" --boot "$place" >"$place/log" 2>&1 &
outer=$!

# Until a command is good, for a minute.
until_good() {
    left=120
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        if [ $left = 0 ] || ! kill -0 $outer 2>/dev/null; then
            echo "never: $*" >&2
            cat "$place/log" >&2
            [ -z "${first:-}" ] || inside cat /run/server.log /run/agent.log >&2 || :
            exit 1
        fi
        sleep 0.5
    done
}
inside() { nsenter -t "$first" -m -p -u -i -n -C -- "$@"; }
as_fleetsock() { inside setpriv --reuid 990 --regid 990 --clear-groups env HOME=/run "XDG_CONFIG_HOME=/run/contexts" "$@"; }
find_first() { first=$(pgrep -P $outer) && [ -S "/proc/$first/root/run/systemd/private" ]; }
until_good find_first

state=/var/lib/fleetsock
inside install -d -m 755 $state
for folder in $state/server $state/agent /run/contexts; do inside install -d -o 990 -g 990 -m 700 "$folder"; done
as_fleetsock fleetsock-server init --listen 127.0.0.1:5290 --address localhost:5290 >/dev/null
inside systemctl start fleetsock-server
until_good as_fleetsock fleetctl login --local $state/server/admin.sock
join=$(as_fleetsock fleetctl tokens create 2>/dev/null | grep -o 'fsj1_[A-Za-z0-9_-]*' | head -n 1)
as_fleetsock fleetsock-agent enroll --join "$join" >/dev/null
inside systemctl start fleetsock-agent
is_observed() { as_fleetsock fleetctl hosts -o csv | grep -q ',online,'; }
until_good is_observed

# Fifty connections that no walk sees, each with two ends.
inside python3 -c "
import socket
listener = socket.create_server(('127.0.0.1', 45999))
for _ in range(50):
    with socket.create_connection(('127.0.0.1', 45999)), listener.accept()[0]:
        pass
"
ends() { as_fleetsock fleetctl sessions --port 45999 --since 1h --columns process --no-headers 2>/dev/null | grep -c '^python3'; }
all_ends() { [ "$(ends)" = 100 ]; }
owned() { as_fleetsock fleetctl ports --port 5290 --columns process,user,where --no-headers | grep -q '^fleetsock.* fleetsock  *fleetsock-server.service'; }
until_good owned
# Without its tracepoints a kernel has no events, whatever a unit allows.
if inside test -e /sys/kernel/tracing/events/sock/inet_sock_set_state; then
    until_good all_ends
else
    echo "this kernel tells no events: short connections are not looked for" >&2
fi
inside grep -o '"tier":"[^"]*","tier_reason":"[^"]*"' /run/agent.log
echo "fleetsock-agent.service: $(ends) ends of 50 short connections, each with its process"

# Root prepares trace buffers for the agent, which may only read them. It can do so here, and then does not: what they hold are
# numbers of processes of the first pid namespace, which is looked at last. Made anew when it was killed, and gone with it.
buffers=/sys/kernel/tracing/instances/fleetsock-prepared-service
made_anew() { [ "$(inside stat -c %i $buffers)" != "$1" ]; }
if inside test -e $buffers; then
    inside grep -q 'listening to events by trace buffers\|trace buffers are not read","error":"the agent is not in the first pid' \
        /run/agent.log || { echo "the agent cannot read what was prepared for it" >&2; inside cat /run/agent.log >&2; exit 1; }
    agent=$(inside systemctl show -P MainPID fleetsock-agent)
    inside awk '$5 == "/sys/kernel/tracing" { flags = $6 } END { exit flags !~ /^ro(,|$)/ }' "/proc/$agent/mountinfo" || {
        echo "tracefs is not read-only for the agent" >&2
        exit 1
    }
    inode=$(inside stat -c %i $buffers)
    inside systemctl kill -s KILL fleetsock-agent
    until_good made_anew "$inode"
    until_good inside systemctl is-active fleetsock-agent
    echo "fleetsock-agent.service: reads the trace buffers that were prepared for it"
fi
inside systemctl stop fleetsock-agent fleetsock-server
if inside test -e $buffers; then echo "prepared trace buffers are left" >&2; exit 1; fi
for side in agent server; do
    [ "$(inside systemctl show -P Result fleetsock-$side)" = success ] || { echo "fleetsock-$side did not stop well" >&2; exit 1; }
done
echo "both units start, work and stop"
