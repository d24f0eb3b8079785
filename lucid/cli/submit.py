"""`lucid submit`: submits a job to SLURM, with a job template and the description of the cluster in site.env."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

import lucid
from lucid.cli.recipes import shipped
from lucid.errors import ExitCode, LaunchError
from lucid.launch.options import COMMAND_VARIABLE, command_line
from lucid.training.config import RunConfig, load
from lucid.training.formatting import count

_OTHER_COMMANDS = ("prepare", "evaluate", "verify", "doctor")
# A value of a sweep, as slurm/array.sbatch divides them: commas in a list belong to it.
_SWEPT = r"(?:\[[^][]*\]|[^],[{}]+)"
# job.sh checks site.env. The output of site.env itself does not belong to the answer.
_ASK_SITE = 'source "$1/job.sh" >&2 || exit; printf "%s\\0" "${ACCOUNT:-}" "${CPU_PARTITION:-}" "${GPU_PARTITION:-}"'

submit = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class _Nodes:
    """From how many nodes to how many a job takes: as many as are free."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> "_Nodes":
        """Read N or A-B."""
        least, _, most = text.partition("-")
        if not re.fullmatch("[1-9][0-9]{0,5}(-[1-9][0-9]{0,5})?", text) or int(most or least) < int(least):
            raise typer.BadParameter(f"'{text}' is neither a number of nodes nor a range such as 1-8")
        return cls(int(least), int(most or least))

    @property
    def are_a_range(self) -> bool:
        return self.least < self.most

    def __str__(self) -> str:
        return f"{self.least}-{self.most}" if self.are_a_range else str(self.most)


