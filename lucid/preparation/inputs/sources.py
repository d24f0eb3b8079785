"""Finds the files that a corpus is made of, in the order in which they are read."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lucid.data.manifest import MANIFEST_NAME, TOKENIZER_FOLDER
from lucid.errors import DataError
from lucid.files import reason_of
from lucid.preparation.inputs.kinds import ID_KINDS, KNOWN, PYTHON_DOCS, TEXT, TEXT_KINDS, kind_by_content, kind_by_name
from lucid.preparation.inputs.saved_datasets import is_passed_over, listed_files
from lucid.unpacking import READ_ERRORS

STANDARD_INPUT, STANDARD_INPUT_NAME = "-", "the standard input"


@dataclass(frozen=True)
class Source:
    """One file, or the default corpus where `path` is None. `name` does not depend on the working directory.

    `kind` is one of those in `kinds`, `packing` one of `PACKINGS` or "". The text of a record or row is in `field`; it
    holds token ids instead if `holds_ids`. `size` (bytes) and `modified` (ns) describe the file as it was found: it
    must not change during the preparation. `number` is its place among all sources.
    """

    name: str
    path: str | None
    kind: str = PYTHON_DOCS
    packing: str = ""
    field: str = ""
    holds_ids: bool = False
    size: int = 0
    modified: int = 0
    number: int = dataclasses.field(default=0, compare=False)

    @property
    def shown(self) -> str:
        """The name that messages use."""
        return self.name if self.path is None or self.name == STANDARD_INPUT_NAME else self.path

    def check_unchanged(self) -> None:
        """Raise `DataError` if the file has changed since it was found, and `OSError` if it is gone."""
        if self.path is not None:
            status = os.stat(self.path)
            if (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
                raise DataError(f"{self.path} has changed while it was being prepared: start again when it is finished")


@dataclass(frozen=True)
class Choice:
    """How inputs are read: the names of the fields with text, and the kind of files whose names do not tell it.

    `text_field` is one name for all inputs, or a list of names of which those of the form `INPUT=NAME` are for one
    input. `ids_field` is the name of a field with token ids, which is read instead. `kind` is one of `TEXT_KINDS`
    without its dot.
    """

    text_field: str | Sequence[str] = "text"
    ids_field: str | None = None
    kind: str | None = None

    def field_of(self, entry: str, inputs: Sequence[str]) -> str:
        """Return the field of one of the inputs. Raises `DataError` if the choice is ambiguous or of no input."""
        if self.ids_field is not None:
            return self.ids_field
        texts = [self.text_field] if isinstance(self.text_field, str) else self.text_field
        general: list[str] = []
        own: list[str] = []
        for text in texts:
            # An input and a field may have "=" in their names: what counts is that the text begins with an input.
            named = [each for each in inputs if text.startswith(f"{each}=")]
            if named and entry == max(named, key=len):
                own.append(text.removeprefix(f"{entry}="))
            elif not named:
                general.append(text)
        for text in general:
            if "=" in text:
                raise DataError(f"--text-field {text!r} names no input: write it exactly as among the inputs")
        found = own or general or ["text"]
        if len(set(found)) > 1:
            raise DataError(
                f"--text-field gives {entry} the fields {', '.join(map(repr, found))}: give one, or INPUT=FIELD"
            )
        return found[0]

    def fields_of(self, sources: Sequence[Source]) -> str | list[str]:
        """Return the field with the text: one name if all sources share it, else one for each."""
        fields = ["text"] if self.ids_field is not None else [source.field for source in sources]
        return fields[0] if len(set(fields)) == 1 else fields


def find_sources(inputs: Sequence[str | Path], choice: Choice = Choice()) -> tuple[list[Source], list[Source]]:
    """Return the files of `inputs` in reading order, and the files of other kinds, which are passed over in folders.

    Inputs keep their order, and the files of a folder are sorted by path. `-` is the standard input: its source is of
    no kind yet. Raises `DataError` on an input that is missing, of an unknown kind, or without a file of a known kind.
    """
    if not inputs:
        raise DataError(f"no input was given: name files or folders of text, or {PYTHON_DOCS!r}")
    _check_choice(choice)
    names = list(map(str, inputs))
    if names.count(STANDARD_INPUT) > 1:
        raise DataError("the standard input (-) was named twice: it can be read only once")
    sources: list[Source] = []
    others: list[Source] = []
    for entry in names:
        path, field = Path(entry), choice.field_of(entry, names)
        if entry == PYTHON_DOCS:
            _check_holds_ids(PYTHON_DOCS, PYTHON_DOCS, choice)
            sources.append(Source(PYTHON_DOCS, None, field=field))
        elif entry == STANDARD_INPUT:
            sources.append(Source(STANDARD_INPUT_NAME, entry, "", field=field, holds_ids=choice.ids_field is not None))
        elif (path / MANIFEST_NAME).exists() and (path / TOKENIZER_FOLDER).exists():
            raise DataError(f"input {entry!r} is a prepared corpus: name the text that it was made of")
        elif path.is_dir():
            known, passed_over = _folder_sources(path, choice, field)
            sources += known
            others += passed_over
        elif not path.is_file():
            what = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise DataError(f"input {entry!r} {what}: check the path")
        else:
            sources.append(named_source(path.name, path, choice, field))
    return [dataclasses.replace(source, number=number) for number, source in enumerate(sources)], others


def _check_choice(choice: Choice) -> None:
    if choice.ids_field is not None and choice.text_field not in ("text", ["text"]):
        raise DataError("token ids (--ids-field) are read in place of text: leave out --text-field")
    formats = [kind.removeprefix(".") for kind in TEXT_KINDS]
    if choice.kind is not None and choice.kind not in formats:
        raise DataError(f"the format {choice.kind!r} is unknown: it is one of {', '.join(formats)}")


def _check_holds_ids(shown: str, kind: str, choice: Choice) -> None:
    if choice.ids_field is not None and kind not in ID_KINDS:
        raise DataError(f"{shown} cannot hold token ids (--ids-field): use {', '.join(ID_KINDS)}")


def named_source(name: str, path: Path, choice: Choice, field: str) -> Source:
    """Return the source for a file that is named as an input. Raises `DataError` if it is of an unknown kind."""
    shown = name if name == STANDARD_INPUT_NAME else f"input {str(path)!r}"
    kind, packing = kind_by_name(path.name)
    if kind is None and choice.kind is None:
        raise DataError(f"{shown} is of an unknown kind: use {KNOWN}, or say with --format what it is")
    if not kind:
        try:
            kind, packing = kind_by_content(path, choice.kind)
        except READ_ERRORS as error:
            raise DataError(f"{shown} cannot be read ({reason_of(error)}): get it again") from error
        if not path.stat().st_size:
            raise DataError(f"{shown} is empty: there is nothing to read")
        if kind is None:
            raise DataError(f"{shown} is neither text in UTF-8 nor a table: convert it, or leave it out")
    _check_holds_ids(shown, kind, choice)
    return _source(name, path, kind, packing, choice, field)


def _source(name: str, path: Path, kind: str, packing: str, choice: Choice, field: str) -> Source:
    status = path.stat()
    # The manifest is UTF-8: bytes of a file name that are not appear there as \\xff.
    name = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    holds_ids = choice.ids_field is not None
    return Source(name, str(path), kind, packing, field, holds_ids, status.st_size, status.st_mtime_ns)


def _folder_sources(folder: Path, choice: Choice, field: str) -> tuple[list[Source], list[Source]]:
    sources: list[Source] = []
    others: list[Source] = []
    paths = sorted(_files_below(folder))
    # Caches of downloads hold files under names without a suffix, and links to them under their own names.
    linked = {os.path.realpath(path) for path in paths if path.is_symlink()}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if not path.suffix and linked and not path.is_symlink() and os.path.realpath(path) in linked:
            continue
        kind, packing = _kind_in_folder(path, choice)
        (others if kind is None else sources).append(_source(name, path, kind or "", packing, choice, field))
    if not sources:
        names = ", ".join(other.name for other in others[:3])
        rest = f", but {len(others):,} of other kinds, such as {names}" if others else ""
        kinds = KNOWN if choice.ids_field is None else ", ".join(ID_KINDS)
        without = any(not Path(other.name).suffix for other in others[:3])
        advice = ": say with --format what files without a suffix are" * without
        raise DataError(f"input folder {str(folder)!r} holds no {kinds} file{rest}{advice}")
    return sources, others


def _kind_in_folder(path: Path, choice: Choice) -> tuple[str | None, str]:
    """Return the kind and the packing of a file in a folder; the kind is None if the file is to be passed over."""
    kind, packing = kind_by_name(path.name)
    if kind == "":
        try:
            kind, packing = kind_by_content(path, choice.kind)
        except READ_ERRORS:
            kind = None
        if kind == TEXT and choice.kind is None:  # a program's Makefile or LICENSE as likely as text for a model
            kind = None
    return (None if choice.ids_field is not None and kind not in ID_KINDS else kind), packing


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in and below `folder`, through links too, but none that is hidden by a dot before its name.

    Nor are those in hidden folders, such as the objects of git and the state of downloads.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"folder {error.filename!r} cannot be read ({error.strerror}): make it readable, or move it")

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        # Links may form a circle, or lead to one folder twice.
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from _files_of(Path(place), [name for name in names if not name.startswith(".")])


def _files_of(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    listed = listed_files(folder, names)
    for name in names:
        path, kind = folder / name, kind_by_name(name)[0]
        if is_passed_over(name, listed):
            continue
        if not kind:
            if path.is_file():
                yield path
        elif not path.exists():
            raise DataError(f"{str(path)!r} is a broken link: fix it or remove it")
        elif path.is_file():
            yield path
        elif not path.is_dir():
            raise DataError(f"{str(path)!r} is a pipe, a socket or a device, not a file: move it away")
