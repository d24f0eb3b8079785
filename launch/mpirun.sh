#!/usr/bin/env bash
# Starts a training run on several ranks with the MPI of this Python environment: as many threads per rank as there
# are cores, ranks bound to cores, one failing rank ends all. Its exit code is that of the run.
set -euo pipefail

usage() {
    cat <<'END'
Usage: launch/mpirun.sh [-n N] [--hostfile F] [--gpus] [--dry-run]
                        [--restarts N [--backoff SECONDS] [--min-ranks K]] CONFIG [key=value ...]
       launch/mpirun.sh [-n N] [--hostfile F] [--gpus] [--dry-run] --doctor [--folder DIR]

Trains as CONFIG (YAML) says, on N ranks; key=value overrides a setting, as in `lucid train`. With --doctor: says what
these ranks, started in the same way, can do (`lucid doctor`).

  -n N          ranks in all (default: one per physical core that may be used, or with --gpus per GPU, on every host)
  --hostfile F  hosts, one name per line; they see the same files and have as many cores and GPUs as this one. Each has
                to let you in without a password, by ssh or by what $HYDRA_LAUNCHER_EXEC names
  --gpus        give every rank of a host a GPU of its own, and cores near it
  --dry-run     print the command and the threads per rank, and do not run it
  --restarts N  start again from the newest checkpoint, at most N times, after a fault or when the ranks stopped and
                saved (exit code 75); not after a mistake in the settings (2) or Ctrl-C, nor when there is no newer
                checkpoint than after the failure before
  --backoff S   seconds before the first restart (default: 2), twice as many before each further one, at most 60
  --min-ranks K with --hostfile: hosts that do not answer before a restart are left out, as long as the settings allow
                K ranks or more on the rest (default: as many as at the start); the loss curve stays the same

Signals are passed on to the ranks: after SIGTERM and SIGUSR1 they save and end with 75, after Ctrl-C with 130. Either
way that is the end, with --restarts too: who sends them, such as a scheduler before its time limit, starts again.

Threads per rank are cores / ranks on a host, unless OMP_NUM_THREADS is set. Ranks that together take all cores are bound
to their share of them, one NUMA domain after the other. Python is $PYTHON, that of the active
environment or of .venv, or python3; mpiexec is the one beside it, or the one in the PATH if mpi4py loads its MPI.

Example: launch/mpirun.sh -n 2 configs/small_cpu.yaml train.global_batch=64
END
}

fail() {
    echo "mpirun.sh: $*" >&2
    exit 2
}

source "$(dirname "${BASH_SOURCE[0]}")/ranks.sh"

find_mpiexec() {
    local beside
    beside=$(dirname "$python")/mpiexec
    if [[ -x $beside ]]; then echo "$beside"; return; fi
    command -v mpiexec || fail "there is no mpiexec beside $python or in the PATH: $python -m pip install mpich"
}

mpi_family() {
    case $1 in
        *"Open MPI"* | *OpenRTE* | *PRRTE*) echo "Open MPI" ;;
        *HYDRA* | *MPICH* | *"Intel(R) MPI"* | *MVAPICH*) echo "MPICH" ;;
        *) echo "an unknown MPI" ;;
    esac
}

ranks="" hostfile="" dry_run="" placement=() command=train supervision=()
while (($#)); do
    case $1 in
        -h | --help) usage; exit ;;
        -n) ranks=${2:-}; [[ $ranks =~ ^[1-9][0-9]{0,6}$ ]] || fail "-n takes the number of ranks, got '$ranks'"; shift 2 ;;
        --hostfile) hostfile=${2:-}; [[ -r $hostfile && ! -d $hostfile ]] || fail "the hostfile '$hostfile' cannot be read"; shift 2 ;;
        --gpus) placement=(--gpus); shift ;;
        --dry-run) dry_run=yes; shift ;;
        --doctor) command=doctor; shift; break ;;
        --restarts | --backoff | --min-ranks)
            [[ ${2:-} =~ ^[0-9]+$ ]] || fail "$1 takes a whole number, got '${2:-}'"
            supervision+=("$1" "$2"); shift 2 ;;
        -*) fail "option $1 is not known, see --help" ;;
        *) break ;;
    esac
done
if [[ $command == train ]]; then
    (($#)) || { usage >&2; fail "CONFIG is missing"; }
    [[ -r $1 && ! -d $1 ]] || fail "the configuration '$1' cannot be read"
fi
case " ${supervision[*]} " in
    "  " | *" --restarts "*) ;;
    *) fail "${supervision[0]} goes with --restarts" ;;
