"""Data sets: expected values are closed forms, published numbers, or files made here byte by byte."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import pickle
import socket
import struct
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import download
import numpy as np
import pytest
from PIL import Image

from ms_diffusion import data
from ms_diffusion.config import DataConfig
from ms_diffusion.data import ImageDataset, make_dataset, to_float, to_uint8
from ms_diffusion.errors import UserError

SYSTEM = data._SYSTEM
IDX = "train-images-idx3-ubyte"
NOWHERE = "http://127.0.0.1:9/"  # the discard port: refused at once


@pytest.fixture(autouse=True)
def _only_this_test(monkeypatch, tmp_path):
    """No test sees the machine's own data, its cache or the network."""
    monkeypatch.setattr(data, "_SYSTEM", tmp_path / "system")
    mirrors = {"fashion_mnist": IDX + ".gz", "mnist": IDX + ".gz", "cifar10": "cifar-10-binary.tar.gz"}
    monkeypatch.setattr(data, "_MIRRORS", {name: (NOWHERE + file,) for name, file in mirrors.items()})
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def config(tmp_path):
    def make(name, **kwargs):
        kwargs.setdefault("image_size", {"digits": 8, "cifar10": 32}.get(name, 4))
        return DataConfig(name=name, cache=str(tmp_path / "cache"), **kwargs)

    return make


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refusal(*args) -> str:
    """The message with which `make_dataset` refuses; always one line."""
    with pytest.raises(UserError) as caught:
        make_dataset(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The two conversions


def test_to_float_is_the_closed_form_for_every_byte():
    every = np.arange(256, dtype=np.uint8)
    x = to_float(every)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, np.arange(256) / 127.5 - 1, rtol=0, atol=6e-8)
    assert x[0] == -1 and x[255] == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_to_uint8_inverts_to_float(dtype):
    every = np.arange(256, dtype=np.uint8)
    back = to_uint8(to_float(every).astype(dtype))
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, every)


def test_to_uint8_clips_and_rounds():
    levels = np.array([300, 256, -1, -1000, np.inf, -np.inf, 99.6, 100.4, 254.6])
    np.testing.assert_array_equal(to_uint8(levels / 127.5 - 1), [255, 255, 0, 0, 255, 0, 100, 100, 255])


def test_to_uint8_and_to_float_refuse_what_has_no_meaning():
    with pytest.raises(ValueError, match="1 of 3 values are NaN"):
        to_uint8(np.array([0.0, np.nan, 1.0]))
    with pytest.raises(ValueError, match=r"to_uint8 takes floating numbers.*int64"):
        to_uint8(np.array([0, 255]))
    with pytest.raises(ValueError, match="to_float takes uint8, not float32"):
        to_float(np.zeros(3, dtype=np.float32))


# Batches


@pytest.fixture
def numbered() -> ImageDataset:
    """Five images (2, 2, 3) whose bytes count 0..59."""
    return ImageDataset(np.arange(60, dtype=np.uint8).reshape(5, 2, 2, 3), "numbered")


def test_batch_takes_the_images_in_the_order_asked_for(numbered):
    x = numbered.batch([3, 0, 3])
    assert len(numbered) == 5
    assert x.shape == (3, 2, 2, 3) and x.dtype == np.float32 and x.flags.c_contiguous
    np.testing.assert_array_equal(to_uint8(x), numbered.images[[3, 0, 3]])


def test_batch_mirrors_only_the_images_asked_for_and_not_the_data(numbered):
    before = numbered.images.copy()
    x = numbered.batch(np.array([1, 2]), flip=[False, True])
    assert x.flags.c_contiguous
    np.testing.assert_array_equal(to_uint8(x[0]), numbered.images[1])
    np.testing.assert_array_equal(to_uint8(x[1])[0], [[26, 25, 24], [29, 28, 27]])
    np.testing.assert_array_equal(numbered.images, before)


