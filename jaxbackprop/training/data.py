"""Data sets: handwritten digits that need no download, and IDX files (MNIST and its kin).

Files and memory hold one example a row; the mathematics has one a column. A `Split` stays in rows,
and a batch is transposed where it is gathered (`jaxbackprop.training.train`).
"""

import gzip
import math
import numbers
import pathlib
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, DTypeLike, Float, Int

from jaxbackprop.refusals import check_whole, path_of

T = TypeVar("T")
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_RATIO = 1032  # deflate cannot expand a byte to more than this


Share = Callable[[int], range]


class Split(NamedTuple):
    """The class labels of N examples; and in rows the inputs of those in `rows`, by default all."""

    inputs: Float[np.ndarray, "own p"]
    labels: Int[np.ndarray, " N"]
    rows: range


def _all(examples: int) -> range:
    return range(examples)


def one_hot(
    labels: ArrayLike | Sequence[int], classes: int, dtype: DTypeLike = jnp.float32
) -> Float[Array, "m classes"]:
    """Rows with a 1 in the column of the example's class: targets for `train.run`.

    Raises ValueError for labels that are not of shape (m,), or not whole numbers in
    0 … classes − 1, and for what is no dtype. Labels are checked on the host: call it outside jit.
    """
    values = check_labels(labels, classes)
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        raise ValueError(f"dtype is {dtype!r}, which is none") from None
    return jnp.asarray(values[:, None] == np.arange(classes), dtype)


def check_labels(labels: ArrayLike | Sequence[int], classes: int) -> Int[np.ndarray, " m"]:
    """labels as a NumPy array; ValueError, naming the first offender, where they are no classes."""
    if not hasattr(classes, "__index__") or classes < 1:
        raise ValueError(f"classes is {classes!r}, expected a whole number from 1 on")
    values = np.asarray(labels)
    if values.ndim != 1:
        raise ValueError(f"labels have shape {values.shape}, expected (m,)")
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"labels are {values.dtype}, expected whole numbers")
    outside = np.flatnonzero((values < 0) | (values >= classes))
    if outside.size:
        i = outside[0]
        shifted = values.min() == 1 and values.max() == classes
        hint = ": they begin at 1, subtract 1 from each" if shifted else ""
        raise ValueError(f"labels[{i}] is {values[i]}, expected 0 … {classes - 1}{hint}")
    return values


def digits(test_fraction: float = 0.2, seed: int = 0, share: Share = _all) -> tuple[Split, Split]:
    """The 1,797 scanned digits of 8 × 8 pixels that scikit-learn ships, as (train, test).

    `share` is as in `idx_folder`.
    E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI (1998).
    """
    from sklearn.datasets import load_digits  # takes seconds to import: only where it is wanted

    check_whole("seed", seed, least=0)
    if not (isinstance(test_fraction, numbers.Real) and 0 < test_fraction < 1):
        raise ValueError(f"test_fraction is {test_fraction!r}, expected one between 0 and 1")
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    inputs = (images[order] / 16).astype(np.float32)
    cut = round(len(labels) * (1 - test_fraction))
    labels = labels[order].astype(np.int32)
    train, test = share(cut), share(len(labels) - cut)
    return (
        Split(inputs[:cut][_slice(train)], labels[:cut], train),
        Split(inputs[cut:][_slice(test)], labels[cut:], test),
    )


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)


