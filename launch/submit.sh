#!/usr/bin/env bash
# Submits a job to SLURM, from the templates in slurm/ and the site's values in slurm/site.env.
set -euo pipefail

usage() {
    cat <<'END'
Usage: launch/submit.sh [OPTION ...] CONFIG [OPTION ...] [key=value ...]
       launch/submit.sh [OPTION ...] prepare | evaluate | doctor [ARGUMENT ...]

Prints the command that submits a job, and submits it: to train as CONFIG (YAML) says, key=value overriding a setting,
or to run `lucid prepare`, `lucid evaluate` or `lucid doctor` with these arguments. Account and partitions come from slurm/site.env
(slurm/site.env.example says how to make it).

  --nodes N             nodes (default: 1)
  --ranks-per-node N    ranks on each (default: 1)
  --threads-per-rank N  cores for each rank (default: that of the template)
  --gpus-per-node N     train on GPU nodes, with one rank for each GPU
  --time T              the longest time until the run saves and is queued again, as SLURM writes it: minutes, H:M:S or
                        D-H:M:S (default: that of the template)
  --sweep KEY=A,B,...   train once for each value of a setting, in an array of jobs with a run folder each
  --dry-run             print the command, and do not submit

Paths are as seen from here. The job's output goes to NAME-JOB.out.

Example: launch/submit.sh configs/small_cpu.yaml --nodes 2 --ranks-per-node 4 --time 8:00:00 train.steps=20000
END
}

case " $* " in *" --help "* | *" -h "*) usage; exit ;; esac

here=$(dirname -- "${BASH_SOURCE[0]}")
source "$here/../slurm/job.sh"

whole_number() { [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 takes a whole number, got '$2'"; }

template="" sweep="" gpus="" ranks="" dry_run="" options=() arguments=()
while (($#)); do
    case $1 in
        --nodes) whole_number "$1" "${2:-}"; options+=("--nodes=$2"); shift 2 ;;
        --ranks-per-node) whole_number "$1" "${2:-}"; ranks=$2; shift 2 ;;
        --threads-per-rank) whole_number "$1" "${2:-}"; options+=("--cpus-per-task=$2"); shift 2 ;;
        --gpus-per-node) whole_number "$1" "${2:-}"; gpus=$2; shift 2 ;;
        --time)
            [[ ${2:-} =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ ]] ||
                fail "--time takes minutes, H:M:S or D-H:M:S, got '${2:-}'"
            options+=("--time=$2"); shift 2 ;;
        --sweep)
            [[ ${2:-} =~ ^[a-z_.]+=[^,]+(,[^,]+)*$ ]] || fail "--sweep takes KEY=VALUE,VALUE,..., got '${2:-}'"
            sweep=$2; shift 2 ;;
        --dry-run) dry_run=yes; shift ;;
        -*) fail "option $1 is not known, see launch/submit.sh --help" ;;
        prepare | evaluate | doctor)
            if ((${#arguments[@]} == 0)); then template=$1; arguments=("${@:2}"); break; fi
            arguments+=("$1"); shift ;;
        *) arguments+=("$1"); shift ;;
    esac
done

refuse_colons ${arguments[@]+"${arguments[@]}"}
[[ $repository != *,* ]] || fail "the path of lucid's folder has a comma, where sbatch would cut it off: $repository"
if [[ -n $template ]]; then
    [[ -z $gpus$sweep ]] || fail "--gpus-per-node and --sweep are for training, not for $template"
else
    ((${#arguments[@]})) || fail "CONFIG is missing, see launch/submit.sh --help"
    [[ -r ${arguments[0]} ]] || fail "the configuration '${arguments[0]}' cannot be read"
    [[ -z $gpus || -z $sweep ]] || fail "--sweep is for CPU nodes: leave out --gpus-per-node"
    [[ -z $gpus || -z $ranks ]] || fail "--gpus-per-node brings one rank for each GPU: leave out --ranks-per-node"
    # A mistake is told now, not when the job starts.
    "$python" -m lucid train "${arguments[@]}" ${sweep:+"${sweep%%,*}"} --print-config >/dev/null || exit
    template=pretrain_cpu
    name=$(basename -- "${arguments[0]%.*}")
    options+=("--job-name=$name")
fi

partition=${CPU_PARTITION:-}
if [[ -n $gpus ]]; then
    template=pretrain_gpu partition=${GPU_PARTITION:-} ranks=$gpus
    options+=("--gpus-per-node=$gpus")
fi
if [[ -n $sweep ]]; then
    commas=${sweep//[^,]/}
    template=array options+=("--array=0-${#commas}")
    arguments=("${arguments[0]}" "$sweep" "${arguments[@]:1}")
fi
command=(sbatch --export=ALL,LUCID_HOME="$repository" ${ACCOUNT:+--account="$ACCOUNT"}
    ${partition:+--partition="$partition"} ${ranks:+--ntasks-per-node="$ranks"} "${options[@]}"
    "$repository/slurm/$template.sbatch" "${arguments[@]}")
printf '%q ' "${command[@]}"
echo
if [[ -z $dry_run ]]; then
    command -v sbatch >/dev/null || fail "there is no sbatch: this is no login node of a SLURM cluster"
    exec "${command[@]}"
fi
