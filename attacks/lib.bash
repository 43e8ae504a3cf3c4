# What the scripts share: sourced before each of them.
set -euo pipefail

# Runs a command that must fail with an error of its own, and not by a signal.
refused() {
    local status=0
    "$@" || status=$?
    [[ $status == 1 || $status == 2 ]]
}