@submit.command(context_settings={"ignore_unknown_options": True})
def _submit(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG|COMMAND [ARGUMENT]...",
            help="A YAML file, and settings that replace those of the file (KEY=VALUE); or prepare, evaluate, verify, "
            "doctor, and the arguments of that command.",
            show_default=False,
        ),
    ],
    nodes: Annotated[
        _Nodes | None,
        typer.Option(
            metavar="N|A-B",
            parser=_Nodes.parse,
            help="Number of nodes; or a range, of which each start of the job takes as many as are free. Default: 1.",
        ),
    ] = None,
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="Ranks on each node. Default: 1.")] = None,
    threads_per_rank: Annotated[
        int | None, typer.Option(min=1, help="Cores for each rank. Default: the template's.")
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Train on GPU nodes, with one rank for each GPU.")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="Time limit of a job. Near it the run saves and is queued again. Minutes, HH:MM:SS or D-HH:MM:SS. "
            "Default: the template's.",
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=A,B,...",
            help="Train once for each value of a setting, in an array of jobs, each with its own run folder.",
        ),
    ] = None,
    slurm: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of the job templates. Default: slurm, or the checkout's."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command, and do not submit.")] = False,
) -> int:
    """Submit a job to SLURM: train, prepare, evaluate, verify or doctor. Print the command that does it.

    Account and partitions come from site.env in the folder of the job templates. `lucid recipes --slurm slurm` writes
    the templates, and site.env.example among them explains site.env. Paths are relative to the current folder. The
    output of a job goes to NAME-JOB.out.

    Examples:

        lucid submit my.yaml --nodes 2 --ranks-per-node 4 train.steps=20000

        lucid submit my.yaml --nodes 1-32 --ranks-per-node 4

        lucid submit my.yaml --sweep train.seed=1,2,3

        lucid submit --threads-per-rank 32 prepare books/ --output data/books
    """
    job = _Job(tuple(arguments), nodes, ranks_per_node, threads_per_rank, gpus_per_node, time, sweep)
    job.check()
    job = job.on_nodes_that_serve()
    folder = _folder(slurm)
    environment = os.environ | {"LUCID_PYTHON": sys.executable}
    ask = ["bash", "-c", _ASK_SITE, "bash", str(folder)]
    site = subprocess.run(ask, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if site.returncode:
        return ExitCode.REFUSED  # bash has said why
    command = job.command(folder, *site.stdout.split("\0")[:3])
    print(shlex.join(command), flush=True)
    if dry_run:
        return ExitCode.FINISHED
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise LaunchError("there is no sbatch: this is no login node of a SLURM cluster")
    os.environ.pop("LUCID_RANKS_PER_NODE", None)  # of a job that this command runs in
    os.environ[COMMAND_VARIABLE] = command_line(sys.argv)  # the job says how to resume
    return os.execv(sbatch, command)


@dataclass(frozen=True)
class _Job:
    """The options and arguments of the command."""

    arguments: tuple[str, ...]
    nodes: _Nodes | None
    ranks_per_node: int | None
    threads_per_rank: int | None
    gpus_per_node: int | None
    time: str | None
    sweep: str | None

    @property
    def trains(self) -> bool:
        return self.arguments[0] not in _OTHER_COMMANDS

    @property
    def ranks_on_node(self) -> int:
        return self.gpus_per_node or self.ranks_per_node or 1

    def check(self) -> None:
        """Raise `LucidError` for a mistake, so that the user learns of it now and not when the job starts."""
        if ":" in self.arguments:
            raise LaunchError("the argument ':' is no setting: to launchers it begins another command; drop it")
        if self.time and not re.fullmatch(r"([0-9]+-)?[0-9]+(:[0-9]+){0,2}", self.time):
            raise LaunchError(f"--time takes minutes, H:M:S or D-H:M:S, got '{self.time}'")
        if self.sweep and not re.fullmatch(rf"[a-z_.]+={_SWEPT}(,{_SWEPT})*", self.sweep):
            raise LaunchError(
                f"--sweep takes KEY=VALUE,VALUE,... (a value may be a list, without lists in it), got '{self.sweep}'"
            )
        if not self.trains:
            nodes = self.nodes.most if self.nodes else 1
            if self.arguments[0] == "prepare" and max(nodes, self.ranks_per_node or 1) > 1:
                raise LaunchError("lucid prepare runs on one node: leave out --nodes and --ranks-per-node")
            if self.gpus_per_node or self.sweep:
                raise LaunchError(f"--gpus-per-node and --sweep are for training, not for {self.arguments[0]}")
            if self.nodes and self.nodes.are_a_range:
                raise LaunchError(f"a range of nodes is for training, not for {self.arguments[0]}: give one number")
            return
        for argument in self.arguments:
            if argument.startswith("-"):
                raise LaunchError(f"option {argument} is not known, see lucid submit --help")
        if self.gpus_per_node and self.sweep:
            raise LaunchError("--sweep is for CPU nodes: leave out --gpus-per-node")
        if self.gpus_per_node and self.ranks_per_node:
            raise LaunchError("--gpus-per-node brings one rank for each GPU: leave out --ranks-per-node")

    def settings(self) -> list[RunConfig]:
        """Return the settings of each run that the job trains. Raises `LucidError`."""
        config, *overrides = self.arguments
        return [load(Path(config), [*overrides, *swept]) for swept in self.swept or [[]]]

    @property
    def swept(self) -> list[list[str]]:
        """The override of each run of a sweep, in a list of its own."""
        key, _, values = (self.sweep or "").partition("=")
        return [[f"{key}={value}"] for value in re.findall(_SWEPT, values)]

    def on_nodes_that_serve(self) -> "_Job":
        """Return this job without nodes that its settings could not use. Raises `ConfigError` for too many of them."""
        settings, nodes = self.settings() if self.trains else [], self.nodes
        if not settings or nodes is None:
            return self
        if not nodes.are_a_range:
            for each in settings:
                each.shared_by(nodes.most * self.ranks_on_node).check()
            return self
        ranks = max(each.ranks_that_serve(nodes.most * self.ranks_on_node) for each in settings)
        most = -(-ranks // self.ranks_on_node)
        if most < nodes.least:
            raise LaunchError(
                f"--nodes is {nodes}, but the settings allow {count(ranks, 'rank')} at most, for which "
                f"{count(most, 'node')} would do"
            )
        if most < nodes.most:
            print(
                f"lucid submit: the settings allow {count(ranks, 'rank')} at most: the job takes {count(most, 'node')} "
                "at most",
                file=sys.stderr,
            )
        return replace(self, nodes=_Nodes(nodes.least, most))

    def command(self, folder: Path, account: str, cpu_partition: str, gpu_partition: str) -> list[str]:
        """Return the command that submits the job with a template in `folder`, for this account and partition."""
        template, arguments = "pretrain_cpu", self.arguments
        options: dict[str, Any] = {
            "--export": f"ALL,LUCID_SLURM={folder},LUCID_PYTHON={sys.executable}",
            "--account": account,
            "--partition": gpu_partition if self.gpus_per_node else cpu_partition,
            "--ntasks-per-node": self.gpus_per_node or self.ranks_per_node,
            "--nodes": self.nodes,
            "--cpus-per-task": self.threads_per_rank,
            "--time": self.time,
        }
        if not self.trains:
            template, arguments = self.arguments[0], self.arguments[1:]
        else:
            options["--job-name"] = Path(self.arguments[0]).stem
        if self.gpus_per_node:
            template = "pretrain_gpu"
            options["--gpus-per-node"] = self.gpus_per_node
        if self.sweep:
            template = "array"
            options["--array"] = f"0-{len(self.swept) - 1}"
            arguments = (self.arguments[0], self.sweep, *self.arguments[1:])
        if self.nodes and self.nodes.are_a_range:
            # SLURM would take no more nodes than tasks, of which there are those of the fewest nodes. So it is asked
            # for one task a node, with the cores of all ranks (slurm/job.sh).
            cores = self.threads_per_rank or _cores_of_task(folder / f"{template}.sbatch")
            options["--export"] += f",LUCID_RANKS_PER_NODE={self.ranks_on_node}"
            options |= {"--ntasks-per-node": None, "--cpus-per-task": cores * self.ranks_on_node}
        given = [f"{name}={value}" for name, value in options.items() if value]
        return ["sbatch", *given, f"{folder}/{template}.sbatch", *arguments]


def _cores_of_task(template: Path) -> int:
    """Return the cores of a task in a job template. Raises `LaunchError` if it has the tasks of a node, too."""
    text = template.read_text()
    if re.search(r"^#SBATCH.*--ntasks-per-node", text, re.MULTILINE):
        raise LaunchError(f"remove --ntasks-per-node from {template}: with it SLURM takes too few of a range of nodes")
    found = re.search(r"^#SBATCH.*--cpus-per-task=([0-9]+)", text, re.MULTILINE)
    return int(found[1]) if found else 1


def _folder(given: Path | None) -> Path:
    """Return the folder of the job templates as an absolute path."""
    here = Path("slurm")
    folder = Path(os.path.realpath(given or (here if (here / "job.sh").is_file() else shipped("slurm"))))
    if not (folder / "job.sh").is_file() or folder.parent == Path(lucid.__file__).resolve().parent:
        raise LaunchError(f"there are no job templates in {given or here}: lucid recipes --slurm slurm writes them")
    if re.search(r"[,'\"\n]", f"{folder}{sys.executable}"):
        raise LaunchError(f"sbatch would cut off a path at its comma or quote: {folder}, {sys.executable}")
    return folder
