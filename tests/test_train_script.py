"""What scripts/train.py says of a run, and where its numbers go."""

import csv
import importlib
import json
import pathlib
import sys
import types

import numpy as np
import pytest

from jaxbackprop.training.data import Split

SCRIPTS = pathlib.Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def script():
    """The modules of scripts/train.py, by name."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        names = ("train", "train_parts.options", "train_parts.task", "train_parts.log")
        found = {name.rpartition(".")[2]: importlib.import_module(name) for name in names}
        yield types.SimpleNamespace(**found)
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture
def trained(script, monkeypatch, tmp_path, capsys, untyped):
    """A run of the script: what it printed, and the record that it left."""
    monkeypatch.setattr(script.train, "listen", list)

    def run(**options):
        script.train.run(script.options.Options(run_dir=tmp_path, **options))
        return capsys.readouterr().out, json.loads((tmp_path / "metrics.json").read_text())

    return run


def test_the_record_holds_typed_values_and_the_time_to_compile_apart(trained):
    said, record = trained(epochs=2, batch=256)
    options, history = record["options"], record["history"]
    assert options["learning_rate"] == 2e-3
    assert options["flow"] is False
    assert options["checkpoint"] is None
    assert len(history["compile_seconds"]) == 1
    assert max(history["seconds"]) < history["compile_seconds"][0]
    assert "s to compile" in said


def test_a_run_that_diverges_is_told_once_with_another_rate(trained):
    said, _ = trained(epochs=3, optimizer="sgd", learning_rate=50.0, batch=128)
    assert said.count("at the first step it was") == 1
    assert "no better than guessing: 13.1% of the tests" in said
    assert "--learning-rate 5" in said.replace("\n", " ")


def test_a_run_that_learns_is_not_called_a_guess(trained):
    said, _ = trained(epochs=3, batch=128)
    assert "at the first step" not in said
    assert "guessing" not in said


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adamm", "--optimizer adamm: optax has nothing of that name, but adam"),
        ("lbfgs", "--optimizer lbfgs: TypeError in optax: .*missing 3 required keyword-only"),
        ("linear_schedule", "--optimizer linear_schedule: TypeError in optax: .*end_value"),
    ],
)
def test_what_optax_says_of_an_optimizer_is_shown(script, name, says):
    with pytest.raises(ValueError, match=says):
        script.task.make_optimizer(name, 0.1)


def splits(*labels):
    return tuple(
        Split(np.zeros((len(l), 1), np.float32), np.array(l), range(len(l))) for l in labels
    )


@pytest.mark.parametrize("classes", [None, 3])
def test_labels_that_begin_at_1_are_taken_from_0_on_and_it_is_said(script, classes):
    with pytest.warns(UserWarning, match="labels begin at 1: 1 … 3 are classes 0 … 2"):
        found = script.task.from_zero(splits([1, 3, 2], [2, 1]), classes)
    assert [split.labels.tolist() for split in found] == [[0, 2, 1], [1, 0]]


@pytest.mark.parametrize(("labels", "classes"), [(([0, 2], [1, 1]), None), (([1, 3], [2, 1]), 4)])
def test_other_labels_are_left_as_they_are(script, labels, classes):
    given = splits(*labels)
    assert script.task.from_zero(given, classes) is given


HISTORY = {
    "epoch": [1, 2],
    "loss": [0.5, 0.25],
    "train_accuracy": [0.75, 1.0],
    "test_accuracy": [0.5, 0.75],
}


def test_a_table_holds_each_epoch_once(script, tmp_path):
    log = script.log.logger("csv", tmp_path)
    log(HISTORY)
    log(HISTORY)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["loss"] for row in rows] == ["0.5", "0.25"]


def test_tensorboard_gets_the_last_epoch(script, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    at_exit = []
    monkeypatch.setattr(script.log.atexit, "register", at_exit.append)
    script.log.logger("tensorboard", tmp_path)(HISTORY)
    for close in at_exit:
        close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"test_accuracy" in events.read_bytes()


def test_wandb_gets_the_last_epoch(script, tmp_path, monkeypatch):
    seen = []
    run = types.SimpleNamespace(log=lambda numbers, step: seen.append((step, numbers)))
    wandb = types.SimpleNamespace(init=lambda project, dir: run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    script.log.logger("wandb", tmp_path)(HISTORY)
    assert seen == [(2, {"loss": 0.25, "train_accuracy": 1.0, "test_accuracy": 0.75})]


def test_a_library_that_is_missing_is_named(script, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="--log needs wandb: pip install wandb"):
        script.log.logger("wandb", tmp_path)
