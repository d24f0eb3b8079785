"""lucid submit and the job templates without SLURM: the commands that they run, and what they refuse."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lucid.launch.mpirun import MEMORY_VARIABLES

REPOSITORY = Path(__file__).parents[2]
SITE = f'PYTHON={sys.executable}\nLAUNCHER="srun --mpi=pmi2 --verbose"\n'
# Settings that allow 1, 2 or 4 ranks.
EXACT = ("train.reduction=exact", "train.micro_batch=3")
# As SLURM sets them in a job of two nodes.
IN_A_JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_CPUS_PER_TASK": "3",
}
ONE_RANK = {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
# Replaces srun: prints the command and variables of ranks, and runs $ENDS.
SRUN = """#!/bin/bash
echo "srun $*"
echo "$OMP_NUM_THREADS $NUMBA_NUM_THREADS $MPIR_CVAR_CH4_NETMOD $UCX_NET_DEVICES $NUMBA_CACHE_DIR"
eval "$ENDS"
"""


@pytest.fixture
def home(tmp_path):
    """A checkout with its own slurm/site.env, and scripts in place of SLURM's commands."""
    home = tmp_path / "home"
    shutil.copytree(REPOSITORY / "slurm", home / "slurm", ignore=shutil.ignore_patterns("site.env"))
    for name in ("launch", "lucid"):
        (home / name).symlink_to(REPOSITORY / name)
    (home / "slurm" / "site.env").write_text(SITE)
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", '#!/bin/sh\necho "scontrol $*"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return home