def test_batch_is_contiguous_even_where_the_images_are_not():
    images = np.zeros((4, 5, 5, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
    assert ImageDataset(images, "transposed").batch([0, 2]).flags.c_contiguous


def test_batch_refuses_what_numpy_would_take_for_something_else(numbered):
    for indices in (3, [True, False, True, False, True], [[0, 1]], [0.0]):
        with pytest.raises(ValueError, match="indices must be whole numbers"):
            numbered.batch(indices)
    for flip in ([0, 1], [True], True):
        with pytest.raises(ValueError, match="flip must be bool"):
            numbered.batch([0, 1], flip=flip)
    with pytest.raises(IndexError):
        numbered.batch([5])


# Digits and conversion


def test_digits_are_scikit_learns(config):
    from sklearn.datasets import load_digits

    dataset = make_dataset(config("digits"), channels=1)
    assert len(dataset) == 1797 and dataset.name == "digits"
    assert dataset.images.shape == (1797, 1, 8, 8) and dataset.images.dtype == np.uint8
    assert set(np.unique(dataset.images)) == {round(v * 255 / 16) for v in range(17)}
    np.testing.assert_array_equal(np.rint(dataset.images[:, 0] * (16 / 255)), load_digits().images)


def test_gray_becomes_colour_with_three_equal_channels(config):
    gray, colour = (make_dataset(config("digits"), channels).images for channels in (1, 3))
    np.testing.assert_array_equal(colour, np.repeat(gray, 3, axis=1))


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_of_channels_are_refused(config, channels):
    message = refusal(config("digits"), channels)
    assert f"model.channels is {channels}" in message and "1 channel (gray) or 3 (colour)" in message


def test_resizing_is_antialiased_bilinear():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (8, 4))[None, None]
    small = data._convert(stripes, 1, 4)
    # Triangle of width 2 around each new pixel: weights 1/4 3/4 3/4 1/4, and at the border 3/4 3/4 1/4.
    np.testing.assert_allclose(small[0, 0], np.tile([255 * 3 / 7, 127.5, 127.5, 255 * 4 / 7], (4, 1)), atol=1)


@pytest.mark.parametrize("transpose", [False, True])
def test_the_shorter_side_is_kept_and_the_centre_cropped(transpose):
    image = np.repeat(np.array([10, 90, 90, 200], dtype=np.uint8), 4)[None, None, None, :].repeat(8, axis=2)
    expected = np.full((1, 1, 8, 8), 90)
    if transpose:
        image = image.transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(data._convert(image, 1, 8), expected)
    assert data._convert(image, 3, 5).shape == (1, 3, 5, 5)


# IDX files


def idx(images: np.ndarray) -> bytes:
    return struct.pack(">4I", 0x803, *images.shape) + images.tobytes()


@pytest.fixture
def tiny() -> np.ndarray:
    return np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)


@pytest.fixture
def official(monkeypatch, tiny):
    """Makes `tiny` the official content of both IDX data sets."""
    checksum = hashlib.sha256(idx(tiny)).hexdigest()
    monkeypatch.setattr(data, "_SHA256", {"fashion_mnist": (checksum,), "mnist": (checksum,), "cifar10": ()})


