# The templates in this folder and `lucid submit` source this file: it reads site.env, and runs the ranks of a job.

# Set this trap first: a signal before it would end the job.
preempted=""
trap 'preempted=yes' USR1

set -euo pipefail
folder=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

fail() {
    echo "slurm: $*" >&2
    exit 2
}

# Bash arithmetic runs commands in the value of a variable (`x[$(command)]`): accept only numbers.
for name in SLURM_JOB_NUM_NODES SLURM_NTASKS_PER_NODE SLURM_CPUS_PER_TASK SLURM_GPUS_ON_NODE SLURM_RESTART_COUNT \
    SLURM_ARRAY_TASK_ID LUCID_RANKS_PER_NODE; do
    [[ ${!name:-0} =~ ^[0-9]+$ ]] || fail "$name is '${!name}', which is not a number"
done

# Of a range of nodes, SLURM takes no more than the tasks that it starts on the fewest of them. So `lucid submit` asks
# for one task on each node, with the cores of all its ranks.
: "${SLURM_NTASKS_PER_NODE:=1}"
if [[ -n ${LUCID_RANKS_PER_NODE:-} ]]; then
    SLURM_NTASKS_PER_NODE=$LUCID_RANKS_PER_NODE
    SLURM_CPUS_PER_TASK=$((SLURM_CPUS_PER_TASK / LUCID_RANKS_PER_NODE))
    export SLURM_TASKS_PER_NODE="$LUCID_RANKS_PER_NODE(x$SLURM_JOB_NUM_NODES)" # for mpiexec
fi

site=$folder/site.env
[[ -f $site && -r $site ]] || fail "$site is missing: copy site.env.example to it, and fill it in"
set +eu # site.env is the user's script
source "$site"
read -rd '' -a modules <<<"${MODULES:-}"
for module in "${modules[@]}"; do
    module load "$module" || fail "module load $module has failed: MODULES in $site is '$MODULES'"
done
set -eu
[[ ${LAUNCHER:-} =~ ^(srun|mpiexec|mpirun)( |$) ]] ||
    fail "LAUNCHER in $site is '${LAUNCHER:-}': it has to begin with srun or mpiexec"

PYTHON=${PYTHON:-${LUCID_PYTHON:-python3}}
python=$(type -P -- "$PYTHON") || fail "there is no '$PYTHON': set PYTHON in $site"
PATH=$(dirname "$python"):$PATH # mpiexec of this Python comes first

# How many ranks run_ranks starts.
ranks=$((${SLURM_JOB_NUM_NODES:-1} * SLURM_NTASKS_PER_NODE))

# To launchers, a colon ends the command, and the words after it are another command.
refuse_colons() {
    local argument
    for argument; do
        [[ $argument != : ]] || fail "the argument ':' is no setting: to launchers it begins another command; drop it"
    done
}

# Runs `lucid ARGUMENTS` on the ranks of the job, in place of this shell.
run_ranks() {
    refuse_colons "$@"
    # The threads are those that SLURM was asked for, even if the login shell had set others.
    export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK OPENBLAS_NUM_THREADS=$SLURM_CPUS_PER_TASK
    export MKL_NUM_THREADS=$SLURM_CPUS_PER_TASK NUMBA_NUM_THREADS=$SLURM_CPUS_PER_TASK
    # Each step frees and allocates the same large arrays: glibc keeps them (as in lucid/launch/mpirun.py).
    export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296
    local launcher
    read -ra launcher <<<"$LAUNCHER"
    if [[ $launcher == srun ]]; then
        # Since SLURM 22.05 srun no longer takes the number of cores from the job. One failing rank ends all ranks.
        launcher+=(--nodes="$(nodes_in_use)" --ntasks-per-node="$SLURM_NTASKS_PER_NODE")
        launcher+=(--cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1)
    fi
    if [[ $LAUNCHER == *pmi2* ]]; then
        # MPICH 5.0 over UCX appends kilobytes of memory to each address, and SLURM refuses lines of more than 1,023
        # characters: starts failed now and then.
        export MPIR_CVAR_CH4_NETMOD=${MPIR_CVAR_CH4_NETMOD:-ofi}
    fi
    export LUCID_COMMAND= # this script says how to resume
    # Open MPI gives ranks a terminal, but the job's output is a file: rich must not draw a live line.
    export TTY_COMPATIBLE=0 TTY_INTERACTIVE=0
    if [[ -n ${INTERFACE:-} ]]; then
        export HYDRA_IFACE=$INTERFACE UCX_NET_DEVICES=$INTERFACE FI_TCP_IFACE=$INTERFACE NCCL_SOCKET_IFNAME=$INTERFACE
        export OMPI_MCA_btl_tcp_if_include=$INTERFACE OMPI_MCA_oob_tcp_if_include=$INTERFACE
    fi
    if [[ -n ${SCRATCH:-} ]]; then
        export TMPDIR=$SCRATCH NUMBA_CACHE_DIR=$SCRATCH/lucid-kernels
    fi
    exec "${launcher[@]}" -n "$ranks" \
        "$python" -P -m lucid.launch.rank_parent -P -m mpi4py -m lucid "$@"
}

# If site.env says so, runs `lucid doctor` on all ranks before the first start of a job, and before each start on a range
# of nodes, of which a job gets other ones each time. The job ends if the doctor finds an error: so broken nodes show in
# half a minute, and not the next morning.
check_nodes() {
    [[ -n ${CHECK_NODES:-} ]] || return 0
    if [[ ${SLURM_RESTART_COUNT:-0} == 0 || -n ${LUCID_RANKS_PER_NODE:-} ]]; then
        (run_ranks doctor) || fail "lucid doctor has found errors on $SLURM_JOB_NODELIST, and training was not started"
    fi
}

