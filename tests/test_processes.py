"""Many processes train as one does, and one that is lost ends the others with an error."""

import json
import re
import shutil
import signal
import socket
import time

import forked
import numpy as np
import orbax.checkpoint as ocp
import pytest
from forked import end

from jaxbackprop import rows

LISTENS = 0.3  # seconds: signals are listened to as soon as the examples are told
SHORT = ["--epochs", "3", "--optimizer", "sgd", "--learning-rate", "0.1"]


@pytest.fixture
def launch(tmp_path_factory):
    """Begin scripts/train.py with options."""
    started, logs = [], tmp_path_factory.mktemp("logs")

    def begin(*options, first=None):
        log = logs / str(len(started))
        started.append(forked.start(log, forked.SCRIPTS / "train.py", *options, first=first))
        return started[-1]

    yield begin
    for running in started:
        running.process.kill()


def anothers_share():
    """A planted fault: each process reads from the beginning of the files."""
    right = rows.share
    rows.share = lambda examples, devices: range(len(right(examples, devices)))


def among(processes):
    """The options that they share."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ["--coordinator", f"127.0.0.1:{port}", "--num-processes", processes]


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def history(folder):
    return metrics(folder)["history"]


def parameters(folder):
    """Of the newest saved state."""
    places = [place for place in (folder / "states").iterdir() if place.name.isdecimal()]
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(max(places, key=lambda place: int(place.name)) / "arrays")
    return {name: array for name, array in arrays.items() if name.startswith(".params")}


def write_images(folder):
    """MNIST's four files, of 203 images for training and 40 for testing, a class each row."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 203), ("t10k", 40)):
        labels = rng.integers(0, 3, count, dtype="u1")
        images = rng.integers(0, 256, (count, 6, 5), dtype="u1")
        images[np.arange(count), labels] |= 128
        for name, kind, array in (("images", "idx3", images), ("labels", "idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{part}-{name}-{kind}-ubyte").write_bytes(head + array.tobytes())


def test_two_processes_of_two_devices_end_as_one_process_does(tmp_path, launch):
    """Each reads its share of the files, which is not the half: 203 is no multiple of 4."""
    write_images(tmp_path)
    own = ["--data-dir", tmp_path, "--batch", 8, *SHORT, "--save-every", 3]
    shared = [*own, "--devices", 4, *among(2), "--run-dir", tmp_path / "two"]
    alone = launch(*own, "--run-dir", tmp_path / "one")
    pair = [launch(*shared, "--process-id", i) for i in range(2)]
    ended = end(alone, *pair)
    assert [status for status, _ in ended] == [0, 0, 0], ended
    assert "test accuracy" in ended[1][1]
    assert "test accuracy" not in ended[2][1]  # process 0 prints and saves
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)
    assert one["test_accuracy"] == two["test_accuracy"]
    run = [*own[:-2], "--devices", 2, *among(2), "--run-dir", tmp_path / "wrong"]
    wrong = [launch(*run, "--process-id", i, first=anothers_share) for i in range(2)]
    assert [status for status, _ in end(*wrong)] == [0, 0]
    assert abs(history(tmp_path / "wrong")["loss"][0] / one["loss"][0] - 1) > 1e-3
    one, two = parameters(tmp_path / "one"), parameters(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        gap = np.linalg.norm(one[name] - two[name])
        assert 0 < gap <= 1e-5 * np.linalg.norm(one[name]), name


def test_a_run_of_two_processes_is_stopped_and_goes_on(tmp_path, launch):
    """To the same bits in two processes, and within rounding in one of two devices."""
    shared = [*SHORT[2:], "--save-every", 1000, "--devices", 2]

    def pair(folder, *options):
        joint = [*shared, *among(2), "--run-dir", tmp_path / folder, *options]
        return [launch(*joint, "--process-id", i) for i in range(2)]

    running = pair("stopped", "--epochs", 100000)
    running[0].until("examples")
    time.sleep(LISTENS)
    running[1].receive(signal.SIGTERM)  # to one of them: they stop together
    ended = end(*running)
    assert [status for status, _ in ended] == [143, 143], ended
    step = int(re.search(r"stopped at step (\d+), saved", ended[0][1])[1])
    epochs = step // 44 + 2
    shutil.copytree(tmp_path / "stopped", tmp_path / "alone")
    resumed = end(*pair("stopped", "--epochs", epochs, "--resume"))
    assert f"resumed at step {step}" in resumed[0][1], resumed
    whole = end(*pair("whole", "--epochs", epochs))
    alone = end(launch(*shared, "--epochs", epochs, "--resume", "--run-dir", tmp_path / "alone"))
    assert [status for status, _ in resumed + whole + alone] == [0] * 5, (resumed, whole, alone)
    assert "not bit for bit" not in resumed[0][1]
    assert "not bit for bit: devices 2 of 2 processes → 2 of 1 processes" in alone[0][1]
    same, digest = (metrics(tmp_path / f)["parameters_sha256"] for f in ("stopped", "whole"))
    assert same == digest
    losses = [history(tmp_path / f)["loss"] for f in ("alone", "whole")]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_signal_to_all_processes_stops_them_together(tmp_path, launch):
    shared = ["--epochs", 100000, "--devices", 2, *among(2), "--run-dir", tmp_path]
    running = [launch(*shared, "--process-id", i) for i in range(2)]
    running[0].until("examples")
    time.sleep(LISTENS)
    for process in running:
        process.receive(signal.SIGINT)
    ended = end(*running)
    assert [status for status, _ in ended] == [130, 130], ended
    assert "saved; go on with --resume" in ended[0][1]


def test_a_run_goes_on_with_another_number_of_devices(tmp_path, launch):
    saved = ["--optimizer", "sgd", "--save-every", 1, "--run-dir", tmp_path / "a"]
    first = end(launch(*saved, "--epochs", 1, "--devices", 4))
    last = end(launch(*saved, "--epochs", 2, "--devices", 2, "--resume"))
    whole = end(launch("--optimizer", "sgd", "--epochs", 2, "--run-dir", tmp_path / "b"))
    assert [status for status, _ in first + last + whole] == [0, 0, 0], (first, last, whole)
    assert "resumed at step 44" in last[0][1]
    a, b = history(tmp_path / "a"), history(tmp_path / "b")
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_a_killed_process_ends_the_other_with_an_error(tmp_path, launch):
    shared = ["--epochs", 100000, "--devices", 2, *among(2), "--run-dir", tmp_path]
    pair = [launch(*shared, "--patience", 10, "--process-id", i) for i in range(2)]
    pair[0].until("examples")
    time.sleep(LISTENS)
    pair[1].process.kill()
    ((status, output),) = end(pair[0])
    assert status not in (0, None)
    assert "process is lost" in output or "JAX distributed" in output, output


def test_a_process_too_few_is_an_error(tmp_path, launch):
    shared = ["--devices", 3, "--batch", 30, *among(3), "--run-dir", tmp_path, "--patience", 5]
    ended = end(*[launch(*shared, "--process-id", i) for i in range(2)])
    assert all(status != 0 for status, _ in ended), ended


TWO = [*among(2), "--run-dir", "/nowhere"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([*TWO, "--devices", 2, "--process-id", 1, "--patience", 1], "Connection refused"),
        ([*TWO, "--devices", 3, "--batch", 30], "not a multiple of --num-processes 2"),
        ([*TWO[:-2], "--devices", 2], "--num-processes above 1 needs --run-dir"),
        (["--devices", 5], "--batch is 32, not a multiple of --devices 5"),
    ],
    ids=["unreachable coordinator", "devices among processes", "no folder", "batch among devices"],
)
def test_what_cannot_work_is_said_in_a_sentence(options, sentence, launch):
    ((status, output),) = end(launch(*options))
    assert status == (1 if "refused" in sentence else 2)  # 2 is tyro's, for the options themselves
    assert sentence in " ".join(output.replace("│", " ").split())  # out of tyro's box
