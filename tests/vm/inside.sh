#!/bin/bash
# Runs in the machine of hack/vm, as a systemd unit: executes the command in the file `command` as root in the repository,
# and writes the results (status, journal, reports) to the third disk, as a tar archive without a file system.
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/../.." || exit
export HOME=/root TERM=dumb WHARF_PROGRAMS=$PWD/target/dist WHARF_CACHE=$PWD/cache

left=$(mktemp --directory)
bash ./command
echo "$?" >"$left/status"
journalctl --boot --no-pager --output short-precise >"$left/journal"
[[ ! -d target/conformance ]] || cp -r target/conformance "$left/"
tar --create --file /dev/vdc --directory "$left" .
