"""benchmarks/card_check.py tells the truth of the emulated GPU, and whatever happens to a part, finds the rest."""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_in.building import why_no_stand_in

ROOT = Path(__file__).parents[2]
needs_emulation = pytest.mark.skipif(why_no_stand_in() != "", reason=why_no_stand_in())


@pytest.fixture
def check(monkeypatch):
    """The script, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("card_check")


@pytest.fixture
def run(tmp_path):
    """Runs the script on the emulated GPU, and returns what it has found by part."""

    def found(*options, seconds, **variables):
        command = [sys.executable, str(ROOT / "benchmarks" / "card_check.py"), "--tiny", "--output", str(tmp_path)]
        environment = os.environ | variables
        finished = subprocess.run(
            [*command, *options], env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        results = json.loads((tmp_path / "results.json").read_text())
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert results["finished"]
        return results["parts"]

    return found


@needs_emulation
def test_the_gpu_and_its_products_are_described(run, tmp_path):
    parts = run("--only", "card", "products", seconds=120)
    names = {line["name"]: line["version"] for line in parts["card"]["results"]}
    assert names["card"].startswith("1 x Emulated GPU, sm_90")
    assert names["cuBLASLt"] == "130100"
    products = parts["products"]["results"]
    assert len(products) == 4 * 4
    for line in products:
        assert 0 < line["fastest_us"] <= line["first_us"]
        assert len(line["whole_us"]) == 3
        assert len(line["beside_us"]) == (0 if "gradient of" in line["product"] or "added" in line["product"] else 3)
    assert "| card | 1 x Emulated GPU" in (tmp_path / "results.md").read_text()


@needs_emulation
@pytest.mark.long
@pytest.mark.timeout(900)
def test_all_parts_are_gone_through(run, tmp_path):
    parts = run("--minutes", "12", seconds=800, EMULATED_GPUS="2")
    assert {name: part["status"] for name, part in parts.items() if "left out" not in part["status"]} == dict.fromkeys(
        ("card", "graphs", "ranks", "tests", "steps", "products", "races"), "done"
    )
    for name, ranks in (("graphs", 1), ("ranks", 2)):
        lines = parts[name]["results"]
        assert len(lines) == 12
        assert all(line["same"] and line["ranks"] == ranks and min(line["norms"]) > 0 for line in lines)
        assert {(line["micro_batches"], line["precision"], line["rows"]) for line in lines} == {
            (number, precision, rows)
            for number in (1, 2, 3)
            for precision in ("bfloat16", "float32")
            for rows in ("padded", "packed")
        }
    assert {line["outcome"] for line in parts["tests"]["results"]} == {"passed"}
    [turn] = [line for line in parts["steps"]["results"] if "turn" in line]
    assert turn["sequences_per_second"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output.log", "results.json", "results.md"]


MINUTES, HALF_OF_THEM = 10, 301.0


@pytest.fixture
def parts_are(check, monkeypatch, tmp_path):
    """Goes through the first parts, each of which is a program that is given, and returns what is found.

    No time passes, but that a program which writes to the file that is its second argument has taken half of it all.
    """
    hangs = tmp_path / "hangs"
    clock = SimpleNamespace(monotonic=lambda: HALF_OF_THEM if hangs.exists() else 0.0, sleep=time.sleep)

    def found(*programs):
        parts = [check.Part(f"part {number}", f"Part {number}", 1, ()) for number in range(len(programs))]
        monkeypatch.setattr(check, "PARTS", parts)
        monkeypatch.setattr(check.wanted, "ALL", {})

        def command(self, part, results):
            return [sys.executable, "-c", programs[parts.index(part)], str(results.path), str(hangs)]

        monkeypatch.setattr(check.Check, "_command", command)
        monkeypatch.setattr(check, "SECONDS_TO_PREPARE", 0)
        monkeypatch.setattr(check, "time", clock)
        of_all = check.Check(check.parse(["--output", str(tmp_path), "--minutes", str(MINUTES)]))
        good = of_all.run()
        return good, json.loads((tmp_path / "results.json").read_text())["parts"]

    return found


ADDS = "import sys; open(sys.argv[1], 'a').write('{\"found\": 1}\\n')\n"
HANGS = "open(sys.argv[2], 'w').close(); import signal; signal.pause()"


def test_a_part_that_hangs_leaves_what_it_has_found_and_the_next_its_time(parts_are):
    good, parts = parts_are(f"{ADDS}open(sys.argv[1], 'a').write('{{\"cut sho'); {HANGS}", ADDS)
    assert good
    assert parts["part 0"]["status"] == "stopped, as its time was over"
    assert parts["part 1"]["status"] == "done"
    assert [part["results"] for part in parts.values()] == [[{"found": 1}]] * 2


def test_what_is_wrong_counts_although_the_part_was_stopped(parts_are):
    wrong = "import sys; open(sys.argv[1], 'a').write('{\"same\": false}\\n'); "
    good, parts = parts_are(wrong + HANGS, ADDS)
    assert parts["part 0"]["status"] == "stopped, as its time was over"
    assert not good


def test_nothing_is_left_among_the_temporary_files(parts_are, monkeypatch, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert parts_are(ADDS)[0]
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("program", "count"),
    [
        ("print('some words of a library'); print(2)", 2), ("print('no number')", 0), ("", 0),
        ("print(2); raise SystemExit(1)", 0), ("import signal; signal.pause()", 0),
    ],
)  # fmt: skip
def test_cards_are_counted_once_whatever_is_printed(check, monkeypatch, tmp_path, program, count):
    asked, run = [], subprocess.run

    def instead(command, **settings):
        asked.append(command)
        # One that hangs need not be waited for.
        seconds = 1 if "pause" in program else None
        return run([sys.executable, "-c", program], **settings | {"timeout": settings["timeout"] and seconds})

    monkeypatch.setattr(check.subprocess, "run", instead)
    of_all = check.Check(check.parse(["--output", str(tmp_path)]))
    assert [of_all._cards, of_all._cards] == [count, count]
    assert len(asked) == 1


def test_a_part_that_fails_says_why_and_stops_no_other(parts_are):
    good, parts = parts_are("print('of the first alone')", ADDS + "sys.exit('the reason')", ADDS)
    assert not good
    assert parts["part 1"]["status"] == "failed"
    assert parts["part 1"]["results"] == [{"found": 1}]
    assert parts["part 1"]["output"] == ["the reason"]
    assert parts["part 2"]["status"] == "done"


def test_without_a_gpu_that_is_said_and_nothing_tried(check, monkeypatch, tmp_path):
    fails = [sys.executable, "-c", "raise SystemExit(1)"]
    monkeypatch.setattr(check.Check, "_command", lambda self, part, results: fails)
    monkeypatch.setattr(check.wanted, "ALL", {})
    of_all = check.Check(check.parse(["--output", str(tmp_path)]))
    assert not of_all.run()
    first, *others = [part["status"] for part in of_all.report.found["parts"].values()]
    assert first == "failed"
    assert set(others) == {"left out: there is no card that CuPy can use"}


def test_a_part_without_what_it_needs_is_left_out(check, monkeypatch, tmp_path):
    monkeypatch.setattr(check, "PARTS", [check.Part("one", "One", 1, ("made_up",))])
    monkeypatch.setattr(check.wanted, "ALL", {"made_up": "made-up", "json": "json"})
    of_all = check.Check(check.parse(["--output", str(tmp_path)]))
    assert of_all.run()
    assert of_all.report.found["parts"]["one"]["status"] == "left out: made_up cannot be imported"
    said = (tmp_path / "results.md").read_text()
    assert re.search(r"missing here: made_up; on a machine with a network, .* -d wheels made-up; then", said)


def wheel(folder, name, module):
    """Make a wheel of one module."""
    information = f"{name}-1.0.dist-info"
    files = {
        f"{module}.py": "import numpy\n",
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        record = archive.open(f"{information}/RECORD", "w")
        with record:
            record.write("".join(f"{path},,\n" for path in (*files, f"{information}/RECORD")).encode())


def test_what_is_missing_is_installed_from_wheels_beside_what_is_there(check, monkeypatch, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("lucid_one", "lucid_two"):
        wheel(wheels, name, f"{name}_module")
    monkeypatch.setattr(check.wanted, "ALL", {"lucid_one_module": "lucid-one", "numpy": "numpy"})
    assert list(check.wanted.missing(sys.executable, check.wanted.ALL, os.environ)) == ["lucid_one_module"]
    python = check.wanted.install(wheels, ["lucid_one_module"], tmp_path / "environment")
    assert check.wanted.missing(python, check.wanted.ALL, os.environ) == {}
    # Nobody has missed the other.
    assert list(check.wanted.missing(python, ["lucid_two_module"], os.environ)) == ["lucid_two_module"]


@pytest.fixture
def modules(tmp_path):
    """Modules that do what they should not when they are imported, and the environment to find them in."""
    for name, text in {
        "ends_it": "import os; os.write(2, b'the reason'); os._exit(3)",
        "talks_at_the_end": "import atexit; atexit.register(print, 'good bye')",
        "hangs_there": "import signal; signal.pause()",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def test_a_module_that_ends_the_process_is_missing_and_no_other(check, modules):
    names = ["json", "ends_it", "talks_at_the_end", "made_up", "numpy"]
    missing = check.wanted.missing(sys.executable, names, modules)
    assert missing == {
        "ends_it": "the import ended the process with status 3: the reason",
        "made_up": "ModuleNotFoundError: No module named 'made_up'",
    }


def test_a_module_that_hangs_is_missing(check, modules, monkeypatch):
    monkeypatch.setattr(check.wanted, "SECONDS_FOR_ALL", 1)
    monkeypatch.setattr(check.wanted, "SECONDS_FOR_ONE", 1)
    missing = check.wanted.missing(sys.executable, ["hangs_there"], modules)
    assert missing == {"hangs_there": "the import took more than 1 s"}


def test_all_that_lucid_asks_for_is_looked_for(check):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {check.wanted.normal(re.split("[<>=;]", each)[0].strip()) for each in settings["dependencies"]}
    looked_for = {check.wanted.normal(each) for each in check.wanted.ALL.values()}
    # oneDNN is for CPUs, and its wheel has no module.
    assert asked - {"onednn-cpu-gomp"} <= looked_for


def test_help_says_what_to_bring(check, capsys):
    with pytest.raises(SystemExit):
        check.parse(["--help"])
    said = capsys.readouterr().out
    assert re.search(r"pip download --only-binary .* -d wheels \\\n +pydantic", said)
