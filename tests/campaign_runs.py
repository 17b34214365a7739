"""Campaigns on whole training runs: killed, stopped, and without room on the disk.

A trial runs main of scripts/train.py in a process forked from this one, which has imported all of
it and started no JAX backend. A pipe tells this process when a save begins and ends there. What
the undisturbed run has compiled is kept: compiling takes ten times as long as the rest of a run.
"""

import fcntl
import importlib.util
import json
import os
import pathlib
import resource
import shutil
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from campaign_report import Report, control, planted

SCRIPT = pathlib.Path(__file__).parent.parent / "scripts" / "train.py"
EPOCHS = 6


def load_script() -> Any:
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.plots.learning_curve = lambda *_: None  # takes longer than the run
    return module


script = load_script()


class Child(NamedTuple):
    """A run in another process; one byte of `events` for each thing that happens in it."""

    pid: int
    events: int
    output: int


class End(NamedTuple):
    """How a child ended."""

    status: int
    events: bytes
    output: str


def write_data(folder: pathlib.Path) -> None:
    """Four IDX files: 96 examples of 12 pixels in 3 classes, the same for training and testing."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (96, 4, 3), "u1"), rng.integers(0, 3, 96, "u1")
    folder.mkdir()
    for part in ("train", "t10k"):
        head = b"\0\0\x08\x03" + struct.pack(">3I", *images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = b"\0\0\x08\x01" + struct.pack(">I", len(labels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def start(folder: pathlib.Path, resume: bool = False, file_size: int | None = None) -> Child:
    """Begin a run that saves after each epoch."""
    options = script.Options(
        data_dir=folder.parent / "data",
        sizes=(12, 16, 3),
        epochs=EPOCHS,
        save_every=1,
        run_dir=folder,
        resume=resume,
    )
    (events, announce), (output, log) = os.pipe(), os.pipe()
    fcntl.fcntl(log, fcntl.F_SETPIPE_SZ, 1 << 20)  # so that nobody has to read while it is written

    def work():
        os.close(events)
        tell(announce)
        if file_size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
        warnings.simplefilter(
            "default"
        )  # a run goes on after the warning that it took an older state
        script.run(options)

    child = Child(fork(work, log), events, output)
    os.close(announce)
    os.close(log)
    return child


def tell(announce: int) -> None:
    """Announce "l" when signals are listened to, "(" and ")" around a save."""
    save, listen = script.saving.save, script.listen

    def listening():
        received = listen()
        os.write(announce, b"l")
        return received

    def told(*args):
        os.write(announce, b"(")
        save(*args)
        os.write(announce, b")")

    script.listen, script.saving.save = listening, told


def fork(work: Callable[[], None], log: int) -> int:
    """Run work in a child process, its output written to log; its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that imports have started and left asleep
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        work()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        print(stop)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT  # what Python's own end by it looks like to a shell
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        os._exit(status)


def read(pipe: int) -> bytes:
    """All that is still to come from a pipe."""
    with os.fdopen(pipe, "rb") as file:
        return file.read()


def wait(child: Child) -> End:
    events, output = read(child.events), read(child.output).decode()
    return End(os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]), events, output)


def digest(folder: pathlib.Path) -> str | None:
    path = folder / "metrics.json"
    return json.loads(path.read_text())["parameters_sha256"] if path.is_file() else None


def sealed(folder: pathlib.Path) -> list[pathlib.Path]:
    return list((folder / "states").glob("*/seal.json"))


def finish(folder: pathlib.Path, expected: str) -> str | None:
    """Resume, or begin where nothing was saved yet; what went wrong, or None."""
    end = wait(start(folder, resume=bool(sealed(folder))))
    if end.status:
        return f"resumed with status {end.status}: {end.output[-300:]}"
    if "warning" in end.output and "the save did not finish" not in " ".join(end.output.split()):
        return f"a warning: {end.output[-300:]}"
    if digest(folder) != expected:
        return "ended in other parameters than the undisturbed run"
    left = sorted(path.name for path in (folder / "states").iterdir())
    # killed after the last seal and before the oldest state was gone: no save follows to remove it
    kept = {2} if b"(" in end.events else {2, 3}
    return None if len(left) in kept else f"left {left} behind"


class Undisturbed(NamedTuple):
    digest: str
    seconds: float  # of the whole run
    saving: float  # of one save


