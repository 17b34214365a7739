"""Data: what is read is what the file says, or the file is refused by name."""

import gzip
import struct

import numpy as np
import pytest

from jaxbackprop import data


def idx(array, kind=0x08, magic=b"\0\0"):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return magic + bytes([kind, array.ndim]) + shape + array.tobytes()


IMAGES = np.arange(24, dtype="u1").reshape(4, 2, 3)
LABELS = np.array([1, 0, 2, 1], "u1")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(0x08, ">u1"), (0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")],
)
def test_reads_every_type_plain_and_zipped(tmp_path, kind, dtype, zipped):
    array = IMAGES.astype(dtype)
    path = tmp_path / "file"
    path.write_bytes((gzip.compress if zipped else bytes)(idx(array, kind)))
    found = data.read_idx(path)
    assert found.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, array)


WHOLE = idx(IMAGES)
BOMB = idx(np.zeros((4, 2, 3), "u1"))[:-24] + bytes(10_000_000)
HUGE = b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 2**31)


ZIPPED = gzip.compress(WHOLE, mtime=0)
UNSOUND = {
    "empty": (b"", "ends inside the magic number"),
    "a picture": (b"PNG\0" + WHOLE[4:], "magic number 504e4700"),
    "unknown type": (WHOLE[:2] + b"\x07" + WHOLE[3:], "magic number 00000703"),
    "nine axes": (WHOLE[:3] + b"\x09" + WHOLE[4:], "magic number 00000809"),
    "half a header": (WHOLE[:9], "ends inside the header"),
    "one byte short": (WHOLE[:-1], "promises 24 bytes"),
    "one byte long": (WHOLE + b"\0", "bytes follow the 24"),
    "huge header": (HUGE, "the file can hold 16 at most"),
    "huge header, zipped": (gzip.compress(HUGE, mtime=0), "the file can hold"),
    "a bomb": (gzip.compress(BOMB, mtime=0), "bytes follow the 24"),
    "cut zip": (ZIPPED[:-9], "end"),
    "wrong checksum": (ZIPPED[:-8] + b"\1\2\3\4" + ZIPPED[-4:], "CRC"),
    "no zip inside": (ZIPPED[:4] + b"\xff" * 20, "."),
}


@pytest.mark.parametrize(("content", "message"), UNSOUND.values(), ids=UNSOUND)
def test_a_file_that_is_not_sound_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"train-images-idx3-ubyte is not a sound IDX file.*{message}"
    ):
        data.read_idx(path)


def write_folder(
    folder, images=IMAGES, labels=LABELS, separator="-", suffix="", parts=("train", "t10k"), kind=8
):
    pack = gzip.compress if suffix else bytes
    for part in parts:
        for name, rank, array, code in (("images", 3, images, kind), ("labels", 1, labels, 8)):
            path = folder / f"{part}-{name}{separator}idx{rank}-ubyte{suffix}"
            path.write_bytes(pack(idx(array, code)))


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_four_files_is_two_splits_scaled_to_one(tmp_path, separator, suffix):
    write_folder(tmp_path, separator=separator, suffix=suffix)
    train, test = data.idx_folder(tmp_path)
    np.testing.assert_allclose(train.inputs, IMAGES.reshape(4, 6) / np.float32(255))
    np.testing.assert_array_equal(test.labels, LABELS)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("rows", [range(4), range(1), range(1, 3), range(3, 4), range(4, 4)])
def test_a_share_of_the_inputs_is_read_with_all_labels(tmp_path, suffix, rows):
    write_folder(tmp_path, suffix=suffix)
    whole, _ = data.idx_folder(tmp_path)
    train, test = data.idx_folder(tmp_path, lambda examples: rows)
    np.testing.assert_array_equal(train.inputs, whole.inputs[rows.start : rows.stop])
    np.testing.assert_array_equal(test.labels, LABELS)
    assert train.rows == rows


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"x"])
def test_what_is_wrong_outside_of_a_share_is_refused_as_well(tmp_path, suffix, change):
    write_folder(tmp_path, suffix=suffix)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    content = change(idx(IMAGES))
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError, match="header promises"):
        data.idx_folder(tmp_path, lambda examples: range(1))


def test_a_share_that_is_not_there_is_refused(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match="rows 2 to 9 of 4 were asked for"):
        data.idx_folder(tmp_path, lambda examples: range(2, 9))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no train-images-idx3-ubyte"):
        data.idx_folder(tmp_path)


def test_images_and_labels_that_do_not_pair_are_refused(tmp_path):
    write_folder(tmp_path, labels=LABELS[:3])
    with pytest.raises(ValueError, match="no pairs"):
        data.idx_folder(tmp_path)