@pytest.mark.skipif(
    not (SYSTEM / "fashion-mnist" / f"{IDX}.gz").exists(), reason="the package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_has_its_published_mean_and_deviation(config, monkeypatch, capsys):
    monkeypatch.setattr(data, "_SYSTEM", SYSTEM)
    dataset = make_dataset(config("fashion_mnist", image_size=28, download=False), channels=1)
    assert dataset.images.shape == (60000, 1, 28, 28)
    levels = np.bincount(dataset.images.ravel(), minlength=256) / dataset.images.size
    x = np.arange(256) / 127.5 - 1
    mean = levels @ x
    assert abs(mean - -0.4279) < 5e-5
    assert abs((levels @ (x - mean) ** 2) ** 0.5 - 0.7060) < 5e-5
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
@pytest.mark.parametrize("subfolder", ["", "train", "raw", "torchvision"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_is_found_in_the_usual_layouts(config, official, tmp_path, tiny, capsys, name, subfolder, suffix):
    if subfolder == "torchvision":
        subfolder = {"fashion_mnist": "FashionMNIST/raw", "mnist": "MNIST/raw"}[name]
    content = idx(tiny)
    write(tmp_path / "own" / subfolder / (IDX + suffix), gzip.compress(content) if suffix else content)
    dataset = make_dataset(config(name, folder=str(tmp_path / "own")), channels=1)
    np.testing.assert_array_equal(dataset.images[:, 0], tiny)
    assert dataset.name == name and capsys.readouterr().err == ""


def test_torchvisions_root_with_both_data_sets_gives_the_one_asked_for(config, tmp_path, tiny):
    write(tmp_path / "MNIST/raw" / IDX, idx(tiny))
    write(tmp_path / "FashionMNIST/raw" / IDX, idx(tiny + 100))
    for name, expected in (("mnist", tiny), ("fashion_mnist", tiny + 100)):
        images = make_dataset(config(name, folder=str(tmp_path)), 1).images
        np.testing.assert_array_equal(images[:, 0], expected)


def tutorial_zip(path: Path, member: str, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dataset/t10k-images-idx3-ubyte", b"not this one")
        archive.writestr(member, content)
    return path


def test_the_tutorials_zip_is_read(config, official, tmp_path, tiny):
    tutorial_zip(tmp_path / "dataset.zip", f"dataset/{IDX}", idx(tiny))
    images = make_dataset(config("fashion_mnist", folder=str(tmp_path)), 1).images
    np.testing.assert_array_equal(images[:, 0], tiny)


def test_a_zip_without_the_images_is_refused(config, tmp_path):
    path = tutorial_zip(tmp_path / "dataset.zip", "dataset/other", b"")
    message = refusal(config("fashion_mnist", folder=str(tmp_path)), 1)
    assert f"{path} holds no {IDX}" in message and "get another copy" in message


def test_a_persons_own_idx_is_used_with_one_warning(config, tmp_path, capsys):
    path = write(tmp_path / IDX, idx(np.full((2, 6, 5), 7, dtype=np.uint8)))
    images = make_dataset(config("mnist", folder=str(tmp_path)), 1).images
    assert images.shape == (2, 1, 4, 4) and (images == 7).all()
    line = f"warning: {path} is not the official mnist; its 2 images of 6x5 are used as they are\n"
    assert capsys.readouterr().err == line


WHOLE = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8)))


@pytest.mark.parametrize(
    ("file", "content", "wrong"),
    [
        (IDX, struct.pack(">4I", 0x803, 3, 4, 4) + bytes(40), "64 bytes of content expected, 56 found"),
        (IDX, struct.pack(">4I", 0x803, 3, 4, 4) + bytes(50), "64 bytes of content expected, 66 found"),
        (IDX, bytes(5), "at least 16 bytes of content expected, 5 found"),
        (IDX, struct.pack(">4I", 0x803, 0, 4, 4), "holds no images"),
        (IDX, struct.pack(">2I", 0x801, 8) + bytes(8), "it begins with 00000801, not 00000803"),
        (IDX + ".gz", gzip.compress(bytes(9)), "at least 16 bytes of content expected, 9 found"),
        (IDX + ".gz", WHOLE[:-4], "4816 bytes of content expected, 4816 found"),
        (IDX + ".gz", WHOLE[: len(WHOLE) // 2], "4816 bytes of content expected, "),
        (IDX + ".gz", WHOLE[:-8] + bytes(8), "CRC check failed"),
        (IDX + ".gz", b"<html>404</html>", "is not gzip: it begins with 3c68, not 1f8b"),
        ("dataset.zip", b"PK\3\4 and no more", "File is not a zip file"),
    ],
    ids=lambda value: "bytes" if isinstance(value, bytes) else value,
)
def test_a_damaged_file_is_refused_with_its_name(config, tmp_path, file, content, wrong):
    path = write(tmp_path / file, content)
    message = refusal(config("fashion_mnist", folder=str(tmp_path)), 1)
    assert message.startswith(str(path)) and wrong in message
    assert f"get {IDX}" in message if "begins with 0" in wrong else "get another copy" in message


# The search


def test_a_folder_is_the_only_place_searched(config, official, tmp_path, tiny):
    write(tmp_path / "system/mnist" / IDX, idx(tiny))
    write(tmp_path / "cache/mnist" / IDX, idx(tiny))
    (tmp_path / "own").mkdir()
    for folder in (tmp_path / "own", tmp_path / "absent"):
        message = refusal(config("mnist", folder=str(folder)), 1)
        assert f"data.folder {folder} holds no mnist" in message
        assert f"put {IDX}.gz into it" in message and "leave data.folder out" in message


def test_the_system_comes_before_the_cache(config, monkeypatch, tmp_path, tiny):
    second = tiny + 1
    checksums = tuple(hashlib.sha256(idx(images)).hexdigest() for images in (tiny, second))
    monkeypatch.setitem(data._SHA256, "fashion_mnist", checksums)
    write(tmp_path / "cache/fashion_mnist" / f"{IDX}.gz", gzip.compress(idx(second)))
    options = config("fashion_mnist", download=False)
    np.testing.assert_array_equal(make_dataset(options, 1).images[:, 0], second)
    write(tmp_path / "system/fashion-mnist" / f"{IDX}.gz", gzip.compress(idx(tiny)))
    np.testing.assert_array_equal(make_dataset(options, 1).images[:, 0], tiny)


OTHER = gzip.compress(idx(np.zeros((3, 4, 4), np.uint8)))


@pytest.mark.parametrize("content", [b"<html>", OTHER], ids=["html", "other"])
def test_a_cached_file_that_differs_is_passed_over_and_named(config, official, tmp_path, tiny, capsys, content):
    bad = write(tmp_path / "system/mnist" / f"{IDX}.gz", content)
    write(tmp_path / "cache/mnist" / IDX, idx(tiny))
    np.testing.assert_array_equal(make_dataset(config("mnist"), 1).images[:, 0], tiny)
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {bad} is not ") and warning.count("\n") == 1
    (tmp_path / "cache/mnist" / IDX).unlink()
    assert str(bad) in refusal(config("mnist", download=False), 1)


def test_the_home_directory_may_be_written_as_a_tilde(official, monkeypatch, tmp_path, tiny):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "own" / IDX, idx(tiny))
    write(tmp_path / "kept/mnist" / IDX, idx(tiny))
    for place in ({"folder": "~/own"}, {"cache": "~/kept", "download": False}):
        assert len(make_dataset(DataConfig(name="mnist", image_size=4, **place), 1)) == 3


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "cifar10"])
def test_without_download_the_network_is_never_touched(config, stub, name):
    calls = stub()
    message = refusal(config(name, download=False), 3)
    assert calls == [] and f"{name} is not on this machine and data.download is false" in message
    file = "cifar-10-binary.tar.gz" if name == "cifar10" else f"{IDX}.gz"
    assert f"put {file} into DIR and give --data.folder DIR" in message
    assert ("apt-get install dataset-fashion-mnist" in message) == (name == "fashion_mnist")


def test_the_message_of_unreachable_mirrors_names_each_and_the_mend(config, monkeypatch, capsys):
    urls = (f"{NOWHERE}a/{IDX}.gz", f"{NOWHERE}b/{IDX}.gz")
    monkeypatch.setitem(data._MIRRORS, "fashion_mnist", urls)
    message = refusal(config("fashion_mnist"), 1)
    assert "no mirror could give it" in message and all(url in message for url in urls)
    assert "Connection refused" in message
    assert f"put {IDX}.gz into DIR and give --data.folder DIR" in message
    assert "on Debian and Ubuntu apt-get install dataset-fashion-mnist" in message
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "".join(f"downloading {url}\n" for url in urls)