@pytest.fixture
def run(home, run_file, tmp_path):
    """A function that runs a script of the checkout in a folder with the settings run.yaml."""

    def run(script, *arguments, **variables):
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        environment = {"PATH": path, "PYTHONPATH": str(home), "PYTHON": sys.executable, "OMP_NUM_THREADS": "64"}
        return subprocess.run(
            [shutil.which("bash"), home / script, *arguments],
            env=os.environ | environment | {"LUCID_SLURM": f"{home}/slurm"} | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


@pytest.fixture
def plan(run):
    """A function that returns the command that launch/submit.sh --dry-run prints."""

    def planned(*arguments):
        finished = run("launch/submit.sh", "--dry-run", *arguments)
        assert finished.returncode == 0, finished.stderr
        (line,) = finished.stdout.splitlines()
        return shlex.split(line)

    return planned


def test_a_run_is_submitted_with_what_was_asked_for(plan, home):
    options = ("--nodes", "2", "--ranks-per-node", "3", "--threads-per-rank", "4", "--time", "8:00:00")
    command = plan("run.yaml", *options, "train.steps=60")
    expected = ["--ntasks-per-node=3", "--nodes=2", "--cpus-per-task=4", "--time=8:00:00", "--job-name=run"]
    assert command[:2] == ["sbatch", f"--export=ALL,LUCID_SLURM={home}/slurm,LUCID_PYTHON={sys.executable}"]
    assert command[2:] == [*expected, f"{home}/slurm/pretrain_cpu.sbatch", "run.yaml", "train.steps=60"]


def test_a_range_of_nodes_ends_at_the_most_that_the_settings_can_use(run):
    finished = run("launch/submit.sh", "--dry-run", "run.yaml", "--nodes", "1-32", "--ranks-per-node", "2", *EXACT)
    assert ",LUCID_RANKS_PER_NODE=2 --nodes=1-2 --cpus-per-task=2 " in finished.stdout
    assert "--ntasks-per-node" not in finished.stdout
    said = "lucid submit: the settings allow 4 ranks at most: the job takes 2 nodes at most\n"
    assert (finished.returncode, finished.stderr) == (0, said)


def test_a_template_with_a_number_of_tasks_would_cut_a_range_short(run, home):
    template = home / "slurm" / "pretrain_cpu.sbatch"
    template.write_text(template.read_text().replace("#SBATCH --nodes=1", "#SBATCH --ntasks-per-node=1"))
    finished = run("launch/submit.sh", "--dry-run", "run.yaml", "--nodes", "1-2")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert f"remove --ntasks-per-node from {template}: with it SLURM takes too few" in finished.stderr


def test_account_and_partition_come_from_the_site(plan, home):
    (home / "slurm" / "site.env").write_text(f"{SITE}ACCOUNT=bert\nCPU_PARTITION=normal\nGPU_PARTITION=fast\n")
    assert {"--account=bert", "--partition=normal"} < set(plan("run.yaml"))
    gpus = plan("run.yaml", "--gpus-per-node", "4")
    assert {"--partition=fast", "--gpus-per-node=4", "--ntasks-per-node=4"} < set(gpus)
    assert f"{home}/slurm/pretrain_gpu.sbatch" in gpus


def test_a_sweep_is_an_array_with_a_task_for_each_value(plan, home):
    command = plan("run.yaml", "train.steps=60", "--sweep", "optimizer.learning_rate=1e-4,2e-4,3e-4")
    arguments = ["run.yaml", "optimizer.learning_rate=1e-4,2e-4,3e-4", "train.steps=60"]
    assert command[-5:] == ["--array=0-2", f"{home}/slurm/array.sbatch", *arguments]


def test_a_value_of_a_sweep_may_be_a_list(plan, run):
    swept = "data.mlm_probability=[0.3, 0.15],0.2,[0.4,0.1]"
    assert "--array=0-2" in plan("run.yaml", "--sweep", swept)
    array = IN_A_JOB | ONE_RANK | {"SLURM_ARRAY_JOB_ID": "7"}
    for task, value, name in ((0, "[0.3, 0.15]", "0.3_0.15"), (1, "0.2", "0.2")):
        finished = run("slurm/array.sbatch", "run.yaml", swept, **array, SLURM_ARRAY_TASK_ID=str(task))
        assert f" data.mlm_probability={value} run_folder=" in finished.stdout
        assert f"run-mlm_probability-{name}\n" in finished.stdout


def test_other_commands_keep_their_own_options(plan, home):
    command = plan("--nodes", "2", "evaluate", "a b", "--samples", "64")
    assert command[-5:] == ["--nodes=2", f"{home}/slurm/evaluate.sbatch", "a b", "--samples", "64"]
    assert plan("verify", "run", "--steps", "2:4")[-4:] == [f"{home}/slurm/verify.sbatch", "run", "--steps", "2:4"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "CONFIG"),
        (("nothing.yaml",), "nothing.yaml"),
        (("run.yaml", "--nodes", "two"), "--nodes"),
        (("run.yaml", "--nodes"), "--nodes"),
        (("run.yaml", "--nodes", "4-2"), "'4-2' is neither a number of nodes nor a range such as 1-8"),
        (("run.yaml", "--nodes", "3", *EXACT), "can be summed on 1 or 2 or 4 ranks, not on 3"),
        (("run.yaml", "--nodes", "5-8", *EXACT), "the settings allow 4 ranks at most, for which 4 nodes would do"),
        (("--nodes", "1-2", "evaluate", "run"), "a range of nodes is for training, not for evaluate"),
        (("run.yaml", "--ranks-per-node", "0"), "--ranks-per-node"),
        (("run.yaml", "--time", "soon"), "--time takes minutes, H:M:S or D-H:M:S, got 'soon'"),
        (("run.yaml", "--sweep", "train.seed"), "--sweep takes KEY=VALUE,VALUE,... ("),
        (
            ("run.yaml", "--sweep", "data.path=[[a,b],c]"),
            "(a value may be a list, without lists in it), got 'data.path=",
        ),
        (("run.yaml", "--sweep", "train.seed=1,2", "--gpus-per-node", "1"), "--sweep is for CPU nodes"),
        (("run.yaml", "--gpus-per-node", "1", "--ranks-per-node", "1"), "brings one rank for each GPU"),
        (("--gpus-per-node", "1", "evaluate", "run"), "are for training, not for evaluate"),
        (("run.yaml", "--node", "2"), "option --node is not known"),
        (("run.yaml", ":", "touch", "made"), "the argument ':' is no setting"),
        (("evaluate", "run", ":", "touch", "made"), "the argument ':' is no setting"),
        (("run.yaml", "train.stps=2"), "train.stps"),
        (("run.yaml", "--sweep", "train.sed=1,2"), "train.sed"),
        (("run.yaml", "--sweep", "train.seed=1,x"), "train.seed"),
        (
            ("--nodes", "2", "prepare", "text", "--output", "corpus"),
            "lucid prepare runs on one node: ",
        ),
    ],
)
def test_bad_input_is_refused_with_one_sentence(run, arguments, sentence):
    finished = run("launch/submit.sh", "--dry-run", *arguments)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert sentence in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_without_slurm_nothing_is_submitted(run, tmp_path):
    for name in ("bash", "dirname", "basename"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    finished = run("launch/submit.sh", "run.yaml", PATH=str(tmp_path / "bin"))
    assert finished.returncode == 2
    assert finished.stderr == "lucid: there is no sbatch: this is no login node of a SLURM cluster\n"


@pytest.mark.parametrize("name", ["a,b", "it's"])
def test_a_folder_that_sbatch_would_cut_off_is_refused(run, home, tmp_path, name):
    (home / "slurm").rename(tmp_path / name)
    finished = run("launch/submit.sh", "--dry-run", "--slurm", name, "evaluate", "run")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "sbatch would cut off a path at its comma" in finished.stderr


@pytest.mark.parametrize("script", ["launch/submit.sh", "slurm/pretrain_cpu.sbatch"])
@pytest.mark.parametrize(
    ("site", "sentence"),
    [
        (None, "{site} is missing: copy site.env.example to it, and fill it in"),
        ("LAUNCHER=ssh", "LAUNCHER in {site} is 'ssh': it has to begin with srun or mpiexec"),
        ("MODULES=nothing", "module load nothing has failed: MODULES in {site} is 'nothing'"),
        (f"{SITE}PYTHON=/nowhere", "there is no '/nowhere': set PYTHON in {site}"),
    ],
)
def test_a_missing_or_wrong_site_is_refused_with_one_sentence(run, home, script, site, sentence):
    (home / "slurm" / "site.env").unlink()
    if site is not None:
        (home / "slurm" / "site.env").write_text(site)
    finished = run(script, "run.yaml", **IN_A_JOB)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.splitlines()[-1].startswith("slurm: " + sentence.format(site=home / "slurm" / "site.env"))


def test_the_example_of_a_site_works(run, home):
    shutil.copy(home / "slurm" / "site.env.example", home / "slurm" / "site.env")
    finished = run("launch/submit.sh", "--dry-run", "evaluate", "run", PYTHON=sys.executable)
    assert finished.returncode == 0, finished.stderr


def test_ranks_get_the_cores_of_the_job_and_the_values_of_the_site(run, home, tmp_path):
    (home / "slurm" / "site.env").write_text(f"{SITE}INTERFACE=ib0\nSCRATCH={tmp_path}\n")
    finished = run("slurm/evaluate.sbatch", "runs/mine", **IN_A_JOB)
    command, variables = finished.stdout.splitlines()
    options = "--mpi=pmi2 --verbose --nodes=2 --ntasks-per-node=4 --cpus-per-task=3 --kill-on-bad-exit=1 -n 8"
    assert command.startswith(f"srun {options} {sys.executable} -P -m lucid.launch.rank_parent -P -m mpi4py -m lucid")
    assert command.endswith("lucid evaluate runs/mine")
    assert variables == f"3 3 ofi ib0 {tmp_path}/lucid-kernels"


@pytest.mark.parametrize(
    ("nodes", "on_node", "used", "ranks", "idle"), [("3", "1", "2", "2", "1"), ("1", "8", "1", "4", "0")]
)
def test_a_job_starts_as_many_ranks_as_serve_the_settings(run, nodes, on_node, used, ranks, idle):
    there = IN_A_JOB | {"SLURM_JOB_NUM_NODES": nodes, "SLURM_NTASKS_PER_NODE": on_node}
    finished = run("slurm/pretrain_cpu.sbatch", "run.yaml", *EXACT, **there)
    room = int(nodes) * int(on_node)
    said = f"slurm: starts {ranks} ranks, the most that the settings allow where there is room for {room}; idle nodes: "
    assert f"{said}{idle}\n" in finished.stdout
    cores = "--cpus-per-task=3"
    assert f" --nodes={used} --ntasks-per-node={on_node} {cores} --kill-on-bad-exit=1 -n {ranks} " in finished.stdout


def test_a_job_on_a_range_of_nodes_divides_the_cores_of_a_node_among_its_ranks(run, home):
    (home.parent / "bin" / "srun").write_text('#!/bin/sh\necho "$SLURM_TASKS_PER_NODE: $*"\n')
    given = {"SLURM_CPUS_PER_TASK": "6", "LUCID_RANKS_PER_NODE": "2"}
    there = {name: value for name, value in IN_A_JOB.items() if name != "SLURM_NTASKS_PER_NODE"}
    finished = run("slurm/pretrain_cpu.sbatch", "run.yaml", *EXACT, **there | given)
    assert "\n2(x2): --mpi=pmi2 --verbose --nodes=2 --ntasks-per-node=2 --cpus-per-task=3 " in finished.stdout
    assert " -n 4 " in finished.stdout


def test_a_job_whose_settings_have_become_wrong_starts_no_ranks(run):
    finished = run("slurm/pretrain_cpu.sbatch", "run.yaml", "train.stps=2", **IN_A_JOB)
    assert finished.returncode == 2
    assert "train.stps" in finished.stderr
    assert "srun" not in finished.stdout
    task = {"SLURM_ARRAY_TASK_ID": "0", **IN_A_JOB}
    of_array = run("slurm/array.sbatch", "run.yaml", "train.seed=1,2", "train.stps=2", **task)
    assert (of_array.returncode, of_array.stdout) == (2, "")
    assert "train.stps" in of_array.stderr
    assert "Traceback" not in of_array.stderr


def test_jobs_and_lucid_launch_set_glibc_in_the_same_way(run, home):
    (home.parent / "bin" / "srun").write_text("#!/bin/sh\nenv\n")
    finished = run("slurm/evaluate.sbatch", "runs/mine", **IN_A_JOB)
    assert {f"{name}={value}" for name, value in MEMORY_VARIABLES.items()} <= set(finished.stdout.splitlines())


@pytest.mark.parametrize(
    "variable", ["SLURM_JOB_NUM_NODES", "SLURM_NTASKS_PER_NODE", "SLURM_ARRAY_TASK_ID", "LUCID_RANKS_PER_NODE"]
)
def test_a_command_in_place_of_a_number_is_refused_and_not_run(run, tmp_path, variable):
    variables = IN_A_JOB | {"SLURM_ARRAY_TASK_ID": "0", variable: "x[$(touch made)]"}
    finished = run("slurm/array.sbatch", "run.yaml", "train.seed=1,2", **variables)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == f"slurm: {variable} is 'x[$(touch made)]', which is not a number\n"
    assert not (tmp_path / "made").exists()


def test_words_of_the_site_and_of_arguments_are_passed_on_and_not_run(run, home, tmp_path):
    (home / "slurm" / "site.env").write_text(f"PYTHON={sys.executable}\nLAUNCHER='srun * $(touch made)'\n")
    finished = run("slurm/evaluate.sbatch", "$(touch made)", "; touch made", "*", **IN_A_JOB)
    command = finished.stdout.splitlines()[0]
    assert command.startswith("srun * $(touch made) --nodes=2 ")
    assert command.endswith("lucid evaluate $(touch made) ; touch made *")
    assert not (tmp_path / "made").exists()


def test_a_colon_does_not_start_another_command_on_the_nodes(run):
    finished = run("slurm/prepare.sbatch", "text", ":", "touch", "made", **IN_A_JOB)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "the argument ':' is no setting" in finished.stderr


def test_an_array_task_without_a_value_is_refused(run):
    finished = run("slurm/array.sbatch", "run.yaml", "train.seed=1,2", SLURM_ARRAY_TASK_ID="2", **IN_A_JOB)
    assert finished.returncode == 2
    assert "task 2 of the array has no value in train.seed=1,2: --array=0-1" in finished.stderr


def test_a_job_needs_as_many_ranks_as_gpus(run):
    finished = run("slurm/pretrain_gpu.sbatch", "run.yaml", SLURM_GPUS_ON_NODE="2", **IN_A_JOB)
    assert finished.returncode == 2
    assert "4 ranks on 2 GPUs a node: ask for as many of one as of the other" in finished.stderr


@pytest.mark.parametrize(
    ("restarts", "of_range", "ends", "code", "commands"),
    [
        ("0", {}, "[[ $* == *doctor ]]", 1, ["doctor", "train"]),
        ("0", {}, "[[ $* != *doctor ]]", 2, ["doctor"]),
        ("1", {}, "[[ $* != *doctor ]]", 0, ["train"]),
        # A range of nodes: each start may get other ones.
        ("1", {"LUCID_RANKS_PER_NODE": "1"}, "[[ $* != *doctor ]]", 2, ["doctor"]),
    ],
)
def test_nodes_are_checked_before_they_are_first_used_if_the_site_says_so(
    run, home, restarts, of_range, ends, code, commands
):
    (home / "slurm" / "site.env").write_text(f"{SITE}CHECK_NODES=yes\n")
    job = IN_A_JOB | ONE_RANK | of_range
    finished = run("slurm/pretrain_cpu.sbatch", "run.yaml", ENDS=ends, SLURM_RESTART_COUNT=restarts, **job)
    assert finished.returncode == code
    assert re.findall(r"-m lucid (\w+)", finished.stdout) == commands
    said = "lucid doctor has found errors on node[1-2], and training was not started"
    assert (said in finished.stderr) == (code == 2)


# The signal comes to the batch script, as SLURM sends it.
SIGNALLED = "trap 'exit {code}' USR1; kill -USR1 $PPID; while kill -0 $PPID; do sleep 0.01; done"


@pytest.mark.parametrize(
    ("ends", "code", "queued_again"),
    [
        ("exit 0", 0, False),
        ("exit 75", 75, False),
        ("exit 1", 1, False),
        (SIGNALLED.format(code=75), 75, True),
        (SIGNALLED.format(code=143), 143, True),
        (SIGNALLED.format(code=0), 0, False),
        (SIGNALLED.format(code=1), 1, False),
        (SIGNALLED.format(code=2), 2, False),
    ],
)
def test_a_preempted_job_is_queued_again_unless_it_failed(run, ends, code, queued_again):
    submitted = {"LUCID_COMMAND": "lucid submit run.yaml"}
    finished = run("slurm/pretrain_cpu.sbatch", "run.yaml", ENDS=ends, **submitted, **IN_A_JOB | ONE_RANK)
    assert finished.returncode == code, finished.stderr
    assert ("scontrol requeue 7\n" in finished.stdout) == queued_again
    saved = "slurm: the run is saved" in finished.stdout
    assert saved == (code == 75)
    assert ("to resume it: lucid submit run.yaml\n" in finished.stdout) == (saved and not queued_again)


@pytest.fixture
def preempted(run, tmp_path):
    """A function that runs a job whose start is preempted, with notes of its earlier starts, and returns its output."""

    def start(job, notes):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / ".starts").write_text(notes)
        variables = {
            "SLURM_JOB_ID": job,
            "SLURM_RESTART_COUNT": "3",
            "LUCID_COMMAND": "lucid submit run.yaml",
            "ENDS": SIGNALLED.format(code=75),
        }
        return run("slurm/pretrain_cpu.sbatch", "run.yaml", **IN_A_JOB | ONE_RANK | variables).stdout

    return start


