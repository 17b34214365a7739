"""Campaigns on files that are not what they were: saved states, and data in IDX form."""

import contextlib
import gzip
import logging
import os
import pathlib
import resource
import shutil
import struct
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from campaign_report import Report, control, planted

from jaxbackprop import Network, data, saving, train

GROWTH = 64 << 20  # bytes by which one reading may raise the process's peak of memory
RUN = {"sizes": "[4, 5, 3]"}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Bounded:
    """By how much one trial raised the peak of memory at most; a failure where that is too much.

    Not the growth over all of them: orbax keeps some 100 KiB of each checkpointer that it made.
    """

    def __init__(self) -> None:
        self.last, self.most = peak(), 0

    def look(self) -> None:
        """After each trial."""
        now = peak()
        self.last, self.most = now, max(self.most, now - self.last)

    @property
    def grown(self) -> str:
        return f"a trial raised the peak of memory by {self.most / 2**20:.0f} MiB at most"

    def failures(self) -> list[str]:
        return [self.grown] if self.most > GROWTH else []


def state_at(step: int) -> train.State:
    state = train.start(Network((4, 5, 3)), optax.adam(1e-2), jax.random.key(step))
    return state._replace(step=jnp.int32(step))


def bits(state: train.State) -> list[bytes]:
    leaves = jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def damage(root: pathlib.Path, count: int, seed: int) -> Report:
    """Flipped bits, cuts, swapped and foreign files: named, and the state before it taken."""
    sound, rng = root / "sound", np.random.default_rng(seed)
    for step in (3, 6):
        saving.save(sound, state_at(step), RUN, {"step": step})
    expected = {step: bits(state_at(step)) for step in (3, 6)}
    saving.restore(sound, state_at(0), RUN)  # what the first call alone allocates
    memory, kinds, failures = Bounded(), Counter(), []
    for trial in range(count):
        kind, problem = damaged(root, sound, expected, rng)
        kinds[kind.split(" in ")[0]] += 1
        memory.look()
        failures += [f"trial {trial}, {kind}: {problem}"] if problem else []
    figures = ", ".join(f"{number} {name}" for name, number in sorted(kinds.items()))

    def faulty():
        with planted(saving, _check_seal=saving_seal_as_it_stands), without_stderr():
            return [p for p in (damaged(root, sound, expected, rng)[1] for _ in range(20)) if p]

    return Report(failures + memory.failures(), f"{figures}; {memory.grown}", control(faulty))


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """The faulty program alone gives damage to tensorstore to read, whose threads print of it; and
    asyncio tells of what nobody waited for when that is collected, at the end of the process even.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    own, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
        time.sleep(1)  # they are still at it
    finally:
        os.dup2(own, 2)
        os.close(own)
        os.close(nothing)


def saving_seal_as_it_stands(folder: pathlib.Path) -> dict:
    """A planted fault: the seal is read, and nothing held against it."""
    return saving.json.loads((folder / saving.SEAL).read_bytes())["content"]


def damaged(
    root: pathlib.Path, sound: pathlib.Path, expected: dict, rng: np.random.Generator
) -> tuple[str, str | None]:
    """(the damage, what went wrong or None) of one trial."""
    folder = root / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    kind = spoil(folder, rng)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = saving.restore(folder, state_at(0), RUN)
    except Exception as error:
        return kind, f"{type(error).__name__}: {error}"
    if bits(found.state) != expected[found.step] or found.history != {"step": found.step}:
        return kind, "loaded silently wrong"
    if found.step == 6:
        return kind, None if kind == "nothing" else "not noticed"
    named = any("6 is damaged" in str(warning.message) for warning in said)
    return kind, None if named else "not named"


def spoil(folder: pathlib.Path, rng: np.random.Generator) -> str:
    """Do one kind of damage to the newest state, step 6; which."""
    files = sorted(path for path in (folder / "6").rglob("*") if path.is_file())
    path, other = (files[i] for i in rng.integers(len(files), size=2))
    content = bytearray(path.read_bytes())
    kind = ("bits flipped", "cut", "swapped", "older", "foreign", "longer", "gone", "another")[
        rng.integers(8)
    ]
    if kind == "bits flipped":
        for place in rng.integers(len(content), size=rng.integers(1, 9)):
            content[place] ^= 1 << rng.integers(8)
    elif kind == "cut":
        del content[rng.integers(len(content)) :]
    elif kind == "swapped":
        content = bytearray(other.read_bytes())
    elif kind == "older":
        old = folder / "3" / path.relative_to(folder / "6")
        content = bytearray(old.read_bytes() if old.is_file() else b"")
    elif kind == "foreign":
        content = bytearray(rng.bytes(rng.integers(1, 5000)))
    elif kind == "longer":
        content += rng.bytes(rng.integers(1, 100))
    elif kind == "gone":
        path.unlink()
    else:
        shutil.rmtree(folder / "6")
        shutil.copytree(folder / "3", folder / "6")
    if kind not in ("gone", "another"):
        if bytes(content) == path.read_bytes():
            return "nothing"
        path.write_bytes(content)
    return f"{kind} in {path.relative_to(folder)}"


KINDS = ("bits flipped", "cut", "longer", "dimensions", "bomb", "foreign")
BOMB = gzip.compress(bytes(256 << 20), 1)  # four times the memory that reading may take


def idx(root: pathlib.Path, count: int, seed: int) -> Report:
    """Malformed IDX files: refused by name, or read exactly as the file says."""
    rng, memory, failures, refused = np.random.default_rng(seed), Bounded(), [], 0
    path = root / "train-images-idx3-ubyte"
    for trial in range(count):
        kind = KINDS[trial % len(KINDS)]
        path.write_bytes(malformed(kind, rng))
        problem, was_refused = misread(path)
        refused += was_refused
        memory.look()
        failures += [f"trial {trial}, {kind}: {problem}"] if problem else []
    figures = f"{refused} refused, {count - refused} still sound; {memory.grown}"

    def faulty():
        with planted(data, _read_idx=believes_the_header):
            path.write_bytes(malformed("longer", rng))
            return [problem for problem in [misread(path)[0]] if problem]

    return Report(failures + memory.failures(), figures, control(faulty))


def believes_the_header(file: Any, room: int, rows: range | None) -> np.ndarray:
    """A planted fault: what follows the header's bytes is not looked at."""
    rank = file.read(4)[3]
    shape = struct.unpack(f">{rank}I", file.read(4 * rank))
    return np.frombuffer(file.read(int(np.prod(shape))), "u1").reshape(shape)


