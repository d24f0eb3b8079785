"""lucid launch: its options, what it looks for, and its plan. test_launched_ranks.py has the processes."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from launching import executable

from lucid.cli import launch
from lucid.errors import LaunchError
from lucid.launch import mpirun
from lucid.launch.limits import available_cores
from lucid.launch.mpirun import (
    MEMORY_VARIABLES,
    Surroundings,
    mpi_of,
    number_of_ranks,
    plan,
)
from lucid.launch.options import USAGE, Options, Restarts, parse
from lucid.launch.placement import THREAD_VARIABLES

SCRIPT = Path(__file__).parents[2] / "launch" / "mpirun.sh"
PARENT = "lucid.launch.rank_parent"

EIGHT_CORES = Surroundings("python", "bin/mpiexec", "MPICH", cores=8)
TWO_HOSTS = Surroundings("python", "bin/mpiexec", "MPICH", cores=8, hosts=("node1", "node3"))
OPEN_MPI = Surroundings("python", "bin/mpiexec", "Open MPI", cores=8)


def option(command, name):
    return command[command.index(name) + 1] if name in command else None


# Options.


@pytest.mark.parametrize(
    "words",
    [
        "-n 4 --gpus --hostfile hosts --dry-run run.yaml a=3",
        "run.yaml -n 4 a=3 --gpus --hostfile hosts --dry-run",
        "run.yaml --hostfile=hosts --gpus -n 2 -n 4 --gpus --dry-run -- a=3",
    ],
)
def test_options_come_before_or_after_config_and_its_settings(folder, words):
    (folder / "hosts").touch()
    options = parse(words.split())
    arguments = ("run.yaml", "a=3")
    assert options == Options("train", arguments, ranks=4, hostfile="hosts", gpus=True, dry_run=True)


def test_the_doctor_takes_its_own_options():
    expected = Options("doctor", ("--folder", "runs"), ranks=2)
    assert parse(["-n", "2", "--doctor", "--folder", "runs"]) == expected
    assert parse(["--folder", "runs", "--doctor", "-n", "2"]) == expected


def test_restarts_have_options_of_their_own(folder):
    (folder / "hosts").touch()
    assert parse(["--restarts", "3", "-n", "2", "--backoff", "0", "run.yaml"]).restarts == Restarts(3, backoff=0)
    words = ["--hostfile", "hosts", "--min-ranks=1", "run.yaml", "--restarts", "3"]
    assert parse(words).restarts == Restarts(3, backoff=2, min_ranks=1)


@pytest.mark.parametrize("words", ["-n 2 --gpus train.py -n 3 --gpus a", "-n 2 --gpus -- train.py -n 3 --gpus a"])
def test_all_words_after_a_script_are_its_own(folder, words):
    (folder / "train.py").touch()
    options = parse(words.split())
    assert options == Options("script", ("train.py", "-n", "3", "--gpus", "a"), ranks=2, gpus=True)
    # A name that only looks like a script's, as a setting or for the doctor, is none.
    assert parse(["run.yaml", "run_folder=a.py"]).command == "train"
    assert parse(["--doctor", "--folder", "a.py"]).command == "doctor"


def test_a_script_is_not_started_again(folder):
    (folder / "train.py").touch()
    with pytest.raises(LaunchError, match="--restarts is for a run with a CONFIG, whose checkpoints say whether"):
        parse(["--restarts", "3", "train.py"])
    with pytest.raises(LaunchError, match="the argument ':' is no setting"):
        parse(["train.py", ":", "touch", "made"])


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_prints_the_usage(word, capsys):
    assert launch.run([word, "--nonsense"]) == 0
    assert capsys.readouterr().out == USAGE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "CONFIG is missing"),
        (["-n"], "-n takes the number of ranks, got ''"),
        (["-n", "0", "run.yaml"], "-n takes the number of ranks, got '0'"),
        (["-n", "two", "run.yaml"], "-n takes the number of ranks, got 'two'"),
        (["-n", "2\n", "run.yaml"], "-n takes the number of ranks, got '2"),
        (["-n", "99999999999999999999", "run.yaml"], "-n takes the number of ranks"),
        (["--hostfile"], "the hostfile '' cannot be read"),
        (["--hostfile", "nowhere", "run.yaml"], "the hostfile 'nowhere' cannot be read"),
        (["--hostfile", "/", "run.yaml"], "the hostfile '/' cannot be read"),
        (["--nodes", "run.yaml"], "option --nodes is not known, see lucid launch --help"),
        (["run.yaml", "--host"], "option --host is not known (did you mean --hostfile?), see lucid launch --help"),
        (["run.yaml", "--restart=3"], "option --restart=3 is not known (did you mean --restarts?), see"),
        (["-np", "2", "run.yaml"], "option -np is not known (did you mean -n?), see"),
        (["run.yaml", "--gpus=2"], "option --gpus=2 is not known (did you mean --gpus?), see"),
        (["--", "-n", "run.yaml"], "option -n is not known"),
        (["--restarts=", "run.yaml"], "--restarts takes a whole number, got ''"),
        (["nothing.yaml"], "the configuration 'nothing.yaml' cannot be read"),
        (["/"], "the configuration '/' cannot be read"),
        (["nothing.py", "-n", "2"], "the script 'nothing.py' cannot be read"),
        (["--restarts", "3", "--doctor"], "--doctor is not started again: leave out --restarts"),
        (["--restarts", "often", "run.yaml"], "--restarts takes a whole number, got 'often'"),
        (["--restarts"], "--restarts takes a whole number, got ''"),
        (["--min-ranks", "1", "run.yaml"], "--min-ranks goes with --restarts"),
        (["--backoff", "1", "run.yaml"], "--backoff goes with --restarts"),
        (
            ["--min-ranks", "1", "--restarts", "1", "run.yaml"],
            "--min-ranks goes with --hostfile",
        ),
        (["run.yaml", ":", "-n", "1", "touch", "made"], "the argument ':' is no setting"),
        (["--doctor", ":", "touch", "made"], "the argument ':' is no setting"),
    ],
)
def test_a_wrong_call_is_refused_with_one_sentence(folder, capsys, arguments, message):
    assert launch.run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"lucid launch: {message}")


# The plan.


@pytest.mark.parametrize(
    ("options", "there", "ranks"),
    [
        (Options(), EIGHT_CORES, 8),
        (Options(ranks=3), EIGHT_CORES, 3),
        (Options(), TWO_HOSTS, 16),
        (Options(ranks=3), TWO_HOSTS, 3),
        (Options(gpus=True), Surroundings("python", "mpiexec", "MPICH", cores=8, gpus=3, hosts=("a", "b")), 6),
        (Options(ranks=2, gpus=True), EIGHT_CORES, 2),
    ],
)
def test_every_core_or_gpu_of_a_host_gets_a_rank_by_default(options, there, ranks):
    assert number_of_ranks(options, there) == ranks
    assert option(plan(options, there, {}).command, "-n") == str(ranks)


def test_a_machine_without_gpus_has_no_default_with_gpus():
    with pytest.raises(LaunchError, match="--gpus: this machine has no GPU: give the number of ranks"):
        number_of_ranks(Options(gpus=True), EIGHT_CORES)


@pytest.mark.parametrize(
    ("ranks", "there", "threads"),
    [(1, EIGHT_CORES, 8), (2, EIGHT_CORES, 4), (3, EIGHT_CORES, 2), (64, EIGHT_CORES, 1), (3, TWO_HOSTS, 4)],
)
def test_the_ranks_of_a_host_share_its_cores(ranks, there, threads):
    launch = plan(Options(ranks=ranks), there, {})
    assert launch.threads == threads
    assert {launch.variables[name] for name in THREAD_VARIABLES} == {str(threads)}


@pytest.mark.parametrize(
    ("ranks", "environment", "options"),
    [
        (1, {}, ["--bind"]),
        (2, {}, ["--bind"]),
        (3, {}, []),
        (2, {"OMP_NUM_THREADS": "3"}, []),
        (9, {}, []),
    ],
)
def test_ranks_that_take_all_cores_are_bound_and_no_others(ranks, environment, options):
    command = plan(Options(ranks=ranks), EIGHT_CORES, environment).command
    parent = command.index(PARENT)
    assert list(command[parent + 1 : command.index("mpi4py") - 2]) == options


def test_with_gpus_the_parents_of_ranks_deal_them_out():
    assert option(plan(Options(ranks=1, gpus=True), EIGHT_CORES, {}).command, PARENT) == "--gpus"


@pytest.mark.parametrize(
    ("ranks", "there", "warning"),
    [
        (8, EIGHT_CORES, ""),
        (9, EIGHT_CORES, "9 ranks on this machine share 8 cores and take turns: start at most 8 (-n)"),
        (16, TWO_HOSTS, ""),
        (17, TWO_HOSTS, "9 ranks on node1 share 8 cores and take turns: start at most 16 (-n)"),
    ],
)
def test_more_ranks_than_cores_cause_a_warning(ranks, there, warning):
    assert plan(Options(ranks=ranks), there, {}).warning == warning


def test_the_users_thread_counts_are_kept():
    environment = {"OMP_NUM_THREADS": "5", "MKL_NUM_THREADS": "3", "NUMBA_NUM_THREADS": ""}
    variables = plan(Options(ranks=2), EIGHT_CORES, environment).variables
    assert [variables[name] for name in THREAD_VARIABLES] == ["5", "5", "3", "5"]


@pytest.mark.parametrize("count", ["abc", "0", "-1", "1 2", "a[$(touch made)]"])
def test_a_wrong_thread_count_is_refused(count):
    with pytest.raises(LaunchError, match="OMP_NUM_THREADS takes the number of threads per rank, got '"):
        plan(Options(ranks=1), EIGHT_CORES, {"OMP_NUM_THREADS": count})


def test_ranks_that_share_cores_yield_them_unless_the_user_says_otherwise():
    variable = "MPIR_CVAR_ENABLE_HEAVY_YIELD"
    assert variable not in plan(Options(ranks=8), EIGHT_CORES, {}).variables
    assert plan(Options(ranks=9), EIGHT_CORES, {}).variables[variable] == "1"
    assert plan(Options(ranks=9), EIGHT_CORES, {variable: "0"}).variables[variable] == "0"


def test_glibc_keeps_its_memory_and_ranks_learn_about_a_terminal():
    variables = plan(Options(ranks=1), EIGHT_CORES, {}).variables
    assert variables.items() >= MEMORY_VARIABLES.items()
    assert "TTY_COMPATIBLE" not in variables
    terminal = {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": "90"}
    assert plan(Options(ranks=1), EIGHT_CORES, {}, width="90").variables == variables | terminal


def test_lucid_runs_below_a_parent_on_every_rank():
    command = plan(Options("train", ("run.yaml", "data.folder=a b"), ranks=3), EIGHT_CORES, {}).command
    parent, rank = ("python", "-P", "-m", PARENT), ("-P", "-m", "mpi4py", "-m", "lucid")
    assert command == ("bin/mpiexec", "-n", "3", *parent, *rank, "train", "run.yaml", "data.folder=a b")


def test_a_script_is_started_like_a_run():
    command = plan(Options("script", ("train.py", "--steps", "2"), ranks=8), EIGHT_CORES, {}).command
    program = ("python", "-P", "-m", PARENT, "--bind", "-u", "-m", "mpi4py", "train.py", "--steps", "2")
    assert command == ("bin/mpiexec", "-n", "8", *program)


def test_the_doctor_is_started_like_a_run():
    run = plan(Options("train", ("run.yaml",), ranks=2), EIGHT_CORES, {}).command
    doctor = plan(Options("doctor", ("--folder", "runs"), ranks=2), EIGHT_CORES, {}).command
    assert doctor == (*run[: run.index("train")], "doctor", "--folder", "runs")


def test_hosts_come_from_the_hostfile():
    command = plan(Options(ranks=5, hostfile="hosts"), TWO_HOSTS, {}).command
    assert command[1:7] == ("-n", "5", "-f", "hosts", "-ppn", "3")


@pytest.mark.parametrize(
    ("ranks", "shares", "most"), [(None, {"a": 1, "b": 3, "c": 2}, 3), (3, {"a": 1, "b": 2}, 2), (1, {"a": 1}, 1)]
)
def test_hosts_that_are_named_repeatedly_are_filled_in_their_order(ranks, shares, most):
    there = Surroundings("python", "mpiexec", "MPICH", 6, hosts=("a", "b", "c"), room={"a": 1, "b": 3, "c": 2})
    options = Options(ranks=ranks, hostfile="hosts")
    assert number_of_ranks(options, there) == sum(shares.values())
    assert mpirun.ranks_of_hosts(sum(shares.values()), there) == shares
    launch = plan(options, there, {})
    assert launch.command[1:5] == ("-n", str(sum(shares.values())), "-f", "hosts")
    assert "-ppn" not in launch.command
    assert launch.threads == 6 // most


def test_more_ranks_than_lines_are_refused(folder, programs):
    (folder / "hosts").write_text("localhost\nlocalhost\n")
    there = mpirun.look_around(programs(), Options(hostfile="hosts"))
    with pytest.raises(LaunchError, match="-n is 3, but hosts has 2 lines, one for each rank that its hosts have room"):
        plan(Options(ranks=3, hostfile="hosts"), there, {})


@pytest.mark.parametrize("is_root", [False, True])
def test_open_mpi_gets_options_and_variables_of_its_own(is_root):
    environment = {"UCX_NET_DEVICES": "ib0", "PYTHONPATH": "", "HYDRA_LAUNCHER_EXEC": "rsh"}
    launch = plan(Options(ranks=64), OPEN_MPI, environment, is_root=is_root)
    words = ["--oversubscribe", "--map-by", "ppr:64:node", "--bind-to", "none"]
    for name in (*THREAD_VARIABLES, *MEMORY_VARIABLES, "UCX_NET_DEVICES"):
        words += ["-x", name]
    words += ["--allow-run-as-root"] * is_root
    assert list(launch.command[1 : launch.command.index("python")]) == ["-n", "64", *words]
    # The names in versions 5 and 4.
    assert launch.variables["PRTE_MCA_plm_ssh_agent"] == launch.variables["OMPI_MCA_plm_rsh_agent"] == "rsh"


def test_open_mpi_gets_the_hostfile_and_the_variables_of_a_terminal():
    there = Surroundings("python", "bin/mpiexec", "Open MPI", cores=8, hosts=("a", "b"))
    command = plan(Options(ranks=4, hostfile="hosts"), there, {"PYTHONPATH": "here"}, width="90").command
    assert command[3:10] == ("--oversubscribe", "--hostfile", "hosts", "--map-by", "ppr:2:node", "--bind-to", "none")
    counted = plan(Options(ranks=4, hostfile="hosts"), replace(there, room={"a": 3, "b": 1}), {}).command
    assert counted[6:8] == ("--map-by", "slot")
    passed = [name for flag, name in itertools.pairwise(command) if flag == "-x"]
    assert passed[-4:] == ["TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "PYTHONPATH"]


@pytest.mark.parametrize(
    ("report", "name"),
    [
        ("mpiexec (Open MPI) 5.0.8", "Open MPI"),
        ("mpiexec (OpenRTE) 4.1.4", "Open MPI"),
        ("prterun (PRRTE) 3.0", "Open MPI"),
        ("HYDRA build details:\n", "MPICH"),
        ("MPICH Version:\t4.1", "MPICH"),
        ("Intel(R) MPI Library", "MPICH"),
        ("MVAPICH2 2.3", "MPICH"),
        ("srun", "an unknown MPI"),
    ],
)
def test_the_mpi_follows_from_the_version_text(report, name):
    assert mpi_of(report) == name


# Programs and machines.


@pytest.fixture
def programs(folder, mpiexec):
    """A function that makes stand-ins for Python and mpiexec side by side, and returns the one for Python.

    They name the versions that the function is given, and pass everything else on to the real programs.
    """

    def make(launcher=None, library=None):
        says_version = f"echo '{launcher}'" if launcher else f'exec {mpiexec} "$@"'
        executable(folder / "bin" / "mpiexec", f"#!/bin/sh\n{says_version}\n")
        loads = f'if [ "$4" = --mpi-lib-version ]; then {library}; fi' if library else ""
        return executable(folder / "bin" / "python", f'#!/bin/sh\n{loads}\nexec {sys.executable} "$@"\n')

    return make


def test_the_visible_gpus_and_the_hosts_of_the_file_are_found(programs, folder, monkeypatch):
    (folder / "hosts").write_text("node1\n# node2 is away\n\nnode3\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,7")
    python = programs()
    there = mpirun.look_around(python, Options(gpus=True, hostfile="hosts"))
    mpiexec = str(folder / "bin" / "mpiexec")
    assert there == Surroundings(python, mpiexec, "MPICH", available_cores(), gpus=3, hosts=("node1", "node3"))


def test_open_mpis_version_ends_with_a_null_byte(programs):
    python = programs("mpiexec (Open MPI) 5.0.8", r"printf 'Open MPI v5.0.8\0'; exit")
    assert mpirun.look_around(python, Options()).mpi == "Open MPI"


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            {"launcher": "mpiexec (OpenRTE) 4.1.4"},
            "/mpiexec belongs to Open MPI, but mpi4py in .*/python loads MPICH:",
        ),
        ({"library": "echo one; echo two >&2; exit 1"}, r"/python cannot load MPI \(two\): .* -m pip install mpich"),
    ],
)
def test_an_mpi_that_does_not_fit_is_refused(programs, said, sentence):
    python = programs(**said)
    with pytest.raises(LaunchError, match=sentence):
        mpirun.look_around(python, Options())


def test_without_mpiexec_the_message_says_how_to_install_it(folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LaunchError, match=r"^there is no mpiexec in the folder of bin/python or in the PATH: bin"):
        mpirun.look_around("bin/python", Options())


@pytest.mark.parametrize("name", ["$(touch made)", "`touch made`", 'a"b', "a\\b"])
def test_a_path_that_other_hosts_would_read_as_a_command_is_refused(programs, folder, name):
    python = programs().replace("/bin/", f"/{name}/")
    (folder / "hosts").write_text("node1\n")
    (folder / "bin").rename(folder / name)
    assert mpirun.look_around(python, Options()).hosts == ()
    with pytest.raises(LaunchError, match=r"^the shell of another host would read more than a path in"):
        mpirun.look_around(python, Options(hostfile="hosts"))


@pytest.mark.parametrize("agent", ["a b/ssh", "ssh;touch made", "$(touch made)", "ssh*"])
def test_a_program_that_reaches_hosts_has_a_plain_name(programs, folder, monkeypatch, agent):
    (folder / "hosts").write_text("node1\n")
    monkeypatch.setenv("HYDRA_LAUNCHER_EXEC", agent)
    with pytest.raises(LaunchError, match=r"^the shell of another host would not read HYDRA_LAUNCHER_EXEC="):
        mpirun.look_around(programs(), Options(hostfile="hosts"))


def test_a_hostfile_with_a_mistake_is_refused(programs, tmp_path):
    (tmp_path / "hosts").touch()
    with pytest.raises(LaunchError, match=r"^the hostfile '.*/hosts' names no host$"):
        mpirun.look_around(programs(), Options(hostfile=str(tmp_path / "hosts")))


def test_at_most_five_unusable_hosts_are_reported_by_name(folder, monkeypatch, capsys):
    monkeypatch.setattr(mpirun, "look_around", lambda *_: TWO_HOSTS)
    monkeypatch.setattr(mpirun.hostfile, "unusable", lambda *_: {f"node{n}": f"node{n} is down" for n in range(1, 8)})
    assert launch.run(["run.yaml"]) == 1
    sentences = capsys.readouterr().err.splitlines()
    assert sentences[:5] == [f"lucid launch: node{number} is down" for number in range(1, 6)]
    assert sentences[5:] == ["lucid launch: 2 other hosts cannot be used either"]
