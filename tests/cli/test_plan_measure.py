"""`lucid plan --measure` takes real steps, writes nothing, and predicts steps on more nodes."""

import json
import re
from functools import partial
from unittest import mock

import numpy as np
import pytest
from nodes import SeveralNodes

from lucid.analysis.prediction import step_measurement
from lucid.analysis.prediction.step_model import LINK, Measured
from lucid.cli.plan import scaling
from lucid.cli.plan.scaling import parse
from lucid.distributed import connect, connection
from lucid.errors import ConfigError
from lucid.training.config import load

BY_SPEED = "train.balance=speed", "train.micro_batch=2"


@pytest.fixture
def plan(lucid):
    """A function that plans a run and returns (exit code, standard output, standard error)."""
    return partial(lucid, "plan")


def test_a_measured_plan_has_a_line_for_each_number_of_nodes_and_writes_nothing(plan, run_file):
    code, output, errors = plan(run_file, "--measure", "--nodes", 8, "--link", "1Gbit,20us", "train.global_batch=8")
    assert (code, errors) == (0, "")
    assert re.findall(r"^ +(\d+) +(\d+) +[\d.,]+ \([\d.,]+ to [\d.,]+\)", output, re.MULTILINE) == [
        ("1", "1"), ("2", "2"), ("4", "4"), ("8", "8"),
    ]  # fmt: skip
    assert "measuring: steps of 1 and 8 sequences a rank on 1 rank, about" in output
    assert "0.941 Gbit/s of gradients each way, latency 20 us, assumed; a message takes 20 us of a core" in output
    assert re.search(r"It ends soonest on .*core-hours\.$", output, re.MULTILINE)
    hours = r"Hours are those of all train.steps, 1 evaluation of \S+ s and \d+ checkpoints, each copied in \S+ s"
    assert re.search(hours, output)
    assert not (run_file.parent / "run").exists()


def test_ranks_that_cannot_share_the_batch_are_left_out(plan, run_file):
    settings = ("train.global_batch=6", "train.micro_batch=auto")
    code, output, _ = plan(run_file, "--measure", "--nodes", 8, "--link", "10Gbit", *settings)
    assert code == 0
    assert "The settings do not allow as many ranks as 8 nodes have" in output
    assert "Measured with 1 rank a node, predicted for 2" not in output


def test_json_has_what_was_measured_and_what_it_predicts(run_ranks, run_file):
    arguments = (str(run_file), "--measure", "--json", "--nodes", "2", "--link", "100Mbit", "train.reduction=exact")
    settings = ("train.global_batch=8", "train.micro_batch=2", "optimizer.sharded=true")
    finished = run_ranks(2, "-m", "mpi4py", "-m", "lucid", "plan", *arguments, *settings, seconds=120)
    assert finished.returncode == 0, finished.stdout
    (line,) = [line for line in finished.stdout.splitlines() if "{" in line]
    found = json.loads(line[line.index("{") :])
    measured = Measured.from_dict(found["measured"])
    assert (measured.nodes, measured.ranks_per_node) == (1, 2)
    assert measured.seconds_per_flop > 0
    assert measured.update_seconds > 0
    assert measured.node_sum_seconds > 0
    assert measured.evaluation_seconds > 0
    assert measured.checkpoint_seconds > 0
    assert [step["ranks"] for step in found["steps"]] == [2, 4]
    assert [step["parts"][LINK] > 0 for step in found["steps"]] == [False, True]


def two_nodes():
    """A context in which two of four ranks are a node."""
    return mock.patch.object(connection, "MPICommunicator", SeveralNodes)


@pytest.mark.long
def test_the_link_is_measured_between_the_nodes_that_are_launched(run_within, run_file):
    arguments = ("plan", str(run_file), "--measure", "--nodes", "4", "train.global_batch=8")
    finished = run_within(4, two_nodes, *arguments, seconds=120)
    assert finished.returncode == 0, finished.stdout
    assert "measured     2 nodes of 2 ranks x 1 thread" in finished.stdout
    assert re.search(r"link +[\d.e+]+ Gbit/s of gradients each way, .* \+- \d+%, measured; a message", finished.stdout)
    assert re.search(r" 4 +8 +[\d.,]+ \(", finished.stdout)


@pytest.mark.emulated
def test_steps_are_measured_on_a_gpu(run_file, monkeypatch):
    monkeypatch.setattr(step_measurement, "_MOST", 4)
    group, config = connect("single", "cuda"), load(run_file, ["train.device=cuda", *BY_SPEED])
    measured = scaling._measure(config, group, group, [1, 2], np.full(4, 1e6), quiet=True)
    assert measured.seconds_per_flop > 0
    assert measured.update_seconds > 0


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--measure", "--nodes", 0), "--nodes"),
        (("--measure", "--nodes", 4), "--nodes 4 needs the link between nodes, and all ranks are on one"),
        (("--measure", "--link", "fast"), "--link takes a rate, such as 10Gbit, or 100Gbit,2us with a latency, got"),
        (("--measure", "--ranks-per-node", 9), "9 ranks on a node cannot train with these settings, nor on more nodes"),
        (("--measure", "--ranks", 2), "--ranks goes without --measure"),
        (("--measure", "--most-ranks", 2), "--most-ranks goes without --measure"),
        (("--best", "--ranks", 2), "--ranks goes without --best, which finds the number of ranks by itself"),
        (("--best", "--most-ranks", 3), "--most-ranks goes without --best"),
        (("--measure", "train.device=cuda"), "device 'cuda' does not exist: no such GPU is visible"),
        (("--measure", "data.path=/nowhere"), "--measure takes real steps, which need the corpus"),
        (("--nodes", 4), "--nodes goes with --measure or --best"),
        (("--best", "--measure"), "--best measures by itself: leave out --measure"),
        (("--best", "--nodes", 4), "--nodes 4 needs the link between nodes: say what to assume"),
        (("--best", "train.device=cuda"), "--best divides cores, but the run has train.device=cuda"),
        (("--best", "data.path=/nowhere"), "/nowhere"),
        (("--json",), "--json goes with --measure"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(plan, run_file, arguments, fragment):
    code, _, errors = plan(run_file, *arguments, "train.global_batch=8")
    assert code == 2
    assert fragment in errors
    assert "Traceback" not in errors


def test_links_are_written_as_networks_are_sold():
    assert parse("1Gbit").rate == pytest.approx(125e6 * 1448 / 1538)
    assert parse("200 Mbit/s, 1ms") == parse("0.2Gbit,1000us")
    for wrong in ("fast", "0Gbit", "1.2.3Gbit", "1GB", "-1Gbit", "1Gbit,5"):
        with pytest.raises(ConfigError, match="--link takes a rate"):
            parse(wrong)