def malformed(kind: str, rng: np.random.Generator) -> bytes:
    array = rng.integers(0, 256, size=rng.integers(1, 6, size=3), dtype="u1")
    shape = array.shape if kind != "dimensions" else rng.integers(0, 2**32, size=3)
    content = bytearray(b"\0\0\x08\x03" + struct.pack(">3I", *shape) + array.tobytes())
    if kind == "foreign":
        content = bytearray(rng.bytes(rng.integers(0, 200)))
    if kind == "bomb":
        return gzip.compress(bytes(content)) + BOMB
    if rng.random() < 0.4:
        content = bytearray(gzip.compress(bytes(content)))
    if kind == "bits flipped":
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    elif kind == "cut":
        del content[rng.integers(len(content)) :]
    elif kind == "longer":
        content += rng.bytes(rng.integers(1, 50))
    return bytes(content)


def misread(path: pathlib.Path) -> tuple[str | None, bool]:
    """(what went wrong or None, whether it was refused) in reading one file."""
    try:
        found = data.read_idx(path)
    except ValueError as error:
        return None if path.name in str(error) else f"refused without its name: {error}", True
    except Exception as error:
        return f"{type(error).__name__}: {error}", False
    return None if in_idx(found) == plain(path.read_bytes()) else "read as it is not", False


def plain(content: bytes) -> bytes | None:
    """The file without its compression; None where that is not one sound stream of 1 MiB."""
    if content[:2] != b"\x1f\x8b":
        return content
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        out = stream.decompress(content, 1 << 20)
    except zlib.error:
        return None
    return out if stream.eof and not stream.unused_data.strip(b"\0") else None


def in_idx(array: np.ndarray) -> bytes:
    """The array as the file that holds it."""
    kind = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[array.dtype.str[1:]]
    head = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()
