#!/bin/sh
# Holds the systemd units against what systemd itself thinks of them, without running them: the exposure level that
# `systemd-analyze security --offline` gives (10 is worst) may not be higher than the number beside each unit.
set -eu
units=$(cd "$(dirname "$0")/systemd" && pwd)

if ! command -v systemd-analyze >/dev/null; then
    echo "skipped: systemd-analyze is not there (Debian: apt-get install systemd)" >&2
    exit 0
fi
# --offline came with systemd 250, and some containers forbid what systemd-analyze asks the kernel for: a unit that is
# good beyond doubt tells that from units of ours that are broken.
probe=$(mktemp -d)
trap 'rm -r "$probe"' EXIT
printf '[Service]\nExecStart=/bin/true\n' >"$probe/probe.service"
if ! told=$(systemd-analyze security --offline=true "$probe/probe.service" 2>&1); then
    echo "skipped: systemd-analyze cannot judge units here: $(echo "$told" | tail -n 1)" >&2
    exit 0
fi

failed=0
check() {
    unit=$1 most=$2
    systemd-analyze verify --recursive-errors=no --man=no "$units/$unit" 2>&1 |
        grep -v 'is not executable: No such file or directory' | grep "$unit" && failed=1
    # --threshold takes tenths and makes the exit code; the line with the number is for the reader.
    if told=$(systemd-analyze security --offline=true --threshold="$most" "$units/$unit" 2>&1); then
        verdict=good
    else
        verdict="worse than $most tenths" failed=1
    fi
    echo "$told" | sed -n 's/^→ //p' | tr '\n' ' '
    echo "($verdict)"
}

# What keeps them from being lower is in deploy/README.md.
check fleetsock-agent.service 20
check fleetsock-server.service 13
exit $failed
