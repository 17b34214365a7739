"""Long campaigns against lost and damaged training states.

    python tests/campaigns.py kill --trials 300 --seed 0
    python tests/campaigns.py stop --trials 100
    python tests/campaigns.py damage --trials 5000
    python tests/campaigns.py idx --trials 2000
    python tests/campaigns.py full-disk --trials 50

The suite runs each of them shortened. A campaign prints every trial that failed, and its exit
status is 1 if one did. Trials run `scripts/train.py`'s main in processes forked from this one, so
that only the first pays for the imports.
"""

import contextlib
import dataclasses
import gzip
import importlib.util
import json
import os
import pathlib
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import tyro

from jaxbackprop import data, saving

SCRIPT = pathlib.Path(__file__).parent.parent / "scripts" / "train.py"
EPOCHS = 12
MEMORY_LIMIT = 1 << 30  # bytes by which reading may grow: a state here has 0.2 MB


def script():
    """scripts/train.py as a module. Nothing in it starts a JAX backend: it can be forked."""
    if "train_script" not in sys.modules:
        spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules["train_script"]


def fork(work: Callable[[], None], log: pathlib.Path) -> int:
    """Run work in a child process, its output in the file log; its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that numpy's library started and left asleep
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                work()
                status = 0
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
                print(stop)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}")
            sys.stdout.flush()
    finally:
        os._exit(status)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(folder: pathlib.Path, resume: bool = False, **limits: int) -> int:
    """Start a run of the script that saves after each epoch; its process id."""
    module = script()
    options = module.Options(epochs=EPOCHS, save_every=1, run_dir=folder, resume=resume)

    def work():
        if limits:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_size"],) * 2)
        module.main(options)

    return fork(work, folder.with_suffix(".log"))


def digest(folder: pathlib.Path) -> str | None:
    path = folder / "metrics.json"
    return json.loads(path.read_text())["parameters_sha256"] if path.is_file() else None


def finish(folder: pathlib.Path, expected: str) -> str | None:
    """Resume, or begin where nothing was saved yet; what went wrong, or None."""
    saved = any((folder / "states").glob("*/seal.json"))
    status = wait(train(folder, resume=saved))
    log = folder.with_suffix(".log").read_text()
    if status:
        return f"status {status}: {log[-300:]}"
    if "bit for bit" in log:
        return "no promise of the same bits"
    return None if digest(folder) == expected else "ended in other parameters"


def saving_now(folder: pathlib.Path) -> bool:
    """Is a state there that is not sealed yet?"""
    with contextlib.suppress(FileNotFoundError):
        return any(not (path / "seal.json").exists() for path in (folder / "states").iterdir())
    return False


def undisturbed(root: pathlib.Path) -> tuple[str, float]:
    """(the digest, the seconds) of a run that nothing disturbs."""
    begin = time.perf_counter()
    assert wait(train(root / "undisturbed")) == 0, (root / "undisturbed.log").read_text()
    return digest(root / "undisturbed"), time.perf_counter() - begin


def interrupt(
    root: pathlib.Path, trials: int, seed: int, signals: tuple[int, ...], in_a_save: float
) -> list[str]:
    expected, seconds = undisturbed(root)
    rng, failures, hit = np.random.default_rng(seed), [], 0
    for trial in range(trials):
        folder = root / f"run{trial}"
        number = signals[trial % len(signals)]
        child = train(folder)
        end = time.perf_counter() + rng.uniform(0, seconds)
        if rng.random() < in_a_save:
            end = time.perf_counter() + seconds
            skip = time.perf_counter() + rng.uniform(0.3, 0.9) * seconds
            while time.perf_counter() < end:
                if time.perf_counter() > skip and saving_now(folder):
                    hit += 1
                    break
        else:
            time.sleep(max(0, end - time.perf_counter()))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
        status = wait(child)
        allowed = (0, -number) if number == signal.SIGKILL else (0, 128 + number, -number)
        if status not in allowed:
            failures.append(f"trial {trial}: ended with {status}")
        elif status != 0:
            problem = finish(folder, expected)
            failures += [f"trial {trial}: {problem}"] if problem else []
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{hit} of {trials} hit inside a save")
    return failures


def kill(root: pathlib.Path, trials: int, seed: int) -> list[str]:
    """kill −9 at random moments, a third of them inside a save: each resumes to the same bits."""
    return interrupt(root, trials, seed, (signal.SIGKILL,), in_a_save=1 / 3)


def stop(root: pathlib.Path, trials: int, seed: int) -> list[str]:
    """SIGINT and SIGTERM: saved, status 130 or 143, resumed to the same bits."""
    return interrupt(root, trials, seed, (signal.SIGINT, signal.SIGTERM), in_a_save=0)


def full_disk(root: pathlib.Path, trials: int, seed: int) -> list[str]:
    """Writes that fail for lack of room: the old state is intact, and the run resumes from it."""
    expected, _ = undisturbed(root)
    rng, failures = np.random.default_rng(seed), []
    for trial in range(trials):
        folder = root / f"run{trial}"
        shutil.copytree(root / "undisturbed", folder)
        (folder / "metrics.json").unlink()
        newest = max((folder / "states").iterdir(), key=lambda path: int(path.name))
        shutil.rmtree(newest)  # there is an epoch to do again, and a state to write
        wait(train(folder, resume=True, file_size=int(rng.integers(1, 120_000))))
        problem = finish(folder, expected)
        failures += [f"trial {trial}: {problem}"] if problem else []
        shutil.rmtree(folder, ignore_errors=True)
    return failures


def damage(root: pathlib.Path, trials: int, seed: int) -> list[str]:
    """Flipped bits, cuts, swapped and foreign files: named, and the state before it taken."""
    import jax
    import jax.numpy as jnp
    import optax

    from jaxbackprop import Network
    from jaxbackprop import train as training

    rng, failures, run = np.random.default_rng(seed), [], {"sizes": "[4, 5, 3]"}

    def state_at(step):
        state = training.start(Network((4, 5, 3)), optax.adam(1e-2), jax.random.key(step))
        return state._replace(step=jnp.int32(step))

    sound = root / "sound"
    for step in (3, 6):
        saving.save(sound, state_at(step), run, {"step": step})
    expected = {
        step: [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state_at(step).params)]
        for step in (3, 6)
    }
    files = sorted(p.relative_to(sound) for p in sound.glob("6/**/*") if p.is_file())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + MEMORY_LIMIT
    for trial in range(trials):
        folder = root / "damaged"
        shutil.copytree(sound, folder)
        kind = spoil(folder, files, rng)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = saving.restore(folder, state_at(0), run)
            bits = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found.state.params)]
            if bits != expected[found.step]:
                failures.append(f"trial {trial}, {kind}: loaded silently wrong")
            elif found.step == 6 and kind != "nothing":
                failures.append(f"trial {trial}, {kind}: not noticed")
            elif found.step == 3 and not any("6 is damaged" in str(w.message) for w in said):
                failures.append(f"trial {trial}, {kind}: not named")
        except Exception as error:
            failures.append(f"trial {trial}, {kind}: {type(error).__name__}: {error}")
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > most:
            failures.append(f"trial {trial}, {kind}: memory grew by over {MEMORY_LIMIT} bytes")
            break
        shutil.rmtree(folder)
    return failures


def spoil(folder: pathlib.Path, files: list[pathlib.Path], rng: np.random.Generator) -> str:
    """Do one kind of damage to a file of the newest state; which."""
    path = folder / files[rng.integers(len(files))]
    content = bytearray(path.read_bytes())
    kind = ("bits flipped", "cut", "swapped", "foreign", "longer", "gone")[rng.integers(6)]
    if kind == "bits flipped":
        for place in rng.integers(len(content), size=rng.integers(1, 9)):
            content[place] ^= 1 << rng.integers(8)
    elif kind == "cut":
        del content[rng.integers(len(content)) :]
    elif kind == "swapped":
        other = files[rng.integers(len(files))]
        content = bytearray((folder / other).read_bytes())
    elif kind == "foreign":
        content = bytearray(rng.bytes(rng.integers(1, 5000)))
    elif kind == "longer":
        content += rng.bytes(rng.integers(1, 100))
    if kind == "gone":
        path.unlink()
    elif bytes(content) == path.read_bytes():
        return "nothing"
    else:
        path.write_bytes(content)
    return f"{kind} ({path.relative_to(folder)})"


def idx(root: pathlib.Path, trials: int, seed: int) -> list[str]:
    """Malformed IDX files: refused by name, or read exactly as their header says."""
    rng, failures = np.random.default_rng(seed), []
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + MEMORY_LIMIT
    for trial in range(trials):
        array = rng.integers(0, 256, size=rng.integers(1, 6, size=3), dtype="u1")
        header = b"\0\0\x08\x03" + struct.pack(">3I", *array.shape)
        content = bytearray(header + array.tobytes())
        zipped = rng.random() < 0.4
        kind = ("bits flipped", "cut", "longer", "dimensions", "bomb", "foreign")[trial % 6]
        if kind == "dimensions":
            content[4:16] = struct.pack(">3I", *rng.integers(0, 2**32, size=3))
        elif kind == "bomb":
            content += bytes(3_000_000)
        elif kind == "foreign":
            content = bytearray(rng.bytes(rng.integers(0, 200)))
        if zipped:
            content = bytearray(gzip.compress(bytes(content)))
        if kind == "bits flipped":
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        elif kind == "cut":
            del content[rng.integers(len(content)) :]
        elif kind == "longer":
            content += rng.bytes(rng.integers(1, 50))
        path = root / "train-images-idx3-ubyte"
        path.write_bytes(content)
        try:
            found = data.read_idx(path)
            # Pixels carry no checksum in a plain file: any of them is sound. The shape must be.
            body = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else bytes(content)
            if found.tobytes() != body[4 + 4 * found.ndim :] and found.dtype.itemsize == 1:
                failures.append(f"trial {trial}, {kind}: read something else than the file holds")
        except ValueError as error:
            if path.name not in str(error):
                failures.append(f"trial {trial}, {kind}: refused without its name: {error}")
        except Exception as error:
            failures.append(f"trial {trial}, {kind}: {type(error).__name__}: {error}")
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > most:
            failures.append(f"trial {trial}, {kind}: memory grew by over {MEMORY_LIMIT} bytes")
            break
    return failures


CAMPAIGNS = {"kill": kill, "stop": stop, "damage": damage, "idx": idx, "full-disk": full_disk}


@dataclasses.dataclass(frozen=True)
class Options:
    """Which campaign to run, how long, and from which seed."""

    campaign: tyro.conf.Positional[Literal["kill", "stop", "damage", "idx", "full-disk"]]
    trials: int = 20
    seed: int = 0


def main(options: Options) -> int:
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        failures = CAMPAIGNS[options.campaign](pathlib.Path(root), options.trials, options.seed)
    print("\n".join(failures))
    print(
        f"{options.campaign}: {options.trials - len(failures)} of {options.trials} trials well, "
        f"seed {options.seed}, {time.perf_counter() - begin:.0f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
