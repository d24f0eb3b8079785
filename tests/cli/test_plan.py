"""`lucid plan` says what a run will need and do, and refuses what `lucid train` would refuse."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from lucid.cli import main
from lucid.data import Corpus, Manifest
from lucid.kernels import onednn
from lucid.models import BERTForPreTraining
from lucid.models.bert.memory import parameter_count
from lucid.preparation import prepare
from lucid.training.config import load
from lucid.training.corpora import open_corpora
from lucid.training.estimates import checkpoint_bytes, memory

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
TINY = (
    "model.hidden_size=16",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
)


@pytest.fixture
def plan(capsys):
    """A function that plans a run and returns (exit code, the lines by their names, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as leaving:
            main(["plan", *map(str, arguments)])
        output, errors = capsys.readouterr()
        lines, name = {}, ""
        for line in output.splitlines():
            name = line[:13].strip() or name
            lines.setdefault(name, []).append(line[13:])
        return leaving.value.code, {name: " / ".join(texts) for name, texts in lines.items()}, errors

    return run


MISSING = " is missing; the shape above comes from the section model, or else from BERT-base"


@pytest.fixture
def settings_file(run_file):
    """The file of a short run, in small micro-batches."""
    settings = yaml.safe_load(run_file.read_text())
    settings["optimizer"] = {"learning_rate": 1.0e-3, "warmup_steps": 2}
    settings["train"] = {"steps": 5, "global_batch": 8, "micro_batch": 2, "evaluation_samples": 4}
    run_file.write_text(yaml.safe_dump(settings))
    return run_file


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("ranks", [1, 8])
def test_every_recipe_can_be_planned_before_its_corpus_exists(plan, recipe, ranks):
    code, lines, errors = plan(recipe, "--ranks", ranks, "data.path=/nowhere/corpus", *TINY)
    config = load(recipe)
    assert (code, errors) == (0, "")
    assert lines["corpus"] == "/nowhere/corpus is missing: make it by lucid prepare"
    assert lines["training"].startswith(f"{config.train.steps:,} steps of {config.train.global_batch:,} sequences")
    assert lines["ranks"].startswith(f"{ranks}, each with {config.train.global_batch // ranks:,} sequences a step")
    given = config.initial_checkpoint or config.initial_model
    assert lines.get("start") == (f"{given}{MISSING}" if given else None)


def test_a_plan_describes_the_corpus_and_the_needs_of_a_rank(plan, settings_file, corpus_folder):
    code, lines, _ = plan(settings_file, "--ranks", 2)
    assert code == 0
    config, corpus = load(settings_file), Corpus.open(corpus_folder)
    assert lines["model"].startswith(f"{parameter_count(config.model):,} parameters")
    held_out = Manifest.read(corpus_folder).splits["held_out"].documents
    counts = f"{corpus.token_count:,} tokens in {corpus.document_count:,} documents; {held_out} held out"
    assert lines["corpus"] == f"{corpus_folder}: {counts}"
    assert re.search(r"40 in all, [0-9.]+ epochs of [\d,]+$", lines["training"])
    assert lines["ranks"] == "2, each with 4 sequences a step, in 2 micro-batches of 2"
    assert f"about {memory(config, 2).of_rank / 1e6:,.0f} MB for each rank" in lines["memory"]
    assert ("compiled products 154 MB" in lines["memory"]) == onednn.is_installed()
    assert "room for" in lines["memory"]
    assert re.search(r"a rank does [\d.]+ \wFLOP/s", lines["time"])
    assert not (settings_file.parent / "run").exists()


def test_a_plan_says_how_many_ranks_of_those_with_room_the_settings_allow(plan, settings_file):
    exact = ("train.global_batch=12", "train.reduction=exact", "train.micro_batch=3")
    assert plan(settings_file, "--most-ranks", 7, *exact) == (0, {"4": ""}, "")


def test_a_plan_says_how_much_of_each_corpus_a_run_takes(plan, settings_file, corpus_folder, text_file, tmp_path):
    prepare([text_file], tmp_path / "other", tokenizer=corpus_folder / "tokenizer", held_out=0)
    mixture = f"data.path=[{{path: {corpus_folder}, weight: 3}}, {{path: {tmp_path / 'other'}, weight: 1}}]"
    code, lines, _ = plan(settings_file, mixture)
    assert code == 0
    assert re.search(
        r"; \d+ held out / weight 3: 75.00% of the sequences, 30 in all, 0.\d epochs of [\d,]+ /", lines["corpus"]
    )
    assert re.search(
        r"; none held out / weight 1: 25.00% of the sequences, 10 in all, 0.\d epochs of [\d,]+$", lines["corpus"]
    )
    assert lines["training"].endswith("40 in all")
    opened = open_corpora(load(settings_file, [mixture]))
    samplers = [*opened.train.samplers, *(corpus.sampler for corpus in opened.held_out)]
    assert len(samplers) == 3
    places = sum(sampler.index_bytes for sampler in samplers)
    assert re.search(rf", places of samples {places / 1e3:.1f} kB", lines["memory"])
    assert "the held-out loss leaves this part of the mixture out" in lines["evaluation"]
    assert lines["splits"] == (
        f"{corpus_folder} was prepared with --held-out 0.1, {tmp_path / 'other'} with --held-out 0: a document of both "
        "may be trained on in one and held out in the other"
    )
    many = plan(settings_file, mixture, "train.steps=10000")[1]["corpus"]
    assert many.count("; more than BERT's 40, so the model may learn it by heart") == 1
    also = f"train.evaluate_also=[{corpus_folder}]"
    _, lines, _ = plan(settings_file, f"data.path={tmp_path / 'other'}", also)
    assert lines["corpus"].endswith(" held out / evaluated only")
    assert plan(settings_file, mixture, "train.evaluate_also=[/nowhere]")[1]["corpus"] == (
        "/nowhere is missing: make it by lucid prepare"
    )


def test_a_checkpoint_is_as_large_as_planned(plan, settings_file):
    with pytest.raises(SystemExit):
        main(["train", str(settings_file), "train.steps=3"])
    (checkpoint,) = (settings_file.parent / "run/checkpoints").glob("*-00000003")
    tensors = sum(path.stat().st_size for path in checkpoint.rglob("*.safetensors"))
    assert tensors == pytest.approx(checkpoint_bytes(load(settings_file)), rel=0.2)


def test_a_begun_run_is_planned_to_resume(plan, settings_file):
    with pytest.raises(SystemExit):
        main(["train", str(settings_file), "train.steps=3"])
    assert "resumes from step 3" in plan(settings_file)[1]["start"]
    # Whatever has become of what it started from.
    assert "resumes from step 3" in plan(settings_file, "initial_model=/nowhere/model")[1]["start"]
    start = plan(settings_file, "data.path=/nowhere/corpus")[1]["start"]
    assert start.endswith("checkpoints; not checked, because the corpus is missing")
    code, _, errors = plan(settings_file, "model.hidden_size=32")
    assert code == 2
    assert "was trained with another model (hidden_size 16 instead of 32)" in errors


def test_a_model_to_start_from_must_fit(plan, settings_file, corpus_folder, tmp_path):
    folder = tmp_path / "model"
    assert plan(settings_file, f"initial_model={folder}")[1]["start"] == f"{folder}{MISSING}"
    BERTForPreTraining(load(settings_file).model).save_pretrained(folder)
    for path in (corpus_folder / "tokenizer").iterdir():
        shutil.copyfile(path, folder / path.name)
    assert plan(settings_file, f"initial_model={folder}")[1]["start"] == f"starts with the weights of {folder}"
    start = plan(settings_file, f"initial_model={folder}", "model.vocab_size=264")[1]["start"]
    assert f"{folder} has 200 tokens: the rows of 64 more are newly initialised" in start
    code, _, errors = plan(settings_file, f"initial_model={folder}", "model.num_hidden_layers=3")
    assert code == 2
    assert f"{folder} has another shape than the section model: num_hidden_layers 2 instead of 3" in errors


def test_ranks_that_do_not_divide_the_batch_have_uneven_shares(plan, settings_file):
    code, lines, _ = plan(settings_file, "--ranks", 3)
    assert code == 0
    assert lines["ranks"] == "3, each with at most 3 sequences a step, in at most 2 micro-batches of at most 2"


def test_a_fast_rank_may_have_up_to_four_times_an_equal_part(plan, settings_file):
    speed = "train.balance=speed"
    _, lines, _ = plan(settings_file, "--ranks", 2, speed)
    assert lines["ranks"] == "2, each with at most 7 sequences a step, in at most 4 micro-batches of at most 2"
    assert load(settings_file, [speed, "train.global_batch=64"]).shared_by(8).most_samples == 32


def test_memory_has_room_for_what_a_fast_rank_computes_at_once(settings_file):
    sizes = ["train.global_batch=64", "train.micro_batch=64"]
    equal, fast = (load(settings_file, [*sizes, f"train.balance={balance}"]) for balance in ("length", "speed"))
    assert (equal.shared_by(2).largest_micro_batch, fast.shared_by(2).largest_micro_batch) == (32, 63)
    whole = load(settings_file, ["train.global_batch=63", "train.micro_batch=64"])
    assert memory(fast, 2).rank["activations"] == memory(whole, 1).rank["activations"]
    bounded = load(settings_file, ["train.global_batch=64", "train.micro_batch=8", "train.balance=speed"])
    assert bounded.shared_by(2).largest_micro_batch == 8


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--ranks", 9), "train.global_batch is 8, but 9 ranks take at least one of its sequences each"),
        (("--ranks", 8, "train.reduction=exact"), "can be summed on 1 or 2 or 4 ranks, not on 8"),
        (("model.vocab_size=10",), "model.vocab_size is 10, but the tokenizer of"),
        (("--ranks", 0), "--ranks"),
        (("run_folder=/proc/version/run",), "/proc/version cannot be written (Not a directory)"),
        (("data.path=/proc/version",), "/proc/version"),
    ],
)
def test_a_run_that_cannot_start_is_refused_in_a_sentence(plan, settings_file, arguments, fragment):
    code, lines, errors = plan(settings_file, *arguments)
    assert (code, lines) == (2, {})
    assert fragment in errors
    assert "Traceback" not in errors


