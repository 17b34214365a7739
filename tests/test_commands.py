"""Every script as a command: its help, what it says to wrong arguments, and while it works."""

import dataclasses
import importlib
import pathlib
import re
import runpy
import signal
import sys
import time
import typing

import as_script
import pytest
from as_script import SCRIPTS

# All that a person runs: not the explorer, which marimo runs, nor what they import first.
COMMANDS = [
    path.name
    for path in sorted(SCRIPTS.glob("*.py"))
    if path.name not in ("command.py", "explorer.py")
]
NUMBER = r"(\d+|two|three|five|ten|fifteen|twenty|some|few)"
DURATION = re.compile(rf"{NUMBER} (seconds|minutes)|a minute")
LONG = re.compile(r"(ten|fifteen|twenty|thirty|\d\d) seconds|minute")


@pytest.mark.parametrize("name", [*COMMANDS, "explorer.py"])
def test_help_says_what_a_script_does_and_how_long_it_takes(name):
    if name == "explorer.py":
        pytest.importorskip("marimo")
    done = as_script.run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"(python|marimo run) scripts/{name}", done.stdout)
    assert DURATION.search(" ".join(done.stdout.split()))


def wrong(field: dataclasses.Field, kind: object, file: pathlib.Path) -> list[list[object]]:
    """What cannot be the value of an option of this type: no word, no number below 0, no NaN."""
    inner = typing.get_args(kind) or (kind,)
    found: list[list[object]] = []
    if bool in inner:
        return found
    if int in inner or float in inner:
        found += [["many"]] + [["-1"]] * (field.name not in ("seed", "argnums", "x", "y"))
    if float in inner:
        found += [["nan"]]
    if pathlib.Path in inner:
        found += [[file]]
    some = typing.get_origin(kind) is tuple and field.default and field.name != "argnums"
    return (found or [["nonsense"]]) + [[]] * bool(some)


def cases(name: str, file: pathlib.Path) -> list[list[object]]:
    """Wrong command lines of a script: an option that there is not, and each that there is."""
    options = runpy.run_path(str(SCRIPTS / name), run_name="not main").get("Options")
    kinds = typing.get_type_hints(options) if options else {}
    fields = dataclasses.fields(options) if options else ()
    return [["--nonsense"]] + [
        ["--" + field.name.replace("_", "-"), *values]
        for field in fields
        for values in wrong(field, kinds[field.name], file)
    ]


class WentOn(Exception):
    """The script took a wrong argument and began to work."""


@pytest.fixture
def soon():
    """Whatever is not over within some seconds has not refused its arguments."""

    def late(*_):
        raise WentOn

    before = signal.signal(signal.SIGALRM, late)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 20)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_argument_ends_in_one_sentence(name, tmp_path, monkeypatch, soon):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for case in cases(name, tmp_path / "file"):
        soon()
        done = as_script.run(name, *case)
        said = " ".join(done.stderr.split())
        assert done.returncode in (1, 2), case
        assert "Traceback" not in said, (case, said)
        sentences = said.count("For full helptext") or len(done.stderr.strip().splitlines())
        assert sentences == 1, (case, done.stderr)
        assert any(part.strip("-") in said for part in map(str, case)), (case, said)


def test_a_script_that_takes_longer_than_five_seconds_tells_what_it_does():
    for name in sorted({*COMMANDS} - {"where_is_my_nan.py"}):  # which prints each trap as it ends
        text = (SCRIPTS / name).read_text()
        if LONG.search(text.split('"""')[1]):
            assert "@told\n" in text or "Progress(" in text, name


def test_what_is_being_done_is_told_until_it_is_done(monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    progress = importlib.import_module("parts.progress")
    monkeypatch.setattr(progress, "PAUSE", 0.02)
    monkeypatch.setattr(progress.command, "STARTED", time.monotonic())

    @progress.told
    def work(seconds):
        progress.doing("counting")
        time.sleep(seconds)
        return 3

    assert work(0.0) == 3
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress.command, "STARTED", time.monotonic())
    assert work(0.2) == 3
    time.sleep(0.1)
    said = capsys.readouterr().err.splitlines()
    assert set(said) == {"  0 s: counting"}
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_extra_is_named_in_one_sentence(name, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", None)
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.delitem(sys.modules, "command", raising=False)
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(ModuleNotFoundError) as missing:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    command = sys.modules["command"]
    assert sys.excepthook is command.told
    said = 'tyro is not installed: pip install "jaxbackprop[scripts]"'
    assert command.sentence(missing.value) == said


def test_what_a_user_cannot_mend_keeps_its_traceback(monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    told = importlib.import_module("command").told
    monkeypatch.setattr(sys, "argv", ["scripts/some.py"])
    told(ValueError, ValueError("--rounds is 0"), None)
    assert capsys.readouterr().err == "some.py: --rounds is 0\n"
    told(KeyError, KeyError("x"), None)
    told(ModuleNotFoundError, ModuleNotFoundError("No", name="ours"), None)
    assert capsys.readouterr().err.splitlines() == ["KeyError: 'x'", "ModuleNotFoundError: No"]
