"""The facts of a run as labels with values, and in three sentences."""

from collections.abc import Iterator

import numpy as np

from lucid.analysis.report.facts import RunFacts
from lucid.analysis.report.tables import moment, steps_of
from lucid.models import BERTConfig
from lucid.models.bert.memory import parameter_count
from lucid.training.config import RunConfig
from lucid.training.formatting import count, duration, quantity
from lucid.training.log.metrics import Entry


def summary(run: RunFacts) -> list[str]:
    """Return what a run is in three sentences: model and data, extent, and result."""
    return [text for text in (_origin(run), _extent(run), _result(run)) if text]


def shape(config: BERTConfig, parameters: int) -> str:
    """Return the shape of a model with so many parameters in words."""
    return (
        f"{parameters:,} parameters ({count(config.num_hidden_layers, 'layer')} of width "
        f"{config.hidden_size:,}, {count(config.num_attention_heads, 'attention head')}, a vocabulary of "
        f"{config.vocab_size:,} tokens)"
    )


def objectives(config: RunConfig) -> str:
    """Return what a run trains its model to do."""
    return "masked-language modelling (MLM)" + " and next-sentence prediction (NSP)" * config.data.nsp


def corpora_of(run: RunFacts) -> str:
    """Return the names of the corpora of a run."""
    folders = run.config.data.folders if run.config else []
    names = [corpus.name for corpus in run.corpora] or [path.name for path in folders]
    return ", ".join(names[:-1]) + " and " * (len(names) > 1) + "".join(names[-1:])


def started_from(config: RunConfig) -> str:
    """Return what the weights of a run began as."""
    for source, what in (
        (config.initial_model, "the model"),
        (config.initial_checkpoint, "weights and moments of"),
        (config.branch_from, "a branch of"),
    ):
        if source is not None:
            return f"{what} {source}"
    return "random weights"


def _origin(run: RunFacts) -> str:
    if run.config is None:
        return "A BERT, whose settings are not known."
    config = run.config
    return (
        f"A BERT with {shape(config.model, parameter_count(config.model))}, pretrained by {objectives(config)} on "
        f"{corpora_of(run)}, from {started_from(config)}."
    )


def _extent(run: RunFacts) -> str:
    parts = [steps_of(run)]
    if run.config is not None:
        train = run.config.train
        parts[0] += f" of {train.global_batch:,} {run.config.samples} of {run.config.data.sequence_length} tokens"
    if (tokens := run.last("tokens")) is not None:
        parts.append(f"{_in_words(tokens)} tokens without padding")
    if (epochs := run.last("epoch")) is not None:
        parts.append(f"{epochs:,.2f} epochs")
    if run.state is not None:
        parts.append(f"{duration(run.state.training_seconds)} of training")
    if run.ranks:
        parts[-1] += f" on {count(run.ranks, 'rank')}"
    return f"{status(run)}: {', '.join(parts)}."