def test_more_ranks_and_a_sharded_optimizer_take_less_of_each_rank(settings_file):
    whole = memory(load(settings_file), 4)
    divided = memory(load(settings_file, ["optimizer.sharded=true"]), 4)
    assert divided.rank["moments"] == -(-whole.rank["moments"] // 4)
    assert divided.host == {"weights": whole.rank["weights"]}  # which the ranks of a host share
    assert divided.of_rank == whole.of_rank - whole.rank["moments"] * 3 // 4 - whole.rank["weights"]
    rounded = load(settings_file, ["optimizer.sharded=true", "train.precision=bfloat16"])
    assert memory(rounded, 4).host["rounded weights"] == whole.rank["weights"] // 2  # once on one host,
    assert memory(rounded, 4, nodes=2).rank["rounded weights"] == whole.rank["weights"] // 2  # of several by each rank
    exact = memory(load(settings_file, ["train.reduction=exact"]), 1)
    assert exact.rank["gradients"] == 3 * whole.rank["gradients"]  # four micro-batches: ceil(log2(4)) + 1 buffers


def test_the_number_of_ranks_with_room_follows_from_memory(settings_file):
    need = memory(load(settings_file, ["optimizer.sharded=true"]), 4)
    first = need.of_rank + need.checkpoint + sum(need.host.values())
    assert need.ranks_within(first - 1) == 0
    assert need.ranks_within(first) == 1
    assert need.ranks_within(first + 2 * need.of_rank) == 3


def test_a_model_too_large_for_this_machine_can_be_planned(plan, settings_file):
    code, lines, _ = plan(settings_file, "model.hidden_size=1000000")
    assert code == 0
    assert lines["memory"].endswith("room for 0 ranks")
    assert lines["time"].startswith("not known: this machine has no room")


def test_work_counts_only_the_steps_that_are_left(plan, settings_file):
    whole = plan(settings_file)[1]["work"]
    assert whole.endswith("in all")
    with pytest.raises(SystemExit):
        main(["train", str(settings_file), "train.steps=3"])
    _, lines, _ = plan(settings_file)
    assert lines["training"].endswith("; 2 steps are left")
    assert lines["work"].endswith("to come")


def test_a_run_on_gpus_can_be_planned_without_one(plan, settings_file):
    code, lines, _ = plan(settings_file, "train.device=cuda", "train.precision=bfloat16")
    assert code == 0
    assert "of its GPU" in lines["memory"]
    assert "lucid bench step" in lines["time"]


def test_one_rank_plans_for_all_launched_ranks(run_ranks, settings_file):
    finished = run_ranks(2, "-m", "mpi4py", "-m", "lucid", "plan", str(settings_file), seconds=60)
    assert finished.returncode == 0, finished.stdout
    assert re.findall(r"^\[\d\] ranks +(.*)$", finished.stdout, re.MULTILINE) == [
        "2, each with 4 sequences a step, in 2 micro-batches of 2"
    ]


def test_the_losses_of_a_run_under_way_say_where_it_may_end(plan, settings_file):
    """The metrics are of the run's form; their losses are those of a power law."""
    longer = ("train.steps=100", "optimizer.warmup_steps=2", "train.log_every=1")
    assert "loss" not in plan(settings_file, *longer)[1]
    with pytest.raises(SystemExit):
        main(["train", str(settings_file), "train.steps=30", "optimizer.warmup_steps=2"])
    assert plan(settings_file, *longer)[1]["loss"].startswith("at the end: too early to say; it takes 16 lines")
    losses = {step: 4 + 10 / step for step in range(1, 31)}
    lines = [{"step": step, "loss": y, "mlm_loss": y, "learning_rate": 1e-3} for step, y in losses.items()]
    metrics = settings_file.parent / "run/metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 20, "loss": None}]))
    loss = plan(settings_file, *longer)[1]["loss"]
    expected = re.match(r"about ([\d.]+) in training at the end, with 90% probability from ([\d.]+) to ([\d.]+)", loss)
    middle, low, high = map(float, expected.groups())
    assert 3 < low <= middle <= high < 4.5
    assert loss.endswith("fitted to 26 lines of the log, steps 5 to 30; it extrapolates from 30% of the run")
    for override in ("train.max_hours=1", "data.mlm_probability=[0.3,0.1]"):
        assert plan(settings_file, *longer, override)[1]["loss"].startswith("at the end: not known, because")
