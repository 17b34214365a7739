"""The scripts do what the README says: one run as a user starts it, the others in this process."""

import importlib.util
import json
import subprocess
import sys

import jax
import pytest
from as_script import SCRIPTS, run
from test_data import write_folder


def test_the_defaults_learn_the_digits_to_97_per_cent(tmp_path):
    command = [sys.executable, SCRIPTS / "train.py", "--run-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["history"]["test_accuracy"][-1] >= 0.97
    assert len(record["history"]["loss"]) == 40


def test_manual_and_automatic_runs_end_within_rounding(tmp_path):
    losses = []
    for gradient in ("manual", "automatic"):
        folder = tmp_path / gradient
        done = run("train.py", "--gradient", gradient, "--epochs", 5, "--run-dir", folder)
        assert done.returncode == 0, done.stderr
        losses.append(json.loads((folder / "metrics.json").read_text())["history"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_checkpointed_run_ends_within_rounding_of_the_plain_one(tmp_path):
    losses = []
    for options in ([], ["--checkpoint", "every:2"], ["--checkpoint", "64KiB"]):
        sizes = ("--sizes", 64, 32, 32, 32, 32, 10)
        done = run("train.py", *sizes, *options, "--epochs", 2, "--run-dir", tmp_path)
        assert done.returncode == 0, done.stderr
        losses.append(json.loads((tmp_path / "metrics.json").read_text())["history"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_a_run_draws_its_gradient_flow(tmp_path):
    done = run("train.py", "--flow", "--epochs", 2, "--save-every", 2, "--run-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    again = run("train.py", "--flow", "--epochs", 1, "--resume", "--run-dir", tmp_path)
    assert "--epochs is 1, the run in" in again.stderr
    assert "has 2 already" in again.stderr
    assert (tmp_path / "gradient_flow.png").read_bytes().startswith(b"\x89PNG")
    flow = json.loads((tmp_path / "metrics.json").read_text())["history"]["flow"]
    assert [len(epoch["weights"]) for epoch in flow] == [2, 2]


@pytest.mark.parametrize(
    ("script", "options", "says"),
    [
        ("feedback_alignment.py", ["--epochs", 2, "--hidden", 8], "feedback alignment"),
        ("per_example_benchmark.py", ["--batch", 4, "--rounds", 1], "vmap"),
        (
            "private_training.py",
            ["--clips", 1, "--noises", 0, 1, "--epochs", 1],
            "no privacy budget was counted",
        ),
        ("which_examples.py", ["--epochs", 3], "labels are wrong"),
        (
            "checkpoint_tradeoff.py",
            ["--depth", 20, "--width", 8, "--batch", 64, "--rounds", 1, "--no-bars"],
            "every(4)",
        ),
    ],
)
def test_the_scripts_that_measure_run(script, options, says, tmp_path):
    draws = "benchmark" not in script
    done = run(script, *options, *(["--write", tmp_path] if draws else []))
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert "does NOT fit" not in done.stdout
    figure = (tmp_path / script).with_suffix(".png")
    assert not draws or figure.read_bytes().startswith(b"\x89PNG")


def test_nothing_that_git_tracks_is_written_unless_asked():
    for script in SCRIPTS.glob("*.py"):
        assert 'Path("docs' not in script.read_text(), script


def test_flow_is_not_drawn_of_a_run_that_began_without_it(tmp_path):
    done = run("train.py", "--epochs", 1, "--save-every", 1, "--run-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("train.py", "--flow", "--epochs", 2, "--resume", "--run-dir", tmp_path)
    assert "--flow draws every epoch" in done.stderr


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").touch()
    done = run("train.py", "--run-dir", tmp_path / "file")
    assert done.returncode == 1
    assert "epoch" not in done.stdout
    assert "File exists" in done.stderr
    assert "Traceback" not in done.stderr


def test_trains_on_a_folder_of_idx_files(tmp_path):
    write_folder(tmp_path)
    done = run(
        *("train.py", "--data-dir", tmp_path, "--sizes", 6, 5, 3, "--batch", 2, "--epochs", 1),
        *("--optimizer", "momentum", "--hidden", "tanh", "--run-dir", tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "rellu"], "did you mean 'relu'?"),
        (["--optimizer", "adamm"], "--optimizer adamm: optax has nothing of that name, but adam"),
        (["--sizes", "63", "10"], "--sizes begins with 63, an example has 64"),
        (["--sizes", "64", "9"], "expected 0 … 8"),
        (["--batch", "0"], "--batch is 0"),
        (["--data-dir", "/nowhere"], "/nowhere has no train-images"),
        (["--optimizer", "sgd", "--learning-rate", "1e30"], "dot_general at forward.py:"),
        (["--checkpoint", "12"], "no plan for (64, 128, 10), batch 32, float32 fits 12 bytes"),
        (["--checkpoint", "every:0"], "expected a whole number ≥ 1"),
        (["--checkpoint", "some"], "'some' is no number of bytes, such as 67108864"),
        (["--memory-limit", "300KiB"], "the limit is 0.3 MiB: no --checkpoint fits"),
        (
            ["--memory-limit", "2MiB", "--batch", "512", "--sizes", "64", *["32"] * 30, "10"],
            "KiB fits",
        ),
        (["--memory-limit", "much"], "'much' is no number of bytes"),
        (["--flow", "--gradient", "automatic"], "--flow looks at every δ"),
    ],
)
def test_a_run_that_cannot_be_ends_in_one_sentence(options, message, tmp_path):
    done = run("train.py", *options, "--epochs", 2, "--run-dir", tmp_path)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--hidden", "gelu", "--output", "softmax", "--loss", "cross_entropy"],
        ["--hidden", "relu", "--output", "sigmoid", "--loss", "binary_cross_entropy"],
        ["--dtype", "float64", "--output", "identity"],
    ],
)
def test_comparing_gradients_ends_well(options):
    done = run("compare_gradients.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all equal" in done.stdout


def test_comparing_a_wrong_gradient_ends_with_status_1():
    spec = importlib.util.spec_from_file_location("compare", SCRIPTS / "compare_gradients.py")
    compare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare)
    right = compare.backprop

    def wrong(network, params, x, y):
        cost, gradients = right(network, params, x, y)
        return cost, jax.tree.map(lambda g: 1.01 * g, gradients)

    with jax.enable_x64(True):
        assert compare.main(compare.Options())
        compare.backprop = wrong
        assert not compare.main(compare.Options())
