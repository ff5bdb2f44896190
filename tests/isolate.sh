#!/usr/bin/env bash
# Runs a command in a rig made by hack/rig.sh: in its own namespaces and cgroups, with a directory named by WHARF_RIG.
#   isolate.sh COMMAND [ARGUMENT...]
set -euo pipefail
hack=$(dirname "$(realpath "$0")")/../hack
# shellcheck source=hack/lib.sh
source "$hack/lib.sh"
# shellcheck source=hack/rig.sh
source "$hack/rig.sh"
(($#)) || usage
isolate "$@"
# Not exec: this shell is the first process and reaps what the command leaves.
"$@"