def test_a_job_that_is_always_preempted_before_its_first_step_is_queued_again_ten_times_at_most(preempted, tmp_path):
    output = preempted("7", "7 none 9")
    assert "scontrol" not in output
    assert "run is saved, but job 7 is not queued again: 10 starts in a row have ended with no checkpoint: " in output
    assert output.endswith("to resume the run: lucid submit run.yaml\n")
    assert (tmp_path / "run" / ".starts").read_text() == "7 none 10\n"


@pytest.mark.long
def test_starts_are_counted_from_the_newest_checkpoint(preempted, tmp_path):
    notes, checkpoints = tmp_path / "run" / ".starts", tmp_path / "run" / "checkpoints"
    (checkpoints / "0001-00000080").mkdir(parents=True)
    (checkpoints / "0002-00000050").mkdir()
    assert "have ended with the checkpoint of step 50: " in preempted("7", "7 00000050 9")
    (checkpoints / "0003-00000051").mkdir()
    assert "scontrol requeue 7\n" in preempted("7", "7 00000050 9")
    assert notes.read_text() == "7 00000051 1\n"
    assert "scontrol requeue 8\n" in preempted("8", "7 00000051 9")
    assert notes.read_text() == "8 00000051 1\n"
    assert "scontrol requeue 7\n" in preempted("7", "7 00000051 a[$(touch made)]")
    assert notes.read_text() == "7 00000051 1\n"
    assert not (tmp_path / "made").exists()