def test_what_the_mirrors_send_is_what_the_cache_is_searched_for():
    import importlib.util

    spec = importlib.util.find_spec("ms_diffusion.data")
    pristine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pristine)
    assert len(pristine._MIRRORS["fashion_mnist"]) == 3 and len(pristine._MIRRORS["mnist"]) == 2
    for name, urls in pristine._MIRRORS.items():
        assert all(url.startswith("http") and os.path.basename(url) in pristine._FILES[name] for url in urls)


# Downloads


@pytest.fixture
def stub(monkeypatch):
    """Replaces the `download` package's one function by a writer of the given content; lists the calls."""

    def install(*contents):
        answers, calls = iter(contents), []

        def fake(url, path, kind="file", progressbar=True, replace=False, timeout=10.0, verbose=True):
            calls.append((url, progressbar, verbose, kind))
            answer = next(answers)
            if isinstance(answer, BaseException):
                Path(path + ".part").write_bytes(b"half")
                raise answer
            Path(path).write_bytes(answer)

        monkeypatch.setattr(download, "download", fake)
        return calls

    return install


def test_a_download_enters_the_cache_and_is_not_repeated(config, official, stub, tmp_path, tiny):
    calls = stub(gzip.compress(idx(tiny)))
    for _ in range(2):
        np.testing.assert_array_equal(make_dataset(config("mnist"), 1).images[:, 0], tiny)
    assert calls == [(f"{NOWHERE}{IDX}.gz", False, False, "file")]  # stderr is no terminal here
    assert os.listdir(tmp_path / "cache/mnist") == [f"{IDX}.gz"]


def test_a_wrong_mirror_is_followed_by_the_next(config, official, stub, monkeypatch, tmp_path, tiny, capsys):
    urls = tuple(NOWHERE + path for path in (f"a/{IDX}.gz", f"b/{IDX}.gz", f"c/{IDX}.gz", "dataset.zip"))
    monkeypatch.setitem(data._MIRRORS, "fashion_mnist", urls)
    good = tutorial_zip(tmp_path / "made.zip", f"dataset/train/{IDX}", idx(tiny)).read_bytes()
    calls = stub(RuntimeError("Error while fetching.\nError: no route"), gzip.compress(idx(tiny + 1)), b"<html>", good)
    np.testing.assert_array_equal(make_dataset(config("fashion_mnist"), 1).images[:, 0], tiny)
    assert [call[0] for call in calls] == list(urls)
    assert os.listdir(tmp_path / "cache/fashion_mnist") == ["dataset.zip"]
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == [
        f"warning: {urls[0]}: no route",
        f"warning: {urls[1]} is not the official fashion_mnist, its checksum differs: get another copy",
        f"warning: {urls[2]} is not gzip: it begins with 3c68, not 1f8b; get another copy",
    ]


def test_a_damaged_cached_file_is_replaced(config, official, stub, tmp_path, tiny):
    kept = write(tmp_path / "cache/mnist" / f"{IDX}.gz", b"half a file")
    stub(gzip.compress(idx(tiny)))
    make_dataset(config("mnist"), 1)
    assert gzip.decompress(kept.read_bytes()) == idx(tiny)


