"""Many processes train as one does, and one that is lost ends the others with an error."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
SHORT = ["--epochs", "3", "--optimizer", "sgd", "--learning-rate", "0.1"]
BOUND = 120  # seconds: longer than any of these takes on a busy machine, and not for ever


def launch(*options):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "train.py", *map(str, options)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(*processes):
    """(status, output) of each; none outlives the test."""
    try:
        return [(p.communicate(timeout=BOUND)[0], p.returncode)[::-1] for p in processes]
    finally:
        for process in processes:
            process.kill()


def among(processes):
    """The options that they share."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ["--coordinator", f"127.0.0.1:{port}", "--num-processes", processes]


def history(folder):
    return json.loads((folder / "metrics.json").read_text())["history"]


def test_two_processes_of_two_devices_end_as_one_process_does(tmp_path):
    shared = [*SHORT, "--devices", 4, *among(2), "--run-dir", tmp_path / "two"]
    alone = launch(*SHORT, "--run-dir", tmp_path / "one")
    pair = [launch(*shared, "--process-id", i) for i in range(2)]
    ended = end(alone, *pair)
    assert [status for status, _ in ended] == [0, 0, 0], ended
    assert "test accuracy" in ended[1][1]
    assert "test accuracy" not in ended[2][1]  # process 0 prints and saves
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)
    assert one["test_accuracy"] == two["test_accuracy"]


def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    saved = ["--optimizer", "sgd", "--save-every", 1, "--run-dir", tmp_path / "a"]
    first = end(launch(*saved, "--epochs", 1, "--devices", 4))
    last = end(launch(*saved, "--epochs", 2, "--devices", 2, "--resume"))
    whole = end(launch("--optimizer", "sgd", "--epochs", 2, "--run-dir", tmp_path / "b"))
    assert [status for status, _ in first + last + whole] == [0, 0, 0], (first, last, whole)
    assert "resumed at step 44" in last[0][1]
    a, b = history(tmp_path / "a"), history(tmp_path / "b")
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_a_killed_process_ends_the_other_with_an_error(tmp_path):
    shared = ["--epochs", 100000, "--devices", 2, *among(2), "--run-dir", tmp_path]
    pair = [launch(*shared, "--patience", 20, "--process-id", i) for i in range(2)]
    try:
        for line in pair[0].stdout:
            if "examples" in line:
                break
        time.sleep(2)
        pair[1].kill()
        ((status, output),) = end(pair[0])
    finally:
        end(pair[1])
    assert status not in (0, None)
    assert "process is lost" in output or "JAX distributed" in output, output


def test_a_process_too_few_is_an_error(tmp_path):
    shared = ["--devices", 3, "--batch", 30, *among(3), "--run-dir", tmp_path, "--patience", 5]
    ended = end(*(launch(*shared, "--process-id", i) for i in range(2)))
    assert all(status != 0 for status, _ in ended), ended


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([*among(2), "--devices", 2, "--process-id", 1, "--patience", 0], "Connection refused"),
        ([*among(2), "--devices", 3, "--batch", 30], "not a multiple of --num-processes 2"),
        (["--devices", 5], "--batch is 32, not a multiple of --devices 5"),
    ],
    ids=["unreachable coordinator", "devices among processes", "batch among devices"],
)
def test_what_cannot_work_is_said_in_a_sentence(options, sentence):
    ((status, output),) = end(launch(*options))
    assert status == (1 if "refused" in sentence else 2)  # 2 is tyro's, for the options themselves
    assert sentence in " ".join(output.replace("│", " ").split())  # out of tyro's box
