#!/usr/bin/env bash
# `lucid submit` with the Python of slurm/site.env, of the active environment or of this checkout. See --help.
set -euo pipefail
checkout=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} && -r $checkout/slurm/site.env ]]; then
    PYTHON=$(set +eu && source "$checkout/slurm/site.env" >/dev/null && echo "${PYTHON:-}")
fi
source "$checkout/launch/python.sh"
exec "$python" -P -m lucid submit "$@"