def keep_compiled(folder: pathlib.Path) -> None:
    script.jax.config.update("jax_compilation_cache_dir", str(folder))
    script.jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    script.jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def undisturbed(root: pathlib.Path) -> Undisturbed:
    if not (root / "data").exists():
        write_data(root / "data")
        keep_compiled(pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", root / "compiled")))
        wait(start(root / "undisturbed"))
    shutil.rmtree(root / "undisturbed")
    begin, child, stamps = time.perf_counter(), start(root / "undisturbed"), []
    while new := os.read(child.events, 1):
        stamps.append((new, time.perf_counter()))
    seconds = time.perf_counter() - begin
    end = wait(child)
    assert end.status == 0, end.output
    begins, ends = ([t for what, t in stamps if what == which] for which in (b"(", b")"))
    return Undisturbed(
        digest(root / "undisturbed"),
        seconds,
        float(np.median(np.subtract(ends, begins))),
    )


class Interruption(NamedTuple):
    """What happened to one trial: the problem, or None; what the run was doing when it was hit."""

    problem: str | None
    when: str


def interrupt(
    root: pathlib.Path, whole: Undisturbed, number: int, rng: np.random.Generator, in_a_save: bool
) -> Interruption:
    folder = root / "run"
    shutil.rmtree(folder, ignore_errors=True)
    child, seen = start(folder), b""
    if in_a_save:
        nth = rng.integers(1, EPOCHS + 1)
        while seen.count(b"(") < nth and (new := os.read(child.events, 1)):
            seen += new
        time.sleep(rng.uniform(0, whole.saving))
    else:
        time.sleep(rng.uniform(0, whole.seconds))
    os.kill(child.pid, number)
    end = wait(child)
    if end.status == 0:
        return Interruption(None if digest(folder) == whole.digest else "wrong", "over")
    events = seen + end.events
    saves = events.count(b"(") - events.count(b")")
    when = "in a save" if saves else "between saves" if b"l" in events else "before the start"
    problem = unexpected(number, end, b"l" in events) or finish(folder, whole.digest)
    return Interruption(problem, when)


def unexpected(number: int, end: End, listened: bool) -> str | None:
    """A killed run just died; a stopped one that listened has saved, and says so."""
    if number == signal.SIGKILL:
        right = end.status == -number
    elif listened:
        right = end.status == 128 + number and "saved; go on" in end.output
    else:
        right = end.status in (-number, 128 + number)
    return None if right else f"ended with {end.status}: {end.output[-300:]}"


def campaign(
    root: pathlib.Path,
    count: int,
    seed: int,
    signals: tuple[int, ...],
    part_in_saves: float,
    one_is_enough: bool = False,
) -> tuple[list[str], str]:
    whole, rng = undisturbed(root), np.random.default_rng(seed)
    failures, when = [], []
    for trial in range(count):
        number = signals[trial % len(signals)]
        done = interrupt(root, whole, number, rng, trial < round(count * part_in_saves))
        when.append(done.when)
        failures += [f"trial {trial}, {done.when}: {done.problem}"] if done.problem else []
        if failures and one_is_enough:
            break
    counts = {name: when.count(name) for name in sorted(set(when))}
    return failures, ", ".join(f"{number} {name}" for name, number in counts.items())


def forgets_the_order(folder: pathlib.Path, like: Any, description: dict) -> Any:
    """A planted fault: the key of the data's order is not restored."""
    found = sound_restore(folder, like, description)
    return found._replace(state=found.state._replace(key=script.jax.random.key(99)))


sound_restore, sound_save = script.saving.restore, script.saving.save


def kill(root: pathlib.Path, count: int, seed: int) -> Report:
    """kill −9 at random moments, a third of them inside a save: each resumes to the same bits."""
    signals = (signal.SIGKILL,)
    failures, figures = campaign(root, count, seed, signals, 1 / 3)

    def faulty():
        with planted(script.saving, restore=forgets_the_order):
            return faulty_campaign(root, seed, signals)

    return Report(failures, figures, control(faulty))


def faulty_campaign(root: pathlib.Path, seed: int, signals: tuple[int, ...]) -> list[str]:
    """Trials of a faulty program until one fails, nine at most; all of them inside a save, unless
    the machine is so busy that the run is over before."""
    return campaign(root, 9, seed, signals, 1, one_is_enough=True)[0]


def stop(root: pathlib.Path, count: int, seed: int) -> Report:
    """SIGINT and SIGTERM: saved, status 130 or 143, resumed to the same bits."""
    signals = (signal.SIGINT, signal.SIGTERM)
    failures, figures = campaign(root, count, seed, signals, 1 / 3)

    def faulty():
        with planted(script, listen=list):
            return faulty_campaign(root, seed, signals)

    return Report(failures, figures, control(faulty))


def full_disk(root: pathlib.Path, count: int, seed: int) -> Report:
    """Writes that fail for lack of room: the old state is intact, and the run resumes from it."""
    whole, rng = undisturbed(root), np.random.default_rng(seed)
    newest, older = sorted(sealed(root / "undisturbed"), key=lambda path: -int(path.parent.name))
    # The state that is written again has other stamps, so its files may be some bytes shorter.
    most = int(0.9 * min(largest_file(older.parent), largest_file(newest.parent)))
    shutil.rmtree(newest.parent)  # there is an epoch to do again, and a state to write
    (root / "undisturbed" / "metrics.json").unlink()
    ends = [without_room(root, whole, int(rng.integers(500, most))) for _ in range(count)]
    failures = [f"trial {trial}: {end}" for trial, end in enumerate(ends) if end]

    def removes_first(folder, *rest):
        shutil.rmtree(folder, ignore_errors=True)
        sound_save(folder, *rest)

    def faulty():
        with planted(script.saving, save=removes_first):
            return [end for end in [without_room(root, whole, 700)] if end]

    return Report(failures, f"files cut at 500 to {most} bytes", control(faulty))


def largest_file(folder: pathlib.Path) -> int:
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def without_room(root: pathlib.Path, whole: Undisturbed, file_size: int) -> str | None:
    """One run that cannot write files of that size; what went wrong, or None."""
    folder = root / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "undisturbed", folder)
    old = [path.read_bytes() for path in sealed(folder)]
    end = wait(start(folder, resume=True, file_size=file_size))
    if end.status == 0:
        return f"a file limit of {file_size} bytes was no limit"
    if "could not be saved: " not in end.output:
        return f"the failure is not named: {end.output[-300:]}"
    if not set(old) <= {path.read_bytes() for path in sealed(folder)}:
        return "the old state is gone"
    return finish(folder, whole.digest)
