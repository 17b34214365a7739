"""States on disk: what comes back is what was saved, or nothing does."""

import json
import pathlib
import shutil
import signal
import time

import forked
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbackprop import Network, saving, train

SCRIPT = pathlib.Path(__file__).parent.parent / "scripts" / "train.py"
NETWORK = Network((4, 5, 3), "tanh")
OPTIMIZER = optax.adam(1e-2)
RUN = {"sizes": "[4, 5, 3]", "optimizer": "adam"}


def state_at(step, dtype="float32", optimizer=OPTIMIZER, network=NETWORK):
    state = train.start(network, optimizer, jax.random.key(step), dtype)
    return state._replace(step=jnp.int32(step))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def folder(tmp_path):
    """A folder with the states of steps 3 and 6, after that of step 1 was let go."""
    for step in (1, 3, 6):
        saving.save(tmp_path, state_at(step), RUN, {"loss": [step]})
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_restored_is_what_was_saved_bit_for_bit(tmp_path, dtype):
    saving.save(tmp_path, state_at(7, dtype), RUN, {"loss": [0.25]})
    found = saving.restore(tmp_path, state_at(0, dtype), RUN)
    same(found.state, state_at(7, dtype))
    assert found.step == 7
    assert found.history == {"loss": [0.25]}


def test_the_two_newest_states_are_kept(folder):
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["3", "6"]
    assert saving.restore(folder, state_at(0), RUN).step == 6


@pytest.mark.parametrize(
    ("like", "run", "message"),
    [
        (state_at(0), RUN | {"optimizer": "sgd"}, "optimizer was adam, now it is sgd"),
        (state_at(0), RUN | {"seed": "1"}, "seed was None, now it is 1"),
        (state_at(0, "float16"), RUN, r"was float32\[5, 4\], now it is float16\[5, 4\]"),
        (state_at(0, optimizer=optax.sgd(1)), RUN, "another array"),
        (
            state_at(0, network=Network((4, 6, 3))),
            RUN,
            r"float32\[5, 4\], now it is float32\[6, 4\]",
        ),
    ],
)
def test_a_state_of_another_run_is_refused_with_both_named(folder, like, run, message):
    with pytest.raises(ValueError, match=message):
        saving.restore(folder, like, run)


def files_of(state):
    return sorted(path for path in state.rglob("*") if path.is_file())


def flip(path, rng):
    content = bytearray(path.read_bytes())
    place = rng.integers(len(content))
    content[place] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def cut(path, rng):
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def remove(path, rng):
    path.unlink()


def foreign(path, rng):
    path.write_bytes(rng.bytes(rng.integers(1, 2000)))


def add(path, rng):
    path.with_name("more").write_bytes(b"more")


DAMAGE = [flip, cut, remove, foreign, add]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_named_and_the_one_before_it_taken(folder, damage, tmp_path_factory):
    rng = np.random.default_rng(0)
    for path in files_of(folder / "6"):
        copy = tmp_path_factory.mktemp("copy") / "states"
        shutil.copytree(folder, copy)
        damage(copy / path.relative_to(folder), rng)
        with pytest.warns(UserWarning, match="6 is damaged"):
            found = saving.restore(copy, state_at(0), RUN)
        same(found.state, state_at(3))


def test_a_state_under_another_states_number_is_damaged(folder):
    shutil.rmtree(folder / "3")
    (folder / "6").rename(folder / "9")
    with (
        pytest.warns(UserWarning, match="9 is damaged, it is the state of step 6"),
        pytest.raises(ValueError, match="no sound state"),
    ):
        saving.restore(folder, state_at(0), RUN)


def test_a_changed_environment_is_said(folder, monkeypatch):
    monkeypatch.setenv("NPROC", "77")
    with pytest.warns(UserWarning, match="not bit for bit: threads .* → 77"):
        saving.restore(folder, state_at(0), RUN)


def test_a_folder_without_states_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no sound state"):
        saving.restore(tmp_path / "nowhere", state_at(0), RUN)


# --- the training script, stopped and gone on with ---

ARGS = ["--epochs", "30", "--save-every", "2"]


def start(folder, *more):
    return forked.start(folder / "log", SCRIPT, *ARGS, "--run-dir", folder, *more)


def losses(folder):
    return json.loads((folder / "metrics.json").read_text())["history"]["loss"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    ((status, said),) = forked.end(start(folder))
    assert status == 0, said
    return losses(folder)


def wait_for_a_state(folder, running):
    while not list((folder / "states").glob("*/seal.json")):
        assert running.process.is_alive(), running.said
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_undisturbed_ones_end(tmp_path, undisturbed, number):
    running = start(tmp_path)
    wait_for_a_state(tmp_path, running)
    running.receive(number)
    ((status, said),) = forked.end(running)
    if number == signal.SIGKILL:
        assert status == -number
    else:
        assert status == 128 + number, said
        assert "saved; go on with --resume" in said
    ((status, said),) = forked.end(start(tmp_path, "--resume"))
    assert status == 0, said
    assert "not bit for bit" not in said
    assert losses(tmp_path) == undisturbed