esac
if ((${#supervision[@]})) && [[ $command == doctor ]]; then fail "--doctor is not started again: leave out --restarts"; fi

python=$(find_python)
mpiexec=$(find_mpiexec)
launcher=$(mpi_family "$("$mpiexec" --version 2>&1 || true)")
report=$("$python" -m mpi4py --mpi-lib-version 2>&1 | tr -d '\0') || # Open MPI ends its version with a null byte
    fail "$python cannot load MPI (${report##*$'\n'}): $python -m pip install mpi4py mpich"
library=$(mpi_family "$report")
[[ $launcher == "$library" ]] || fail "$mpiexec is of $launcher, but mpi4py in $python loads $library:" \
    "put the mpiexec of that first in the PATH, or $python -m pip install mpich"

report=$("$python" -c "
from lucid.distributed import topology
print(topology.available_cores())" 2>&1) || fail "$python cannot import lucid: ${report##*$'\n'}"
cores=${report##*$'\n'}

launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
hosts=("this machine")
if [[ -n $hostfile ]]; then
    names=$("$python" -S "$launch/hostfile.py" "$hostfile") || exit
    mapfile -t hosts <<<"$names"
fi
places=$cores
if ((${#placement[@]})); then places=$("$python" -S "$launch/placement.py"); fi
((ranks + places)) || fail "--gpus: this machine has no GPU for a rank: say how many ranks there are to be (-n)"
: "${ranks:=$((${#hosts[@]} * places))}"

if ((${#supervision[@]})) && [[ -z $dry_run ]]; then
    export PYTHON=$python
    exec "$python" "$launch/supervise.py" "${supervision[@]}" \
        -n "$ranks" ${hostfile:+--hostfile "$hostfile"} ${placement[@]+"${placement[@]}"} "$@"
fi

ranks_per_host=$(((ranks + ${#hosts[@]} - 1) / ${#hosts[@]}))
if ((ranks_per_host > cores)); then
    echo "mpirun.sh: warning: $ranks_per_host ranks on ${hosts[0]} share $cores cores and take turns: start at most" \
        "$((${#hosts[@]} * cores)) (-n)" >&2
fi
threads=${OMP_NUM_THREADS:-$((cores > ranks_per_host ? cores / ranks_per_host : 1))}
[[ $threads =~ ^[1-9][0-9]{0,6}$ ]] || fail "OMP_NUM_THREADS takes the number of threads per rank, got '$threads'"
export_variables "$threads"

# The ranks write into the launcher's pipe: these tell them (rich) that a terminal is at its end, for the live line.
if [[ -t 1 && -z $dry_run ]]; then
    export TTY_COMPATIBLE=1 TTY_INTERACTIVE=1 COLUMNS=${COLUMNS:-$(tput cols 2>/dev/null </dev/tty || echo 120)}
    variables+=(TTY_COMPATIBLE TTY_INTERACTIVE COLUMNS)
fi

# Only ranks that take all cores are bound: two runs side by side would be bound to the same first ones. The keeper binds
# them, as launchers do not heed the cores that a scheduler or taskset has left us.
if ((${#placement[@]} == 0 && ranks_per_host * threads == cores)); then placement=(--bind); fi

line=("$mpiexec" -n "$ranks")
if [[ $launcher == MPICH ]]; then
    line+=(${hostfile:+-f "$hostfile" -ppn "$ranks_per_host"})
else
    line+=(--oversubscribe ${hostfile:+--hostfile "$hostfile"} --map-by "ppr:$ranks_per_host:node" --bind-to none)
    for variable in "${variables[@]}" PYTHONPATH UCX_NET_DEVICES; do
        if [[ -n ${!variable:-} ]]; then line+=(-x "$variable"); fi
    done
    if ((EUID == 0)); then line+=(--allow-run-as-root); fi
    if [[ -n ${HYDRA_LAUNCHER_EXEC:-} ]]; then # by its names in versions 5 and 4
        export PRTE_MCA_plm_ssh_agent=$HYDRA_LAUNCHER_EXEC OMPI_MCA_plm_rsh_agent=$HYDRA_LAUNCHER_EXEC
    fi
fi
# Of each rank's end the keeper tells what the rank itself cannot. -S: it is quicker there without installed packages.
line+=("$python" -S "$launch/keeper.py" ${placement[@]+"${placement[@]}"} -m mpi4py -m lucid "$command" "$@")

if [[ -n $dry_run ]]; then
    echo "threads per rank: $threads"
    echo "${line[@]@Q}"
else
    if [[ -n $hostfile ]]; then "$python" -S "$launch/hostfile.py" "$hostfile" "$python" >/dev/null || exit; fi
    exec "${line[@]}"
fi
