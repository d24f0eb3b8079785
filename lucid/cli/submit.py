"""`lucid submit`: submits a job to SLURM, with a job template and the description of the cluster in site.env."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import lucid
from lucid.cli.recipes import shipped
from lucid.errors import ExitCode, LaunchError
from lucid.launch.options import COMMAND_VARIABLE, command_line
from lucid.training.config import load

_OTHER_COMMANDS = ("prepare", "evaluate", "doctor")
# job.sh checks site.env. The output of site.env itself does not belong to the answer.
_ASK_SITE = 'source "$1/job.sh" >&2 || exit; printf "%s\\0" "${ACCOUNT:-}" "${CPU_PARTITION:-}" "${GPU_PARTITION:-}"'

submit = typer.Typer(add_completion=False)


@submit.command(context_settings={"ignore_unknown_options": True})
def _submit(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG|COMMAND [ARGUMENT]...",
            help="A YAML file, and settings that replace those of the file (KEY=VALUE); or prepare, evaluate, doctor, "
            "and the arguments of that command.",
            show_default=False,
        ),
    ],
    nodes: Annotated[int | None, typer.Option(min=1, help="Number of nodes. Default: 1.")] = None,
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
    """Submit a job to SLURM: train, prepare, evaluate or doctor. Print the command that does it.

    Account and partitions come from site.env in the folder of the job templates. `lucid recipes --slurm slurm` writes
    the templates, and site.env.example among them explains site.env. Paths are relative to the current folder. The
    output of a job goes to NAME-JOB.out.

    Examples:

        lucid submit my.yaml --nodes 2 --ranks-per-node 4 train.steps=20000

        lucid submit my.yaml --sweep train.seed=1,2,3

        lucid submit --threads-per-rank 32 prepare books/ --output data/books
    """
    job = _Job(tuple(arguments), nodes, ranks_per_node, threads_per_rank, gpus_per_node, time, sweep)
    job.check()
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
    os.environ[COMMAND_VARIABLE] = command_line(sys.argv)  # the job says how to resume
    return os.execv(sbatch, command)


@dataclass(frozen=True)
class _Job:
    """The options and arguments of the command."""

    arguments: tuple[str, ...]
    nodes: int | None
    ranks_per_node: int | None
    threads_per_rank: int | None
    gpus_per_node: int | None
    time: str | None
    sweep: str | None

    @property
    def trains(self) -> bool:
        return self.arguments[0] not in _OTHER_COMMANDS

    def check(self) -> None:
        """Raise `LucidError` for a mistake, so that the user learns of it now and not when the job starts."""
        if ":" in self.arguments:
            raise LaunchError("the argument ':' is no setting: to launchers it begins another command; drop it")
        if self.time and not re.fullmatch(r"([0-9]+-)?[0-9]+(:[0-9]+){0,2}", self.time):
            raise LaunchError(f"--time takes minutes, H:M:S or D-H:M:S, got '{self.time}'")
        if self.sweep and re.match(r"[^=]*=.*[\[{]", self.sweep):
            raise LaunchError(
                f"--sweep divides '{self.sweep}' at commas, so it takes no lists: submit each value alone"
            )
        if self.sweep and not re.fullmatch(r"[a-z_.]+=[^,]+(,[^,]+)*", self.sweep):
            raise LaunchError(f"--sweep takes KEY=VALUE,VALUE,..., got '{self.sweep}'")
        if not self.trains:
            if self.arguments[0] == "prepare" and (self.nodes or 1) * (self.ranks_per_node or 1) > 1:
                raise LaunchError("lucid prepare runs on one node: leave out --nodes and --ranks-per-node")
            if self.gpus_per_node or self.sweep:
                raise LaunchError(f"--gpus-per-node and --sweep are for training, not for {self.arguments[0]}")
            return
        for argument in self.arguments:
            if argument.startswith("-"):
                raise LaunchError(f"option {argument} is not known, see lucid submit --help")
        if self.gpus_per_node and self.sweep:
            raise LaunchError("--sweep is for CPU nodes: leave out --gpus-per-node")
        if self.gpus_per_node and self.ranks_per_node:
            raise LaunchError("--gpus-per-node brings one rank for each GPU: leave out --ranks-per-node")
        config, *overrides = self.arguments
        key, _, values = (self.sweep or "").partition("=")
        for value in values.split(","):
            load(Path(config), [*overrides, *([f"{key}={value}"] if key else [])])

    def command(self, folder: Path, account: str, cpu_partition: str, gpu_partition: str) -> list[str]:
        """Return the command that submits the job with a template in `folder`, for this account and partition."""
        template, arguments = "pretrain_cpu", self.arguments
        options = {
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
            options["--array"] = f"0-{self.sweep.count(',')}"
            arguments = (self.arguments[0], self.sweep, *self.arguments[1:])
        given = [f"{name}={value}" for name, value in options.items() if value]
        return ["sbatch", *given, f"{folder}/{template}.sbatch", *arguments]


def _folder(given: Path | None) -> Path:
    """Return the folder of the job templates as an absolute path."""
    here = Path("slurm")
    folder = Path(os.path.realpath(given or (here if (here / "job.sh").is_file() else shipped("slurm"))))
    if not (folder / "job.sh").is_file() or folder.parent == Path(lucid.__file__).resolve().parent:
        raise LaunchError(f"there are no job templates in {given or here}: lucid recipes --slurm slurm writes them")
    if re.search(r"[,'\"\n]", f"{folder}{sys.executable}"):
        raise LaunchError(f"sbatch would cut off a path at its comma or quote: {folder}, {sys.executable}")
    return folder
