"""Training states on disk: saved whole or not at all; read back exactly, or refused by name.

Each state is a folder, named by its step. Orbax writes the arrays into it, and a *seal* follows:
the digest of every file, with the description of the run. A state without a sound seal was never
finished, or is no longer what was saved; it is not opened at all.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import shutil
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxbackprop.refusals import check_kind, path_of, what

KEPT = 2
SEAL, ARRAYS = "seal.json", "arrays"
LARGEST_SEAL = 64 << 20  # bytes; a seal holds a line a file and the run's history

logging.getLogger("absl").setLevel(logging.CRITICAL)  # what goes wrong here is raised or warned of


class Saved(NamedTuple):
    """A state as it was read back, with what was saved beside it."""

    state: Any
    step: int
    history: dict


def environment() -> dict[str, str]:
    """What must be the same for a resumed run to continue bit for bit."""
    return {
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "platform": jax.default_backend(),
        "threads": os.environ.get("NPROC") or str(len(os.sched_getaffinity(0))),
        "devices": f"{jax.device_count()} of {jax.process_count()} processes",
    }


def save(folder: pathlib.Path, state: Any, description: dict, history: dict) -> None:
    """Save a state under its step number; the two newest are kept.

    `description` is what another run must agree with to resume; `history` comes back as it is.
    States that were never sealed, and later ones, left by a run that was resumed from before them,
    are removed first. Nothing sound is removed before the new state has its seal. Raises OSError,
    naming the state, where it cannot be written; what was saved before is then as it was.
    """
    folder = path_of("folder", folder).absolute()
    if not hasattr(state, "step"):
        raise ValueError(f"state is {what(state)}, expected one with a step, as train.start's")
    step = int(state.step)
    for name, told in (("description", description), ("history", history)):
        _check_told(name, told)
    place = folder / str(step)
    try:
        for other in _steps(folder):
            if other >= step or not (folder / str(other) / SEAL).is_file():
                _remove(folder / str(other))
        place.mkdir(parents=True)
        with _checkpointer() as checkpointer:
            checkpointer.save(place / ARRAYS, _arrays(state))
        _seal(place, state, description, history)
        for other in _steps(folder)[KEPT:]:
            _remove(folder / str(other))
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
        # tensorstore ends a line of paths with the reason, and then a specification in brackets
        reason = getattr(error, "strerror", None) or str(error).split(" [")[0].rsplit(": ", 1)[-1]
        raise OSError(f"{place} could not be saved: {reason}") from error


def _check_told(name: str, told: object) -> None:
    """Raise ValueError unless it is a dictionary that JSON can hold."""
    check_kind(name, told, dict, "a dictionary")
    try:
        json.dumps(told)
    except TypeError as error:
        raise ValueError(f"{name} is saved as JSON: {error}") from None


def _checkpointer() -> ocp.StandardCheckpointer:
    """One that waits for no other process: the one that calls has all of the state."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _steps(folder: pathlib.Path) -> list[int]:
    """Of all states in the folder, the newest first."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _remove(place: pathlib.Path) -> None:
    """A state: its seal first, so that half of it is never taken for damage."""
    (place / SEAL).unlink(missing_ok=True)
    shutil.rmtree(place)


def _seal(folder: pathlib.Path, state: Any, description: dict, history: dict) -> None:
    content = {
        "step": int(state.step),
        "files": _digests(folder),
        "arrays": _types(state),
        "description": description,
        "environment": environment(),
        "history": history,
    }
    text = json.dumps({"digest": _digest_of(content), "content": content})
    temporary = folder / f".{SEAL}"
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / SEAL)


def restore(folder: pathlib.Path, like: Any, description: dict) -> Saved:
    """The newest sound state in the folder, in the form of `like`.

    A damaged state is named in a warning and the one before it is taken. Raises ValueError where
    none is left, and where the state belongs to a run of another description or to arrays of other
    shapes or types, both named.
    """
    folder = path_of("folder", folder).absolute()
    _check_told("description", description)
    for step in _steps(folder):
        try:
            seal = _check_seal(folder / str(step))
        except ValueError as error:
            warnings.warn(f"{folder / str(step)} is damaged, {error}", stacklevel=2)
            continue
        _same("run", seal["description"], description)
        _same("array", seal["arrays"], _types(like))
        _same_environment(seal["environment"])
        types = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in _arrays(like).items()}
        with _checkpointer() as checkpointer:
            arrays = checkpointer.restore(folder / str(step) / ARRAYS, types)
        return Saved(_rebuild(like, arrays), step, seal["history"])
    raise ValueError(f"{folder} holds no sound state to resume from")


def _arrays(state: Any) -> dict[str, np.ndarray]:
    """The leaves by their path; a typed key as the integers it is made of."""
    return {
        jax.tree_util.keystr(path): np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _rebuild(like: Any, arrays: dict[str, np.ndarray]) -> Any:
    def leaf(path, old):
        new = jax.numpy.asarray(arrays[jax.tree_util.keystr(path)])
        return jax.random.wrap_key_data(new) if _is_key(old) else new

    return jax.tree_util.tree_map_with_path(leaf, like)


def _types(state: Any) -> dict[str, str]:
    return {name: f"{a.dtype}{list(a.shape)}" for name, a in _arrays(state).items()}


def _digests(folder: pathlib.Path) -> dict[str, list]:
    """Size and digest of every file but the seal."""
    return {
        str(path.relative_to(folder)): [path.stat().st_size, _digest_of_file(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (SEAL, f".{SEAL}")
    }


def _digest_of_file(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_seal(folder: pathlib.Path) -> dict:
    """The content of a sound seal whose files are as they were; ValueError says what is not."""
    path = folder / SEAL
    if not path.is_file():
        raise ValueError("it has no seal: the save did not finish")
    if path.stat().st_size > LARGEST_SEAL:
        raise ValueError(f"its seal has {path.stat().st_size} bytes")
    try:
        seal = json.loads(path.read_bytes())
        content = seal["content"]
        sound = seal["digest"] == _digest_of(content)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("its seal cannot be read") from None
    if not sound:
        raise ValueError("its seal has been changed")
    if content["step"] != int(folder.name):
        raise ValueError(f"it is the state of step {content['step']}")
    there = {
        str(p.relative_to(folder)): p.stat().st_size
        for p in folder.rglob("*")
        if p.is_file() and p.name not in (SEAL, f".{SEAL}")
    }
    if there != {name: size for name, (size, _) in content["files"].items()}:
        raise ValueError("files are missing, too many, or of another length")
    for name, (_, digest) in content["files"].items():
        if _digest_of_file(folder / name) != digest:
            raise ValueError(f"{name} has been changed")
    return content


def _same(what: str, saved: dict, own: dict) -> None:
    for name in {**saved, **own}:
        if saved.get(name) != own.get(name):
            raise ValueError(
                f"the saved state is of another {what}: "
                f"{name} was {saved.get(name)}, now it is {own.get(name)}"
            )


def _same_environment(saved: dict) -> None:
    changed = {
        name: (saved.get(name), now)
        for name, now in environment().items()
        if saved.get(name) != now
    }
    if changed:
        what = ", ".join(f"{name} {was} → {now}" for name, (was, now) in changed.items())
        warnings.warn(f"resuming, but not bit for bit: {what}", stacklevel=3)