# The first nodes of the job are filled.
nodes_in_use() {
    echo $(((ranks + SLURM_NTASKS_PER_NODE - 1) / SLURM_NTASKS_PER_NODE))
}

# Lowers `ranks` to the most that these settings allow. The job may have got any number of nodes (--nodes=1-32).
use_ranks_that_serve() {
    local most=$ranks
    ((most > 1)) || return 0
    ranks=$("$python" -P -m lucid plan "$@" --most-ranks "$most")
    if ((ranks < most)); then
        echo "slurm: starts $ranks ranks, the most that the settings allow where there is room for $most;" \
            "idle nodes: $((SLURM_JOB_NUM_NODES - $(nodes_in_use)))"
    fi
}

# Runs `lucid train ARGUMENTS` until it ends, or until SIGUSR1 asks for the nodes. Then the ranks save, and the job is
# queued again and resumes. After scancel, which sends SIGTERM, the ranks save too, but the job ends. `lucid submit`
# leaves the command that submitted the job in LUCID_COMMAND.
train_or_requeue() {
    local code=0 step asking=()
    echo "slurm: job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST"
    check_nodes
    use_ranks_that_serve "$@"
    run_ranks train "$@" &
    step=$!
    trap 'kill -s TERM "$step" || true' TERM
    trap 'preempted=yes; keep_asking "$step"' USR1
    if [[ -n $preempted ]]; then keep_asking "$step"; fi
    # A signal to this shell interrupts `wait`, but does not end the ranks.
    until wait "$step" || ! kill -0 "$step"; do :; done 2>/dev/null
    wait "$step" || code=$?
    trap '' USR1 TERM
    { kill ${asking[@]+"${asking[@]}"} && wait "${asking[@]}"; } 2>/dev/null || true
    # srun and SLURM print errors about every rank that ends by a signal: the last line sums them up.
    if [[ -n $preempted ]] && may_go_on "$code"; then
        requeue "$code" "$@"
    elif ((code == 75)); then
        echo "slurm: the run is saved; to resume it: ${LUCID_COMMAND:-submit it again}"
    fi
    exit "$code"
}

# Asks process $1 to stop, again and again until it ends: launchers lose signals that come before the ranks have
# started. A background shell does so. It holds the job's output open, so it is killed when the ranks have ended.
keep_asking() {
    while kill -s USR1 "$1"; do sleep 5; done &>/dev/null &
    asking+=("$!")
}

# 75: all ranks have saved. Above 128, or the signal's number under MPICH's mpiexec: a rank was killed while it started
# or ended, either by the signal, or by srun because another rank had ended before it.
may_go_on() {
    (($1 == 75 || $1 > 128 || $1 == $(kill -l USR1)))
}

# Starts in a row that may end with the same newest checkpoint. After so many, the next one would be preempted as early.
starts_without_progress=10

# Queues the job again, unless its starts get nowhere. The last one ended with code $1; the settings of the run follow.
requeue() {
    local job=$SLURM_JOB_ID saved="the ranks have ended" starts newest
    if (($1 == 75)); then saved="the run is saved"; fi
    # The last task of an array has the job number of the whole array.
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
    # The first start does not count: no note from before it says whether it got on.
    if ((${SLURM_RESTART_COUNT:-0} > 0)); then read -r starts newest < <(note_start "$job" "${@:2}") || true; fi
    if ((${starts:-0} >= starts_without_progress)); then
        echo "slurm: $saved, but job $job is not queued again: $starts starts in a row have ended with $newest: give" \
            "the job more time; to resume the run: ${LUCID_COMMAND:-submit it again}"
        return
    fi
    echo "slurm: $saved, and job $job is queued again: it resumes by itself (SLURM may call this start cancelled)"
    scontrol requeue "$job" ||
        fail "job $job could not be queued again; to resume the run: ${LUCID_COMMAND:-submit it again}"
}

# Prints how many starts of job $1 in a row have ended with the newest checkpoint, and which that is. Notes this in the
# run's folder, which follows from the settings after $1. A folder that cannot be written stops no job.
note_start() {
    local job=$1 folder newest before=() starts=1
    folder=$(run_folder_of "${@:2}")
    newest=$(find "$folder/checkpoints" -maxdepth 1 -name '[0-9]*-[0-9]*' 2>/dev/null | sort | tail -n 1) || true
    newest=${newest##*-}
    { read -ra before <"$folder/.starts"; } 2>/dev/null || true
    if [[ ${before[0]-} == "$job" && ${before[1]-} == "${newest:-none}" && ${before[2]-} =~ ^[0-9]{1,9}$ ]]; then
        starts=$((10#${before[2]} + 1))
    fi
    { mkdir -p "$folder" && echo "$job ${newest:-none} $starts" >"$folder/.starts"; } 2>/dev/null || true
    if [[ $newest =~ ^[0-9]{1,18}$ ]]; then newest="the checkpoint of step $((10#$newest))"; else newest="no checkpoint"; fi
    echo "$starts $newest"
}

# Prints the folder of the run with the settings $@.
run_folder_of() {
    local settings
    # Inside a command substitution, bash does not end at a command that fails.
    settings=$("$python" -P -m lucid train "$@" --print-config) || return
    "$python" -P -c 'import sys, yaml; print(yaml.safe_load(sys.stdin)["run_folder"])' <<<"$settings"
}