def idx_folder(folder: str | pathlib.Path, share: Share = _all) -> tuple[Split, Split]:
    """(train, test) from a folder with four IDX files named as MNIST's or EMNIST's, also gzipped.

    They may lie in `raw` or `MNIST/raw` below it. share(N) are the rows of N whose inputs are
    wanted: one of many processes reads its own, and all labels, a byte each.

    Raises FileNotFoundError that names the missing file and those that are there, and ValueError as
    `read_idx` does, where several files have a claim, where images and labels do not pair or train
    and test differ in size, and for pixels that are neither whole in 0 … 255 nor real in 0 … 1.
    """
    folder = path_of("folder", folder)
    train, test = _idx_pair(folder, "train", share), _idx_pair(folder, "(?:t10k|test)", share)
    sizes = [split.inputs.shape[1] for split in (train, test)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{folder}: train images have {sizes[0]} pixels, test images {sizes[1]}")
    return train, test


def _idx_pair(folder: pathlib.Path, part: str, share: Share) -> Split:
    path = _find(folder, f"{part}-images", "idx3-ubyte")
    labels = read_idx(_find(folder, f"{part}-labels", "idx1-ubyte"))
    shape = idx_shape(path)
    if labels.ndim != 1 or len(shape) < 2 or shape[0] != len(labels) or not len(labels):
        raise ValueError(f"{path}: images have shape {shape}, labels {labels.shape}: no pairs")
    rows = share(len(labels))
    images = read_idx(path, rows)
    inputs = images.reshape(len(images), math.prod(shape[1:])).astype(np.float32)
    return Split(inputs / _white(path, images), labels.astype(np.int32), rows)


def _white(path: pathlib.Path, images: np.ndarray) -> int:
    """The value of a white pixel: 255 of whole numbers, 1 of real ones."""
    white = 255 if np.issubdtype(images.dtype, np.integer) else 1
    low, high = (images.min(), images.max()) if images.size else (0, 0)
    if not (low >= 0 and high <= white):
        raise ValueError(
            f"{path}: pixels are {images.dtype} from {low} to {high}, expected whole numbers in "
            "0 … 255 or real ones in 0 … 1"
        )
    return white


def _find(folder: pathlib.Path, stem: str, kind: str) -> pathlib.Path:
    """The one file with such a name, plain or gzipped, whatever its prefix ("emnist-letters-")."""
    name = re.compile(rf"(.*-)?{stem}[-.]{kind}(\.gz)?", re.IGNORECASE)
    places = [folder, folder / "raw", folder / "MNIST" / "raw"]
    files = [path for place in places if place.is_dir() for path in sorted(place.iterdir())]
    found = [path for path in files if path.is_file() and name.fullmatch(path.name)]
    plain = {path.name.lower().removesuffix(".gz"): path for path in reversed(found)}
    if len(plain) > 1:
        raise ValueError(f"{folder} has {' and '.join(sorted(plain))}: one data set a folder")
    if not plain:
        wanted = f"{stem.replace('(?:t10k|test)', 't10k')}-{kind}"
        there = ", ".join(path.name for path in files[:8]) or "nothing"
        raise FileNotFoundError(f"{folder} has no {wanted}, plain or .gz; there is {there}")
    return next(iter(plain.values()))


def read_idx(path: str | pathlib.Path, rows: range | None = None) -> np.ndarray:
    """The array in an IDX file, plain or gzipped (format: Y. LeCun's MNIST page); or some rows.

    Raises ValueError, naming the file, for a wrong magic number, an unknown type, a length other
    than the header's, trailing bytes, damaged compression, or rows that are not there. Nothing is
    allocated before the header is known to be one that the file can hold.
    """
    return _opened(path, lambda file, room: _read_idx(file, room, rows))


def idx_shape(path: str | pathlib.Path) -> tuple[int, ...]:
    """The shape that the header of an IDX file names. Raises ValueError as `read_idx` does."""
    return _opened(path, lambda file, room: _read_header(file, room)[0])


def _opened(path: str | pathlib.Path, read: Callable[[Any, int], T]) -> T:
    """read(file, the bytes that it can hold), with what goes wrong named by the path."""
    path = path_of("path", path)
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        room = path.stat().st_size * (GZIP_RATIO if zipped else 1)
        try:
            if zipped:
                _check_gzip_header(raw)
            return read(gzip.GzipFile(fileobj=raw) if zipped else raw, room)
        except (ValueError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is not a sound IDX file: {error}") from None


def _check_gzip_header(raw: Any) -> None:
    """Python's reader passes over reserved flags and a wrong header checksum; zlib refuses them,
    as the format wants it (P. Deutsch, *GZIP file format specification*, RFC 1952, 1996)."""
    zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(raw.read(1 << 16), 1)
    raw.seek(0)


def _read_header(file: Any, room: int) -> tuple[tuple[int, ...], np.dtype]:
    head = file.read(4)
    if len(head) < 4:
        raise ValueError("it ends inside the magic number")
    zero, kind, rank = head[:2], head[2], head[3]
    if zero != b"\0\0" or kind not in IDX_TYPES or not 1 <= rank <= 4:
        raise ValueError(f"magic number {head.hex()}, expected 0000, a type and a rank of 1 to 4")
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ValueError("it ends inside the header")
    shape, dtype = tuple(np.frombuffer(sizes, ">u4").tolist()), np.dtype(IDX_TYPES[kind])
    length = math.prod(shape) * dtype.itemsize
    if length > room:
        raise ValueError(f"the header promises {length} bytes, the file can hold {room} at most")
    return shape, dtype


def _read_idx(file: Any, room: int, rows: range | None = None) -> np.ndarray:
    shape, dtype = _read_header(file, room)
    own = range(shape[0]) if rows is None else rows
    if not 0 <= own.start <= own.stop <= shape[0]:
        raise ValueError(f"rows {own.start} to {own.stop} of {shape[0]} were asked for")
    row, begin = math.prod(shape[1:]) * dtype.itemsize, file.tell()
    length = shape[0] * row
    file.seek(begin + own.start * row)
    body = file.read(len(own) * row)
    end = min(file.seek(begin + length), room)  # one may go past the end of a plain file
    if end < begin + length:
        raise ValueError(f"the header promises {length} bytes, {end - begin} follow")
    if file.read(1):
        raise ValueError(f"bytes follow the {length} that the header promises")
    own_shape = (len(own), *shape[1:])
    return np.frombuffer(body, dtype).reshape(own_shape).astype(dtype.newbyteorder("="))
