"""Tables of a run's facts as text: the same for a page, for a model card, and for several runs side by side."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lucid.analysis.report.facts import RunFacts
from lucid.training.attempts import AttemptRecord, CorpusRecord
from lucid.training.formatting import count, duration

# What stands where a run has no value.
NONE = "–"
# A number, perhaps with its unit, or of another number.
_NUMBER = re.compile(r"[−-]?\d[\d,.]*(%| [A-Za-z/]+)?( of \d[\d,]*)?")


@dataclass(frozen=True)
class Table:
    """A table: a name for each column, "" for none, and rows of as many texts."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def is_numeric(self, column: int) -> bool:
        """Return whether all values of a column are numbers, which are aligned to the right."""
        texts = [row[column] for row in self.rows if row[column] not in ("", NONE)]
        return bool(texts) and all(map(_NUMBER.fullmatch, texts))

    def without_empty_columns(self) -> "Table":
        """Return the table without the columns in which no row has a value."""
        kept = [place for place in range(len(self.columns)) if any(row[place] not in ("", NONE) for row in self.rows)]
        return Table(_chosen(self.columns, kept), tuple(_chosen(row, kept) for row in self.rows))


def _chosen(texts: tuple[str, ...], places: Sequence[int]) -> tuple[str, ...]:
    return tuple(texts[place] for place in places)


def side_by_side(names: Sequence[str], facts: Sequence[dict[str, str]]) -> Table:
    """Return a table with a row for each label, and a column for each run; a single run's has no name."""
    labels = list(dict.fromkeys(label for each in facts for label in each))
    rows = tuple((label, *(each.get(label, NONE) for each in facts)) for label in labels)
    return Table(("", *(names if len(facts) > 1 else ("",))), rows)


def attempts_table(run: RunFacts) -> Table:
    """Return the attempts of a run, in order; of a run that noted none, what its log says."""
    rows = [_attempt_row(attempt, run) for attempt in run.attempts] or _attempts_in_log(run)
    return Table(("attempt", "began", "steps", "ranks", "hosts", "ended"), tuple(rows)).without_empty_columns()


def _attempt_row(attempt: AttemptRecord, run: RunFacts) -> tuple[str, ...]:
    hosts = list(dict.fromkeys(attempt.hosts))
    end, is_last = attempt.end, attempt is run.attempts[-1]
    entries = [entry["step"] for entry in run.logged.entries if entry.get("attempt") == attempt.number]
    last = end.step if end else max([attempt.first_step, *entries])
    if end is None:
        how = "not noted: it still runs, or was killed" if is_last else "not noted: it was killed"
    else:
        lasted = duration(end.time - attempt.began)
        how = f"{end.how} after {lasted}" + (f": {end.message}" if end.message else "")
    steps = f"{attempt.first_step:,} to {last:,}" if last > attempt.first_step else "none"
    shown = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
    return str(attempt.number), moment(attempt.began), steps, f"{len(attempt.hosts):,}", shown, how


def _attempts_in_log(run: RunFacts) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    numbers = sorted({entry["attempt"] for entry in run.logged.entries if entry.get("attempt")})
    for number in numbers:
        lines = [entry for entry in run.logged.entries if entry.get("attempt") == number]
        steps = [line["step"] for line in lines]
        times = [line["time"] for line in lines if line.get("time")]
        first = moment(min(times)) if times else NONE
        rows.append((f"{number:.0f}", first, f"lines of steps {min(steps):,} to {max(steps):,}", "", "", ""))
    return rows


def checkpoints_table(run: RunFacts) -> Table:
    """Return the checkpoints that are there, the oldest first."""
    rows = []
    for each in run.checkpoints:
        marks = ["best"] * each.is_best + ["newest"] * (each is run.checkpoints[-1])
        loss = NONE if each.loss is None else f"{each.loss:.3f}"
        rows.append((f"{each.step:,}", each.folder.name, loss, f"{each.bytes / 1e6:,.1f} MB", ", ".join(marks)))
    columns = "step", "folder", "held-out loss (MLM + NSP)", "size", ""
    return Table(columns, tuple(rows)).without_empty_columns()


def corpora_table(corpora: Sequence[CorpusRecord]) -> Table:
    """Return what the corpora of a run hold, with a column for each."""
    return side_by_side([corpus.name for corpus in corpora], [_corpus(corpus, len(corpora) > 1) for corpus in corpora])


def _corpus(corpus: CorpusRecord, with_share: bool) -> dict[str, str]:
    preparation = corpus.preparation
    found = {} if with_share else {"corpus": corpus.name}
    found |= {"share in the samples": f"{corpus.share:.1%}"} if with_share else {}
    found |= {
        "documents, for training": f"{corpus.documents:,}",
        "documents, held out": f"{corpus.held_out_documents:,}",
        "sentences": f"{corpus.sentences:,}",
        "tokens": f"{corpus.tokens:,}",
    }
    if corpus.words and corpus.tokens:
        found["tokens a word"] = f"{corpus.tokens / corpus.words:.2f}"
        found["unknown tokens"] = f"{corpus.unknown / corpus.tokens:.2%}"
    found["vocabulary"] = f"{corpus.vocab_size:,} tokens"
    found["tokenizer"] = "given" if preparation.get("tokenizer") else "trained on this text"
    if preparation.get("normalisation"):
        found["text"] = str(preparation["normalisation"])
    if preparation.get("language"):
        found["sentences end as in"] = str(preparation["language"])
    return found


def moment(seconds: float) -> str:
    """Return a time, seconds since 1970, for people; of a damaged log it may be no time."""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return NONE


def steps_of(run: RunFacts) -> str:
    """Return how many steps a run took, of how many."""
    if run.config is None:
        return count(run.step, "step")
    return f"{run.step:,} of {count(run.config.train.steps, 'step')}"