def test_an_interrupted_download_leaves_nothing(config, official, stub, tmp_path):
    stub(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        make_dataset(config("mnist"), 1)
    assert os.listdir(tmp_path / "cache/mnist") == []


def test_a_cache_that_cannot_be_written_is_named(config, stub, tmp_path):
    write(tmp_path / "cache", b"a file where the folder should be")
    message = refusal(config("mnist"), 1)
    assert f"data.cache {tmp_path / 'cache' / 'mnist'} cannot be written" in message
    assert "--data.cache" in message and "--data.folder DIR" in message


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine: /whole/... is whole, /half/... ends early, /stall/... never comes."""
    pages, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            kind, content = self.path.split("/")[1], pages.get(self.path.split("/")[1])
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if kind == "stall":
                time.sleep(0.6)
            elif content:
                self.wfile.write(content[: len(content) // 2] if kind == "half" else content)

        def log_message(self, *args):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{web.server_address[1]}/", pages, asked
    web.shutdown()
    thread.join()
    web.server_close()


def test_a_real_server_with_bad_and_good_mirrors(config, official, server, monkeypatch, tmp_path, tiny, capsys):
    address, pages, asked = server
    pages.update(dict.fromkeys(("half", "stall", "whole"), gzip.compress(idx(tiny))))
    urls = tuple(f"{address}{page}/{IDX}.gz" for page in ("absent", "half", "stall", "whole"))
    monkeypatch.setitem(data._MIRRORS, "mnist", urls)
    monkeypatch.setattr(data, "_TIMEOUT", 0.2)
    np.testing.assert_array_equal(make_dataset(config("mnist"), 1).images[:, 0], tiny)
    assert os.listdir(tmp_path / "cache/mnist") == [f"{IDX}.gz"]
    out, err = capsys.readouterr()
    assert out == "" and [url for url in urls if f"warning: {url}: " in err] == list(urls[:3])
    assert "404" in err and "timed out" in err
    assert socket.getdefaulttimeout() is None
    before = len(asked)
    make_dataset(config("mnist"), 1)
    assert len(asked) == before


def test_the_progress_bar_is_on_stderr_and_only_on_a_terminal(config, official, server, monkeypatch, tiny, capsys):
    address, pages, _ = server
    pages["whole"] = gzip.compress(idx(tiny))
    url = f"{address}whole/{IDX}.gz"
    monkeypatch.setitem(data._MIRRORS, "mnist", (url,))
    monkeypatch.setitem(data._MIRRORS, "fashion_mnist", (url,))
    make_dataset(config("mnist"), 1)
    assert capsys.readouterr() == ("", f"downloading {url}\n")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    make_dataset(config("fashion_mnist"), 1)
    out, err = capsys.readouterr()
    assert out == "" and "100%" in err


# CIFAR-10


def batches(n=2):
    """Five batches (n, 3072) of random bytes."""
    return np.random.default_rng(1).integers(0, 256, (5, n, 3072), dtype=np.uint8)


def binary_batch(pixels: np.ndarray) -> bytes:
    """Records of one label byte, then red, green and blue planes."""
    return b"".join(bytes([9]) + row.tobytes() for row in pixels)


def python2_batch(pixels: np.ndarray) -> bytes:
    """The pickle of the published files: protocol 2, as Python 2 and its NumPy wrote it."""

    def text(word: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(word)) + word

    def number(n: int) -> bytes:
        return b"J" + struct.pack("<i", n)

    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"(cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    state = b"(" + number(1) + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86" + dtype + b"\x89"
    state += text(pixels.tobytes()) + b"t"
    labels = b"](" + number(6) + number(9) + b"e"
    return b"\x80\x02}(" + text(b"labels") + labels + text(b"data") + array + state + b"b" + b"u."


FORMATS = {
    "bin": ("cifar-10-batches-bin/data_batch_{}.bin", binary_batch, "cifar-10-binary.tar.gz"),
    "py": ("cifar-10-batches-py/data_batch_{}", python2_batch, "cifar-10-python.tar.gz"),
    "py3": ("cifar-10-batches-py/data_batch_{}", lambda p: pickle.dumps({b"data": p}), "cifar-10-python.tar.gz"),
}


def cifar_files(kind: str, count=5) -> dict:
    name, encode, _ = FORMATS[kind]
    files = {name.format(i + 1): encode(pixels) for i, pixels in enumerate(batches()[:count])}
    return {**files, os.path.dirname(name) + "/test_batch" + (".bin" if kind == "bin" else ""): b"not this one"}


def tar(files: dict) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


EXPECTED = batches().reshape(10, 3, 32, 32)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("layout", ["archive", "extracted", "inside"])
def test_cifar10_is_read_from_archives_and_extracted_folders(config, tmp_path, capsys, kind, layout):
    files, folder = cifar_files(kind), tmp_path / "own"
    if layout == "archive":
        write(folder / FORMATS[kind][2], tar(files))
    else:
        for name, content in files.items():
            write(folder / name, content)
    if layout == "inside":
        folder = folder / os.path.dirname(next(iter(files)))
    dataset = make_dataset(config("cifar10", folder=str(folder)), 3)
    np.testing.assert_array_equal(dataset.images, EXPECTED)
    warning = capsys.readouterr().err
    assert "is not the official cifar10; its 10 images of 32x32 are used as they are" in warning
    assert warning.count("\n") == 1


def test_cifar10_in_gray_is_pils_luminance(config, tmp_path):
    write(tmp_path / "cifar-10-binary.tar.gz", tar(cifar_files("bin")))
    gray = make_dataset(config("cifar10", folder=str(tmp_path)), 1).images
    luminance = np.einsum("c,nchw->nhw", [0.299, 0.587, 0.114], EXPECTED.astype(float))
    assert np.abs(gray[:, 0] - luminance).max() < 0.51


def test_a_cifar10_archive_is_downloaded_checked_and_cached(config, stub, monkeypatch, tmp_path, capsys):
    archive = tar(cifar_files("bin"))
    stub(archive)
    message = refusal(config("cifar10"), 3)
    assert f"{NOWHERE}cifar-10-binary.tar.gz is not the official cifar10, its checksum differs" in message
    monkeypatch.setitem(data._SHA256, "cifar10", (hashlib.sha256(archive).hexdigest(),))
    stub(archive)
    np.testing.assert_array_equal(make_dataset(config("cifar10"), 3).images, EXPECTED)
    assert os.listdir(tmp_path / "cache/cifar10") == ["cifar-10-binary.tar.gz"]
    assert "warning" not in capsys.readouterr().err


def test_an_extracted_folder_is_official_only_with_50000_images(config, tmp_path):
    for name, content in cifar_files("bin").items():
        write(tmp_path / "cache/cifar10" / name, content)
    assert "is not the official cifar10" in refusal(config("cifar10", download=False), 3)
    for i in range(1, 6):
        write(tmp_path / f"cache/cifar10/cifar-10-batches-bin/data_batch_{i}.bin", bytes(3073 * 10000))
    assert len(make_dataset(config("cifar10", download=False), 3)) == 50000


def test_missing_and_damaged_cifar10_batches_are_named(config, tmp_path):
    archive = write(tmp_path / "cifar-10-binary.tar.gz", tar(cifar_files("bin", count=3)))
    message = refusal(config("cifar10", folder=str(tmp_path)), 3)
    assert f"{archive}: data_batch_4.bin, data_batch_5.bin missing" in message and "get another copy" in message
    files = cifar_files("bin")
    files["cifar-10-batches-bin/data_batch_2.bin"] = bytes(3073 + 40)
    archive.write_bytes(tar(files))
    message = refusal(config("cifar10", folder=str(tmp_path)), 3)
    assert f"{archive}: data_batch_2.bin is damaged: a multiple of 3073 bytes expected, 3113 found" in message
    archive.write_bytes(tar(cifar_files("bin"))[:-2000])
    message = refusal(config("cifar10", folder=str(tmp_path)), 3)
    assert message.startswith(f"{archive} cannot be read") and "get another copy" in message


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_before_it_acts(config, tmp_path, protocol):
    target = tmp_path / "made by the pickle"
    files = cifar_files("py3")
    files["cifar-10-batches-py/data_batch_3"] = pickle.dumps({"labels": Evil(target)}, protocol)
    archive = write(tmp_path / "cifar-10-python.tar.gz", tar(files))
    message = refusal(config("cifar10", folder=str(tmp_path)), 3)
    assert f"{archive}: data_batch_3 is refused" in message and f"it asks for {os.mkdir.__module__}.mkdir" in message
    assert "get cifar-10-binary.tar.gz" in message
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({b"data": batches()[0].view(np.int8)}),
        pickle.dumps({b"data": np.asfortranarray(batches()[0])}),
        pickle.dumps({b"data": batches()[0].reshape(2, 3, 32, 32)}),
        pickle.dumps({b"data": batches()[0].tobytes()}),
        pickle.dumps({b"labels": [1, 2]}),
        python2_batch(batches()[0])[:-100],
        b"",
    ],
    ids=["signed", "fortran", "shape", "bytes", "no data", "truncated", "empty"],
)
def test_a_pickle_of_something_else_is_refused(config, tmp_path, content):
    for name, batch in cifar_files("py").items():
        write(tmp_path / name, batch)
    write(tmp_path / "cifar-10-batches-py/data_batch_5", content)
    message = refusal(config("cifar10", folder=str(tmp_path)), 3)
    assert "data_batch_5 is refused" in message and "get cifar-10-binary.tar.gz" in message


# Folders of pictures


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    return path


def colours(config, folder, channels=3, **kwargs) -> list:
    """The top left pixel of every picture, in order."""
    images = make_dataset(config("images", folder=str(folder), **kwargs), channels).images
    return [tuple(pixel) for pixel in images[:, :, 0, 0].tolist()]


def test_pictures_are_found_in_the_order_of_their_paths(config, folder, capsys):
    names = ["a.png", "b/1.JPG", "b/2.jpeg", "b/c/3.bmp", "b.webp", "d.gif", "e.tif", "f.TIFF", "z é.PNG"]
    (folder / "b/c").mkdir(parents=True)
    for i, name in reversed(list(enumerate(sorted(names)))):
        Image.new("RGB", (6, 5), (20 * i,) * 3).save(folder / name, quality=100, lossless=True)
    write(folder / "notes.txt", b"not a picture")
    write(folder / ".hidden.png", b"nor this")
    write(folder / ".thumbnails/a.png", b"nor this")
    dataset = make_dataset(config("images", folder=str(folder)), channels=3)
    assert dataset.name == "images" and dataset.images.shape == (9, 3, 4, 4) and dataset.images.dtype == np.uint8
    np.testing.assert_array_equal(dataset.images[:, 0, 0, 0], 20 * np.arange(9))
    assert capsys.readouterr().err == ""


def test_linked_folders_are_searched(config, folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("L", (4, 4), 77).save(tmp_path / "elsewhere/a.png")
    os.symlink(tmp_path / "elsewhere", folder / "link")
    assert colours(config, folder, channels=1) == [(77,)]


def test_colour_and_gray_convert_both_ways(config, folder):
    Image.new("RGB", (4, 4), (200, 100, 50)).save(folder / "a.png")
    Image.new("L", (4, 4), 60).save(folder / "b.png")
    Image.new("1", (4, 4), 1).save(folder / "c.png")
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(folder / "d.tif")
    assert colours(config, folder, channels=3) == [(200, 100, 50), (60,) * 3, (255,) * 3, (255,) * 3]
    gray = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert colours(config, folder, channels=1) == [(gray,), (60,), (255,), (255,)]


def test_transparency_is_composited_on_white(config, folder):
    Image.new("RGBA", (4, 4), (0, 100, 200, 0)).save(folder / "a.png")
    Image.new("RGBA", (4, 4), (0, 100, 255, 51)).save(folder / "b.png")  # alpha 1/5
    Image.new("LA", (4, 4), (0, 51)).save(folder / "c.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 30, 60, 90])
    palette.save(folder / "d.png")
    palette.save(folder / "e.png", transparency=1)
    palette.save(folder / "f.gif", transparency=1)
    Image.new("RGB", (4, 4), (1, 2, 3)).save(folder / "g.png", transparency=(1, 2, 3))
    white = (255, 255, 255)
    assert colours(config, folder) == [white, (204, 224, 255), (204,) * 3, (30, 60, 90), white, white, white]


def test_sixteen_bits_are_scaled_not_clipped(config, folder):
    values = np.repeat(np.array([0, 257 * 100, 257 * 200, 65535], dtype=np.uint16), 4).reshape(4, 4).T
    Image.fromarray(np.ascontiguousarray(values)).save(folder / "a.png")
    Image.fromarray(np.ascontiguousarray(values)).save(folder / "b.tif")
    Image.frombytes("I;16B", (4, 4), values.astype(">u2").tobytes()).save(folder / "c.tif")
    images = make_dataset(config("images", folder=str(folder)), channels=1).images
    np.testing.assert_array_equal(images, np.tile(np.array([0, 100, 200, 255], dtype=np.uint8), (3, 1, 4, 1)))


def test_exif_orientation_is_applied(config, folder):
    picture = np.zeros((4, 4), dtype=np.uint8)
    picture[0] = 240  # a white row on top, which orientation 6 (turn right to view) puts on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(folder / "a.png", exif=exif)
    image = make_dataset(config("images", folder=str(folder)), channels=1).images[0, 0]
    np.testing.assert_array_equal(image, np.tile([0, 0, 0, 240], (4, 1)))


def test_an_animation_gives_its_first_frame(config, folder):
    first, second = (Image.new("L", (4, 4), value) for value in (40, 90))
    first.save(folder / "a.gif", save_all=True, append_images=[second])
    assert colours(config, folder, channels=1) == [(40,)]


@pytest.fixture
def mixed(folder):
    """Two good pictures, and between them five that cannot be decoded."""
    Image.new("L", (4, 4), 10).save(folder / "a.png")
    buffer = io.BytesIO()
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    write(folder / "b truncated.jpg", buffer.getvalue()[: len(buffer.getvalue()) // 2])
    write(folder / "c text.png", b"not an image")
    write(folder / "d empty.png", b"")
    Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)).save(folder / "e 32 bits.tif")
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(folder / "f float.tif")
    Image.new("L", (4, 4), 20).save(folder / "g.png")
    return folder


def test_undecodable_pictures_are_refused_with_the_first_ones_name(config, mixed):
    message = refusal(config("images", folder=str(mixed)), 1)
    assert f"5 of 7 pictures cannot be decoded, the first is {mixed / 'b truncated.jpg'} (" in message
    assert "truncated (" in message and "data.undecodable=skip" in message


def test_undecodable_pictures_can_be_skipped_and_each_is_named(config, mixed, capsys):
    assert colours(config, mixed, channels=1, undecodable="skip") == [(10,), (20,)]
    lines = capsys.readouterr().err.splitlines()
    reasons = ["truncated", "not a picture", "not a picture", "more than 16 bits", "floating numbers"]
    assert len(lines) == 5
    for line, path, reason in zip(lines, sorted(mixed.glob("* *")), reasons):
        assert line.startswith(f"warning: {path} is left out") and reason in line


def test_a_folder_with_nothing_left_is_refused(config, folder):
    write(folder / "a.png", b"not an image")
    message = refusal(config("images", folder=str(folder), undecodable="skip"), 1)
    assert f"data.folder {folder}: none of its 1 pictures can be decoded" in message


def test_missing_empty_and_unreadable_folders_are_refused(config, folder, monkeypatch):
    message = refusal(config("images", folder=str(folder / "absent")), 1)
    assert f"data.folder {folder / 'absent'} is not a folder: give the one that holds the pictures" in message
    message = refusal(config("images", folder=str(folder)), 1)
    assert f"data.folder {folder} holds no pictures: put " in message and ".png" in message

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    message = refusal(config("images", folder=str(folder)), 1)
    assert f"data.folder: {folder} cannot be read (Permission denied): mend its permissions" in message


# Labels

IDX_LABELS = "train-labels-idx1-ubyte"


def idx_labels(labels) -> bytes:
    return struct.pack(">2I", 0x801, len(labels)) + bytes(labels)


def test_digits_have_scikit_learns_labels(config):
    from sklearn.datasets import load_digits

    dataset = make_dataset(config("digits"), 1, 10)
    np.testing.assert_array_equal(dataset.labels, load_digits().target)
    assert dataset.labels.dtype == np.int32 and make_dataset(config("digits"), 1).labels is None


@pytest.mark.skipif(
    not (SYSTEM / "fashion-mnist" / f"{IDX_LABELS}.gz").exists(), reason="dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_has_six_thousand_of_each_of_its_ten_labels(config, monkeypatch, capsys):
    monkeypatch.setattr(data, "_SYSTEM", SYSTEM)
    dataset = make_dataset(config("fashion_mnist", image_size=28, download=False), 1, 10)
    assert np.bincount(dataset.labels).tolist() == [6000] * 10
    assert dataset.labels[:5].tolist() == [9, 0, 0, 3, 0]  # as published: an ankle boot, two shirts, a dress, a shirt
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_labels_lie_beside_the_images(config, official, monkeypatch, tmp_path, tiny, capsys, name, suffix):
    content = idx_labels([2, 0, 1])
    checksum = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(data, "_LABELS_SHA256", {"fashion_mnist": (checksum,), "mnist": (checksum,)})
    write(tmp_path / "own/raw" / IDX, idx(tiny))
    write(tmp_path / "own/raw" / (IDX_LABELS + suffix), gzip.compress(content) if suffix else content)
    assert make_dataset(config(name, folder=str(tmp_path / "own")), 1, 3).labels.tolist() == [2, 0, 1]
    assert capsys.readouterr().err == ""


def test_the_tutorials_zip_has_labels_too(config, official, tmp_path, tiny, capsys):
    with zipfile.ZipFile(tmp_path / "dataset.zip", "w") as archive:
        archive.writestr(f"train/{IDX}", idx(tiny))
        archive.writestr(f"train/{IDX_LABELS}", idx_labels([0, 1, 1]))
    assert make_dataset(config("fashion_mnist", folder=str(tmp_path)), 1, 2).labels.tolist() == [0, 1, 1]
    assert "its 3 labels are used as they are" in capsys.readouterr().err


@pytest.mark.parametrize("content, num_classes, message", [
    (None, 3, "holds no labels of mnist: put train-labels-idx1-ubyte.gz into it"),
    (idx_labels([0, 1, 2]), 4, "model.num_classes is 4, and mnist has 3 classes: take 3"),
    (idx_labels([0, 1, 2]), 2, "model.num_classes is 2, and mnist has 3 classes"),
    (idx_labels([0, 1]), 2, "mnist has 2 labels of 3 images"),
    (idx_labels([0, 1, 2])[:-1], 3, "is damaged: 11 bytes of content expected, 10 found"),
    (b"\0\0\x08\x01", 3, "at least 8 bytes of content expected, 4 found"),
    (idx(np.zeros((3, 4, 4), np.uint8)), 3, "is not an IDX file of labels: it begins with 00000803, not 00000801"),
])
def test_labels_that_do_not_fit_are_refused(config, official, tmp_path, tiny, content, num_classes, message):
    write(tmp_path / "own" / IDX, idx(tiny))
    if content is not None:
        write(tmp_path / "own" / IDX_LABELS, content)
    assert message in refusal(config("mnist", folder=str(tmp_path / "own")), 1, num_classes)


def test_labels_are_downloaded_from_beside_the_images(config, official, stub, monkeypatch, tmp_path, tiny):
    content = idx_labels([0, 1, 2])
    monkeypatch.setattr(data, "_LABELS_SHA256", {"mnist": (hashlib.sha256(content).hexdigest(),)})
    calls = stub(gzip.compress(idx(tiny)), gzip.compress(content))
    assert make_dataset(config("mnist"), 1, 3).labels.tolist() == [0, 1, 2]
    assert [call[0] for call in calls] == [NOWHERE + IDX + ".gz", NOWHERE + IDX_LABELS + ".gz"]
    assert (tmp_path / "cache/mnist" / f"{IDX_LABELS}.gz").exists()


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_cifar10_labels_are_in_its_batches(config, tmp_path, kind, capsys):
    """The records above are all labelled 9, the pickles 6 and 9."""
    write(tmp_path / FORMATS[kind][2], tar(cifar_files(kind)))
    dataset = make_dataset(config("cifar10", folder=str(tmp_path)), 3, 10)
    assert dataset.labels.tolist() == ([9] * 10 if kind == "bin" else [6, 9] * 5)


@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_a_pictures_class_is_its_first_subfolder(config, folder, memory):
    for name in ("dog/a.png", "cat/deep/b.png", "cat-like/c.png", "cat/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 50).save(folder / name)
    dataset = make_dataset(config("images", folder=str(folder), memory=memory), 1, 3)
    assert dataset.labels.tolist() == [1, 0, 0, 2] and dataset.labels.dtype == np.int32  # cat-like/, cat/, cat/, dog/
    Image.new("L", (4, 4), 50).save(folder / "loose.png")
    message = refusal(config("images", folder=str(folder), memory=memory), 1, 3)
    assert "loose.png lies in no subfolder" in message


@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_a_skipped_picture_takes_its_label_with_it(config, folder, memory):
    """In memory it is left out; on the disk one of its own class stands for it, not the next in line."""
    for i, name in enumerate(("a/0.png", "a/1.png", "b/0.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), 10 * (i + 1)).save(folder / name)
    write(folder / "a/1.png", b"broken")
    dataset = make_dataset(config("images", folder=str(folder), memory=memory, undecodable="skip"), 1, 2)
    expected = {10: 0, 30: 1}
    pixels = np.rint((dataset.batch(range(len(dataset)))[:, 0, 0, 0] + 1) * 127.5).astype(int)
    assert [expected[pixel] for pixel in pixels] == dataset.labels.tolist() == ([0, 1] if memory else [0, 0, 1])
