# Sourced by what starts ranks, launch/mpirun.sh and slurm/job.sh, which have a function `fail`: which Python runs them.

find_python() {
    local repository candidate
    if [[ -n ${PYTHON:-} ]]; then
        type -P -- "$PYTHON" || fail "there is no '$PYTHON', which PYTHON names"
        return
    fi
    repository=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
    for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "$repository/.venv/bin/python" python3; do
        if [[ -n $candidate ]] && type -P -- "$candidate"; then return; fi
    done
    fail "there is no Python: make one with 'python3 -m venv .venv', or set PYTHON"
}