EMNIST = ("emnist-letters-train", "emnist-letters-test")


@pytest.mark.parametrize("below", [".", "raw", "MNIST/raw"])
@pytest.mark.parametrize(("parts", "suffix"), [(EMNIST, ".gz"), (("train", "t10k"), ".GZ")])
def test_the_names_that_data_sets_come_with_are_found(tmp_path, below, parts, suffix):
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    write_folder(tmp_path / below, parts=parts, suffix=suffix)
    train, _ = data.idx_folder(tmp_path)
    np.testing.assert_array_equal(train.labels, LABELS)


def test_a_plain_file_and_its_gzipped_twin_are_one_file(tmp_path):
    write_folder(tmp_path)
    write_folder(tmp_path, suffix=".gz")
    assert len(data.idx_folder(tmp_path)[0].labels) == 4


def test_two_data_sets_in_a_folder_are_not_told_apart_by_chance(tmp_path):
    write_folder(tmp_path)
    write_folder(tmp_path, parts=EMNIST)
    with pytest.raises(ValueError, match="one data set a folder"):
        data.idx_folder(tmp_path)


def test_where_nothing_is_found_the_message_lists_what_is_there(tmp_path):
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"there is readme\.txt"):
        data.idx_folder(tmp_path)


@pytest.mark.parametrize(
    ("images", "kind", "white"),
    [
        (IMAGES * 10, 0x08, 255),
        ((IMAGES * 10).astype(">i2"), 0x0B, 255),
        ((IMAGES * 10).astype(">i4"), 0x0C, 255),
        ((IMAGES / 24).astype(">f4"), 0x0D, 1),
        ((IMAGES / 24).astype(">f8"), 0x0E, 1),
    ],
)
def test_pixels_of_every_type_come_between_0_and_1(tmp_path, images, kind, white):
    write_folder(tmp_path, images=images, kind=kind)
    np.testing.assert_allclose(
        data.idx_folder(tmp_path)[0].inputs, images.reshape(4, 6) / white, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("images", "kind"),
    [
        ((-1.0 * IMAGES).astype(">i2"), 0x0B),
        ((1000.0 * IMAGES).astype(">i4"), 0x0C),
        ((10.0 * IMAGES).astype(">f4"), 0x0D),
        (np.full((4, 2, 3), np.nan, ">f4"), 0x0D),
    ],
)
def test_pixels_outside_their_range_are_refused(tmp_path, images, kind):
    write_folder(tmp_path, images=images, kind=kind)
    with pytest.raises(ValueError, match="expected whole numbers in 0 … 255 or real ones in 0 … 1"):
        data.idx_folder(tmp_path)


def test_train_and_test_images_of_another_size_are_refused(tmp_path):
    write_folder(tmp_path, parts=("train",))
    write_folder(tmp_path, images=IMAGES[:, :, :2].copy(), parts=("t10k",))
    with pytest.raises(ValueError, match="train images have 6 pixels, test images 4"):
        data.idx_folder(tmp_path)


def test_labels_that_begin_at_one_are_told_so():
    with pytest.raises(ValueError, match="they begin at 1, subtract 1"):
        data.one_hot([1, 2, 3], 3)


def test_the_digits_are_split_once_and_for_all():
    train, test = data.digits()
    assert train.inputs.shape == (1438, 64)
    assert test.inputs.shape == (359, 64)
    assert train.inputs.min() == 0
    assert train.inputs.max() == 1
    rows = {row.tobytes() for row in train.inputs} & {row.tobytes() for row in test.inputs}
    assert not rows


def test_one_hot_has_a_row_an_example():
    assert data.one_hot([2, 0], 3).tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("flag", [0x20, 0x40, 0x80, 0x02])
def test_a_gzip_header_that_zlib_refuses_is_refused(tmp_path, flag):
    """Reserved flags, and a header checksum that does not fit: Python's reader passes over both."""
    path = tmp_path / "labels"
    content = bytearray(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), mtime=0))
    path.write_bytes(content)
    assert data.read_idx(path).tolist() == [7, 9]
    content[3] |= flag
    if flag == 0x02:
        content[10:10] = b"\0\0"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="labels is not a sound IDX file"):
        data.read_idx(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3], r"labels\[1\] is 3, expected 0 … 2"),
        ([-1], r"labels\[0\] is -1"),
        ([[0, 1]], r"labels have shape \(1, 2\)"),
        ([0.5], "labels are float64"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message, untyped):
    with pytest.raises(ValueError, match=message):
        data.one_hot(labels, 3)
