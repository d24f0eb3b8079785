#!/usr/bin/env bash
# Starts a training run on several ranks with the MPI of this Python environment: as many threads per rank as there
# are cores, ranks bound to cores, one failing rank ends all. Its exit code is that of the run. See --help.
set -euo pipefail

fail() {
    echo "mpirun.sh: $*" >&2
    exit 2
}

source "$(dirname -- "${BASH_SOURCE[0]}")/python.sh"
python=$(find_python)
exec "$python" -m lucid.launch.mpirun "$@"
