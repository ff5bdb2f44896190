#!/bin/bash
# Runs in the machine of hack/vm, as its unit: the command in the file `command`, as root would in the repository. What is
# left (status, journal, reports) goes to the third disk, as a tar archive without a file system.
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/../.." || exit
export HOME=/root TERM=dumb WHARF_PROGRAMS=$PWD/target/dist WHARF_CACHE=$PWD/cache

left=$(mktemp --directory)
bash ./command
echo "$?" >"$left/status"
journalctl --boot --no-pager --output short-precise >"$left/journal"
[[ ! -d target/conformance ]] || cp -r target/conformance "$left/"
tar --create --file /dev/vdc --directory "$left" .
