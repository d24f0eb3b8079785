#!/usr/bin/env bash
# `lucid launch` with the Python of this checkout or of the active environment. See --help.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/python.sh"
exec "$python" -P -m lucid launch "$@"