def _in_words(number: float) -> str:
    """Return a large number as people say it: 771,547, 12.3 million."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:,.1f} {word}"
    return f"{number:,.0f}"


def status(run: RunFacts) -> str:
    """Return how far the run is, in a word or a few."""
    if run.attempts and run.attempts[-1].end is not None:
        return {"finished": "Finished", "stopped": "Stopped and saved", "failed": "Failed"}[run.attempts[-1].end.how]
    if run.attempts:
        return "Unfinished"
    return {True: "Finished", False: "Unfinished", None: "Trained"}[run.has_finished]


def _result(run: RunFacts) -> str:
    steps, losses = run.logged.points("held_out_mlm_loss")
    if not len(steps):
        return "Not evaluated on held-out documents yet." if run.logged.entries else ""
    text = f"Held-out MLM loss {losses[-1]:.3f} nats (perplexity {np.exp(min(losses[-1], 700)):,.1f})"
    for name, key in (("MLM", "held_out_mlm_accuracy"), ("NSP", "held_out_nsp_accuracy")):
        if (value := run.last(key)) is not None:
            text += f", {name} accuracy {value:.1%}"
    return f"{text}, after {count(int(steps[-1]), 'step')}."


def results(run: RunFacts) -> dict[str, str]:
    """Return losses in nats and accuracies, at the last evaluation and in the last line of training."""
    found: dict[str, str] = {}
    steps, _ = run.logged.points("held_out_mlm_loss")
    if len(steps):
        found["evaluated after step"] = f"{int(steps[-1]):,}"
    for label, key, form in _evaluated(run):
        if (value := run.last(key)) is not None:
            found[label] = form.format(value)
    if run.state is not None and run.state.best is not None:
        best = run.state.best
        found["least held-out loss (MLM + NSP)"] = f"{best.loss:.3f}, after step {best.step:,}"
    for label, key, form in (
        ("training MLM loss, last line", "mlm_loss", "{:.3f}"),
        ("training MLM accuracy, last line", "mlm_accuracy", "{:.1%}"),
        ("training NSP accuracy, last line", "nsp_accuracy", "{:.1%}"),
    ):
        if (value := run.last(key)) is not None:
            found[label] = form.format(value)
    return found


def _evaluated(run: RunFacts) -> Iterator[tuple[str, str, str]]:
    """Yield label, key and format of what evaluations have: of all corpora together, then of each, then of probes."""
    yield "held-out MLM loss", "held_out_mlm_loss", "{:.3f}"
    yield "the same by token frequency", "held_out_frequency_loss", "{:.3f}"
    yield "the same by bigrams", "held_out_bigram_loss", "{:.3f}"
    yield "held-out perplexity", "held_out_perplexity", "{:,.1f}"
    yield "held-out MLM accuracy", "held_out_mlm_accuracy", "{:.1%}"
    yield "held-out NSP loss", "held_out_nsp_loss", "{:.3f}"
    yield "held-out NSP accuracy", "held_out_nsp_accuracy", "{:.1%}"
    for name, key, form in (("MLM loss", "mlm_loss", "{:.3f}"), ("MLM accuracy", "mlm_accuracy", "{:.1%}")):
        prefix = f"held_out_{key}/"
        for of_corpus in run.logged.keys(prefix):
            yield f"held-out {name}, {of_corpus.removeprefix(prefix)}", of_corpus, form
    for key in run.logged.keys("probe/"):
        yield f"probe: {key.removeprefix('probe/')}", key, "{:.1%}"


def extent(run: RunFacts) -> dict[str, str]:
    """Return how long a run has trained."""
    found = {"state": status(run), "steps": steps_of(run)}
    if (samples := run.last("samples")) is not None:
        found["samples"] = f"{samples:,.0f}"
    if (tokens := run.last("tokens")) is not None:
        found["tokens, without padding"] = f"{tokens:,.0f}"
    if (epochs := run.last("epoch")) is not None:
        found["epochs"] = f"{epochs:,.2f}"
    if run.state is not None:
        found["time of steps"] = f"{duration(run.state.training_seconds)}, up to step {run.state.step:,}"
    if (skipped := run.last("skipped_steps")) is not None:
        found["steps skipped, gradient not finite"] = f"{skipped:,.0f}"
    if restarts := len(run.attempts) - 1 if run.attempts else len(run.logged.restarts):
        found["restarts"] = f"{restarts:,}"
    if (written := run.last("time")) is not None:
        found["last line of the log"] = moment(written)
    return found


def speed(run: RunFacts) -> dict[str, str]:
    """Return medians over the lines of the log of the last attempt: speeds, and waits as fractions of the time."""
    lines = run.logged.training
    if lines:
        lines = [line for line in lines if line.get("attempt") == lines[-1].get("attempt")]
    found = {}
    for key, label in (("sequences_per_second", "sequences/s"), ("tokens_per_second", "tokens/s")):
        if (value := _median(lines, key)) is not None:
            found[label] = f"{value:,.0f}"
    if (flops := _median(lines, "model_flops_per_second")) is not None:
        found["speed of the model"] = quantity(flops, "FLOP/s")
        if run.ranks and run.ranks > 1:
            found["the same, a rank"] = quantity(flops / run.ranks, "FLOP/s")
    for key, label in (
        ("data_wait", "waits for data, first rank"),
        ("communication_wait", "waits in collectives, mean of ranks"),
        ("communication_wait_max", "waits in collectives, longest of a rank"),
    ):
        if (value := _median(lines, key)) is not None:
            found[label] = f"{value:.1%}"
    return found


def _median(lines: list[Entry], key: str) -> float | None:
    values = [line[key] for line in lines if line.get(key) is not None]
    return float(np.median(values)) if values else None


def machine(run: RunFacts) -> dict[str, str]:
    """Return where the last attempt ran, and with which software."""
    found: dict[str, str] = {}
    if run.attempts:
        attempt = run.attempts[-1]
        found["ranks"] = f"{len(attempt.hosts):,} on {count(len(set(attempt.hosts)), 'host')}"
        for row in attempt.locations:
            where = f"{row.device}; cores {row.cores}, threads {row.threads}"
            found[f"rank{'s' * (not row.ranks.isdigit())} {row.ranks} on {row.hosts}"] = where
        if attempt.processor:
            found["processor of the first rank"] = attempt.processor
    elif run.ranks:
        found["ranks"] = f"{run.ranks:,}"
    found |= run.software
    if run.state is not None:
        found |= {name.replace("_", " "): value for name, value in run.state.numerics.items() if name != "numpy"}
    return found
