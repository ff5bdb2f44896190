#!/usr/bin/env bash
# Runs a command in a place of its own, which hack/rig.sh makes: namespaces, cgroups, and a directory, named by WHARF_RIG.
#   isolate.sh COMMAND [ARGUMENT...]
set -euo pipefail
hack=$(dirname "$(realpath "$0")")/../hack
# shellcheck source=hack/lib.sh
source "$hack/lib.sh"
# shellcheck source=hack/rig.sh
source "$hack/rig.sh"
(($#)) || usage
isolate "$@"
# Not executed in place of this shell: as the first process it reaps what the command leaves.
"$@"
