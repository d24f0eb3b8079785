# Sourced by what starts ranks, launch/mpirun.sh and slurm/job.sh: which Python runs them, and what they find in their
# environment. Who sources it has a function `fail`.

find_python() {
    local repository candidate
    if [[ -n ${PYTHON:-} ]]; then
        command -v "$PYTHON" || fail "there is no '$PYTHON', which PYTHON names"
        return
    fi
    repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "$repository/.venv/bin/python" python3; do
        if [[ -n $candidate ]] && command -v "$candidate"; then return; fi
    done
    fail "there is no Python: make one with 'python3 -m venv .venv', or set PYTHON"
}

# Gives each rank $1 threads. `variables` lists what has to reach the ranks.
export_variables() {
    local variable
    variables=(OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS NUMBA_NUM_THREADS)
    for variable in "${variables[@]}"; do export "$variable=${!variable:-$1}"; done

    # A step frees and takes the same large arrays again: let glibc keep them, rather than fetch fresh pages each time.
    export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296
    variables+=(MALLOC_MMAP_THRESHOLD_ MALLOC_TRIM_THRESHOLD_)
}
