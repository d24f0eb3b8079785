"""Printing never fails a command: not where nobody reads, not in another encoding, not where nothing can be written."""

import os
import subprocess
import sys

import pytest

from lucid import output

PRINTS = "from lucid import output; output.set_up(); print({text!a}); print(repr(output.lost()))"


def run(program, **named):
    environment = os.environ | named.pop("variables", {})
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, timeout=60, check=False, **named
    )


@pytest.mark.parametrize(
    ("encoding", "printed"), [("utf-8", b"\xc3\xbc \xff"), ("ascii", b"\\xfc \xff"), ("latin-1", b"\xfc \xff")]
)
def test_what_the_encoding_lacks_is_escaped_and_names_of_files_keep_their_bytes(encoding, printed):
    program = PRINTS.format(text="ü " + os.fsdecode(b"\xff"))
    finished = run(program, stdout=subprocess.PIPE, variables={"PYTHONIOENCODING": encoding})
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout == printed + b"\nNone\n"


SAYS_WHAT_IS_LOST = """
import sys
from lucid import output
output.set_up()
for number in range(20_000):
    print(number)
print("lost", output.lost(), file=sys.stderr)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_and_a_reader_that_has_gone_are_noted_and_raise_nothing(unbuffered):
    variables = {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        finished = run(SAYS_WHAT_IS_LOST, stdout=full, variables=variables)
    assert (finished.returncode, finished.stderr) == (0, b"lost [Errno 28] No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    finished = run(SAYS_WHAT_IS_LOST, stdout=writer, variables=variables)
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (0, b"lost [Errno 32] Broken pipe\n")


def test_a_file_does_not_take_the_place_of_a_closed_output(tmp_path):
    program = f"""
from lucid import output
output.set_up()
import os, sys
with open({str(tmp_path / "file")!r}, "w") as file:
    print("not in the file")
    print("nor this", file=sys.stderr)
    os.write(1, b"nor that")
    file.write("in the file")
"""
    finished = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -c "$0" >&- 2>&-', program], timeout=60, check=False
    )
    assert finished.returncode == 0
    assert (tmp_path / "file").read_text() == "in the file"


def test_a_stream_in_memory_stays_where_it_is(capsys):
    before = sys.stdout
    output.set_up()
    print("words")
    assert sys.stdout is before
    assert (capsys.readouterr().out, output.lost()) == ("words\n", None)