def test_a_task_is_queued_again_without_the_rest_of_its_array(run, tmp_path):
    for name in ("random", "yaml", "typer"):  # the templates import no module of the working folder
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    ends = SIGNALLED.format(code=75)
    finished = run("slurm/array.sbatch", "run.yaml", "train.seed=1,2", ENDS=ends, **array, **IN_A_JOB | ONE_RANK)
    assert "scontrol requeue 7_1\n" in finished.stdout
    assert "train.seed=2" in finished.stdout
    assert "-seed-2\n" in finished.stdout


def test_a_job_that_cannot_be_queued_again_says_how_to_resume(run, tmp_path):
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    ends = SIGNALLED.format(code=75)
    finished = run("slurm/pretrain_cpu.sbatch", "run.yaml", ENDS=ends, **IN_A_JOB | ONE_RANK)
    assert finished.returncode == 2
    assert "job 7 could not be queued again; to resume the run: submit it again" in finished.stderr


def test_templates_in_the_current_folder_take_precedence(plan, home, tmp_path):
    shutil.copytree(home / "slurm", tmp_path / "slurm")
    assert f"{tmp_path}/slurm/evaluate.sbatch" in plan("evaluate", "run")


def test_without_templates_the_message_says_how_to_get_them(run, home):
    shutil.rmtree(home / "slurm")
    finished = run("launch/submit.sh", "--dry-run", "evaluate", "run")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("lucid: there are no job templates in slurm: lucid recipes --slurm slurm writes")
