"""Training images as uint8 arrays, their labels, batches as float32 in [-1, 1], and samples back to uint8.

Nothing here is random: which images make a batch, and which of them are mirrored, are arguments.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import pickle
import socket
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ms_diffusion.config import DataConfig
from ms_diffusion.errors import UserError
from ms_diffusion.logs import LOG

PathLike = Union[str, Path]

_IDX = "train-images-idx3-ubyte"
_IDX_LABELS = "train-labels-idx1-ubyte"
_SYSTEM = Path("/usr/share/datasets")
# The files of a dataset, best first; data_batch_1 stands for the extracted folder that it lies in.
_FILES = {
    "fashion_mnist": (_IDX, f"{_IDX}.gz", "dataset.zip"),
    "mnist": (_IDX, f"{_IDX}.gz"),
    "cifar10": ("cifar-10-binary.tar.gz", "data_batch_1.bin", "cifar-10-python.tar.gz", "data_batch_1"),
}
_SUBFOLDERS = {
    "fashion_mnist": ("", "train", "raw", "FashionMNIST/raw"),
    "mnist": ("", "train", "raw", "MNIST/raw"),
    "cifar10": ("", "cifar-10-batches-bin", "cifar-10-batches-py"),
}
# Of the content of an IDX file, because each mirror compresses it in its own way; of the CIFAR archives themselves.
_SHA256 = {
    "fashion_mnist": ("c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",),
    "mnist": ("ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",),
    "cifar10": (
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",  # binary
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",  # python
    ),
}
_LABELS_SHA256 = {
    "fashion_mnist": ("bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",),
    "mnist": ("65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",),
    "cifar10": _SHA256["cifar10"],
}
_MIRRORS = {
    "fashion_mnist": (
        f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{_IDX}.gz",
        f"https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/{_IDX}.gz",
        "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/dataset.zip",
    ),
    "mnist": (
        f"https://ossci-datasets.s3.amazonaws.com/mnist/{_IDX}.gz",
        f"https://storage.googleapis.com/cvdf-datasets/mnist/{_IDX}.gz",
    ),
    "cifar10": ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
}
_TIMEOUT = 20.0  # seconds without a byte, after which the next mirror is tried
_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Training images in memory: `images` is uint8 (N, C, H, W), `name` is the dataset's.

    `labels`, int32 (N,), are the images' classes 0, 1, ...; None where nobody asked for them.
    """

    images: np.ndarray
    name: str
    labels: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int], flip: Optional[Sequence[bool]] = None) -> np.ndarray:
        """The images at `indices` (B,), float32 (B, C, H, W) in [-1, 1]; those where `flip` (B,) is true, mirrored.

        Raises `ValueError` unless `indices` are B whole numbers and `flip` is B truth values.
        """
        return to_float(_mirrored(self.images[_whole(indices)], flip))


class FolderDataset:
    """Training images that stay in their files, `paths`, until a batch asks for them; `name` is the dataset's.

    In place of a picture that cannot be decoded stands the next one (of the same class, where there are `labels`, as
    in `ImageDataset`) that can, so image i depends on the files alone and not on what was asked for before; each such
    picture is named once. `refuse` ends with its name instead.
    """

    def __init__(
        self, paths: Sequence[Path], channels: int, size: int, refuse: bool, name: str = "images",
        labels: Optional[np.ndarray] = None,
    ) -> None:
        self.paths = paths
        self.name = name
        self.labels = labels
        self._shape = (channels, size, size)
        self._refuse = refuse
        self._bad: Dict[int, Tuple[Path, str]] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Sequence[int], flip: Optional[Sequence[bool]] = None) -> np.ndarray:
        """As `ImageDataset.batch`; also raises `UserError` for a picture that cannot be decoded."""
        return to_float(self.pixels(indices, flip))

    def pixels(self, indices: Sequence[int], flip: Optional[Sequence[bool]] = None) -> np.ndarray:
        """What `batch` gives, before `to_float`: uint8 (B, C, H, W). Several threads may call it at once."""
        indices = _whole(indices)
        images = np.empty((len(indices), *self._shape), dtype=np.uint8)
        for image, index in zip(images, indices):
            image[:] = self._picture(range(len(self))[index])
        return _mirrored(images, flip)

    def _picture(self, first: int) -> np.ndarray:
        """The first picture that can be decoded, from `first` on and round the end, uint8 (C, H, W)."""
        passed = []  # the bad ones that no other thread has met before
        for i in ((first + k) % len(self) for k in range(len(self))):
            if i in self._bad or (self.labels is not None and self.labels[i] != self.labels[first]):
                continue
            path = self.paths[i]
            try:
                image = _decode(path, *self._shape[:2])
            except Exception as error:  # inside PIL a damaged file can raise almost anything
                bad = (path, _reason(error))
                if self._refuse:
                    raise UserError(
                        f"{path} cannot be decoded ({bad[1]}): put a good copy in its place and resume, or train "
                        "without it by data.undecodable=skip"
                    ) from error
                if self._bad.setdefault(i, bad) is bad:
                    passed.append(bad)
            else:
                for bad_path, reason in passed:
                    LOG.warning(f"{bad_path} is replaced by {path}, it cannot be decoded ({reason})")
                return image
        which = f"{len(self)} pictures" if self.labels is None else f"pictures of class {self.labels[first]}"
        raise UserError(f"none of the {which} can be decoded any more: are their disk and folder there?")


def _whole(indices: Sequence[int]) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ValueError(f"indices must be whole numbers (B,), not {indices.dtype} {indices.shape}")
    return indices


def _mirrored(images: np.ndarray, flip: Optional[Sequence[bool]]) -> np.ndarray:
    """`images` (B, C, H, W), mirrored in place where `flip` (B,) is true."""
    if flip is not None:
        flip = np.asarray(flip)
        if flip.shape != images.shape[:1] or flip.dtype != bool:
            raise ValueError(f"flip must be bool {images.shape[:1]}, not {flip.dtype} {flip.shape}")
        images[flip] = images[flip, :, :, ::-1]
    return images


def to_float(images_uint8: np.ndarray) -> np.ndarray:
    """x / 127.5 - 1: uint8 of any shape to float32 in [-1, 1]; raises `ValueError` for any other type."""
    if images_uint8.dtype != np.uint8:
        raise ValueError(f"to_float takes uint8, not {images_uint8.dtype}")
    x = images_uint8.astype(np.float32, order="C")
    x /= 127.5
    x -= 1
    return x


def to_uint8(x: np.ndarray) -> np.ndarray:
    """The inverse of `to_float`, clipped and rounded: floating x of any shape to uint8.

    Raises `ValueError` where x is not a number, and for an x that is not floating.
    """
    x = np.asarray(x)
    if x.dtype.kind != "f":
        raise ValueError(f"to_uint8 takes floating numbers in [-1, 1], not {x.dtype}")
    if np.isnan(x).any():
        raise ValueError(f"{np.isnan(x).sum()} of {x.size} values are NaN: no picture can be made of them")
    return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def make_dataset(config: DataConfig, channels: int, num_classes: int = 0) -> Union[ImageDataset, FolderDataset]:
    """The training images that `config` describes, uint8 (N, channels, image_size, image_size).

    In memory, unless it is a folder of pictures that would take more than `data.memory` there. Colour becomes gray by
    PIL's luminance "L". Images of another size are resized on their shorter side (bilinear, antialiased) and cropped in
    the centre. With `num_classes` above 0 their labels are read too: those of a folder's pictures are its sorted
    subfolders, the first on the way to each. Raises `UserError` for what cannot be found or read, and where the data
    have another number of classes.
    """
    dataset = _make_dataset(config, channels, num_classes > 0)
    check_labels(dataset, num_classes)
    return dataset


def check_labels(dataset: Union[ImageDataset, FolderDataset], num_classes: int) -> None:
    """Raise `UserError` unless `dataset` has the labels of a network of `num_classes` classes."""
    if not num_classes:
        return
    if dataset.labels is None:
        raise UserError(f"model.num_classes is {num_classes}, and {dataset.name} has no labels: take 0")
    if len(dataset.labels) != len(dataset):
        raise UserError(f"{dataset.name} has {len(dataset.labels)} labels of {len(dataset)} images: get another copy")
    classes = int(dataset.labels.max()) + 1
    if classes != num_classes:
        raise UserError(f"model.num_classes is {num_classes}, and {dataset.name} has {classes} classes: take {classes}")


def _make_dataset(config: DataConfig, channels: int, labelled: bool) -> Union[ImageDataset, FolderDataset]:
    if channels not in (1, 3):
        raise UserError(f"model.channels is {channels!r}: images have 1 channel (gray) or 3 (colour)")
    if config.name == "images":
        return _open_folder(config, channels, labelled)
    load = _load_digits if config.name == "digits" else partial(_load_published, config)
    images = _convert(load(labels=False), channels, config.image_size)
    return ImageDataset(images, config.name, load(labels=True).astype(np.int32) if labelled else None)


def read_picture(path: PathLike, channels: int, size: int) -> np.ndarray:
    """One picture file as uint8 (channels, size, size), fitted as in `make_dataset`; or `UserError`."""
    try:
        return _decode(Path(path), channels, size)
    except Exception as error:  # inside PIL a damaged file can raise almost anything
        raise UserError(f"{path} cannot be read as a picture ({_one_line(error)}): give another") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# Pictures


def _convert(images: np.ndarray, channels: int, size: int) -> np.ndarray:
    if images.shape[1:] == (channels, size, size):
        return images
    converted = np.empty((len(images), channels, size, size), dtype=np.uint8)
    for i, image in enumerate(images):
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        converted[i] = _fit(picture, channels, size)
    return converted


def _fit(picture: Image.Image, channels: int, size: int) -> np.ndarray:
    """`picture` as uint8 (channels, size, size)."""
    picture = picture.convert("L" if channels == 1 else "RGB")
    scale = size / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in picture.size)
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)))
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)


def _decode(path: Path, channels: int, size: int) -> np.ndarray:
    """The picture in `path` as uint8 (channels, size, size); raises whatever PIL raises."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):  # 16 bits of gray, which PIL's own conversion would clip or cut
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels have more than 16 bits")
        picture = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    elif picture.mode == "F":
        raise ValueError("its pixels are floating numbers, and nothing says which are black and white")
    elif "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return _fit(picture, channels, size)


def _open_folder(config: DataConfig, channels: int, labelled: bool) -> Union[ImageDataset, FolderDataset]:
    """All pictures under `config.folder` in the order of their relative paths, in memory or left in their files.

    EXIF orientation is applied, transparency is composited on white, an animation gives its first frame;
    names that begin with a dot are left out. Into memory every picture is decoded now, so a bad one is found at the
    start. Of those left in their files the headers are read now, unless bad ones are to be skipped.
    """
    folder = Path(config.folder).expanduser()
    paths = _picture_paths(folder)
    labels = _subfolder_labels(paths, folder) if labelled else None
    size, refuse = config.image_size, config.undecodable == "refuse"
    if len(paths) * channels * size**2 > config.memory * 2**30:
        if refuse:
            _refuse(_failures(_check_header, paths, "checking"), paths)
        return FolderDataset(paths, channels, size, refuse, config.name, labels)

    images = np.empty((len(paths), channels, size, size), dtype=np.uint8)

    def decode(i: int, path: Path) -> None:
        images[i] = _decode(path, channels, size)

    bad = _failures(decode, paths, "decoding")
    if refuse:
        _refuse(bad, paths)
    for i, reason in bad.items():
        LOG.warning(f"{paths[i]} is left out, it cannot be decoded ({reason})")
    if len(bad) == len(paths):
        raise UserError(f"data.folder {config.folder}: none of its {len(paths)} pictures can be decoded; give another")
    if bad:
        images = np.delete(images, list(bad), axis=0)
        labels = np.delete(labels, list(bad)) if labelled else None
    return ImageDataset(images, config.name, labels)


def _subfolder_labels(paths: Sequence[Path], folder: Path) -> np.ndarray:
    """Of each picture the number of its first subfolder among all of them, sorted by name, int32 (N,)."""
    names = [path.relative_to(folder).parts[:-1][:1] for path in paths]
    if () in names:
        raise UserError(
            f"{paths[names.index(())]} lies in no subfolder of data.folder, whose name would be its class: put it into "
            "one, or take model.num_classes 0"
        )
    return np.unique(np.array(names)[:, 0], return_inverse=True)[1].astype(np.int32)


def _check_header(i: int, path: Path) -> None:
    with Image.open(path):
        pass


def _failures(attempt: Callable[[int, Path], None], paths: Sequence[Path], title: str) -> Dict[int, str]:
    """Call `attempt(i, path)` for each of `paths` in threads; says why it failed, by index and in its order."""
    from tqdm import tqdm

    bad: Dict[int, str] = {}

    def attempt_all(indices: range) -> int:
        for i in indices:
            try:
                attempt(i, paths[i])
            except Exception as error:  # inside PIL a damaged file can raise almost anything
                bad[i] = _reason(error)
        return len(indices)

    parts = [range(len(paths))[start : start + 64] for start in range(0, len(paths), 64)]
    progress = tqdm(total=len(paths), desc=title, unit=" images", disable=None)
    with progress, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done in pool.map(attempt_all, parts):
            progress.update(done)
    return dict(sorted(bad.items()))


def _refuse(bad: Dict[int, str], paths: Sequence[Path]) -> None:
    if bad:
        first = min(bad)
        raise UserError(
            f"{len(bad)} of {len(paths)} pictures cannot be decoded, the first is {paths[first]} ({bad[first]}): "
            "mend or remove them, or train without them by data.undecodable=skip"
        )


def _reason(error: Exception) -> str:
    """Why a picture cannot be decoded, in words that do not repeat its name."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    return getattr(error, "strerror", None) or _one_line(error)


def _picture_paths(folder: Path) -> List[Path]:
    if not folder.is_dir():
        raise UserError(f"data.folder {folder} is not a folder: give the one that holds the pictures")

    def refuse(error: OSError) -> None:
        raise UserError(f"data.folder: {error.filename} cannot be read ({error.strerror}): mend its permissions")

    paths = []
    for place, subfolders, names in os.walk(folder, onerror=refuse, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths += [Path(place, n) for n in names if n.lower().endswith(_EXTENSIONS) and not n.startswith(".")]
    if not paths:
        raise UserError(f"data.folder {folder} holds no pictures: put {' '.join(_EXTENSIONS)} files into it")
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


# Published datasets


def _load_digits(labels: bool) -> np.ndarray:
    """scikit-learn's digits, uint8 (1797, 1, 8, 8), their 0..16 stretched to 0..255; or their labels (1797,)."""
    from sklearn.datasets import load_digits

    if labels:
        return load_digits().target
    return np.rint(load_digits().images * 255 / 16).astype(np.uint8)[:, None]


def _load_published(config: DataConfig, labels: bool) -> np.ndarray:
    """The training images of `config.name`, uint8 (N, C, H, W), from `config.folder` or else the first place.

    Or their `labels`, (N,), from the file beside; where these are official, both come in the same order everywhere.
    """
    name, cache = config.name, Path(config.cache).expanduser() / config.name
    if config.folder is not None:
        return _read_own(name, Path(config.folder).expanduser(), labels)
    places = (_SYSTEM / name.replace("_", "-"), cache)
    paths = [path for place in places for path in _candidates(name, place, labels)]
    urls = [_file(url, labels) for url in _MIRRORS[name] if config.download]
    attempts = [partial(_read_official, name, path, labels) for path in paths]
    attempts += [partial(_fetch, name, url, cache, labels) for url in urls]
    failures: List[str] = []
    for attempt in attempts:
        try:
            images = attempt()
        except UserError as error:
            failures.append(str(error))
            continue
        for failure in failures:
            LOG.warning(failure)
        return images
    reason = "no mirror could give it" if config.download else "data.download is false"
    package = ", or on Debian and Ubuntu apt-get install dataset-fashion-mnist" if name == "fashion_mnist" else ""
    details = f" ({'; '.join(dict.fromkeys(failures))})" if failures else ""
    mend = f"put {_file(os.path.basename(_MIRRORS[name][0]), labels)} into DIR and give --data.folder DIR{package}"
    what = f"the labels of {name} are" if labels else f"{name} is"
    raise UserError(f"{what} not on this machine and {reason}: {mend}{details}")


def _file(name: str, labels: bool) -> str:
    """The name or address of the file of labels that belongs to a file of images."""
    return name.replace(_IDX, _IDX_LABELS) if labels else name


def _candidates(name: str, place: Path, labels: bool) -> List[Path]:
    paths = [place / subfolder / _file(file, labels) for subfolder in _SUBFOLDERS[name] for file in _FILES[name]]
    return [path for path in paths if os.path.isfile(path)]


def _read_own(name: str, folder: Path, labels: bool) -> np.ndarray:
    """The images in a person's own folder: others in the same format are welcome, with a warning."""
    for path in _candidates(name, folder, labels):
        values, official = _read(name, path, labels)
        if not official:
            size = "x".join(map(str, values.shape[2:]))
            what = f"{len(values)} labels" if labels else f"{len(values)} images of {size}"
            LOG.warning(f"{path} is not the official {name}; its {what} are used as they are")
        return values
    file = _file(os.path.basename(_MIRRORS[name][0]), labels)
    mend = f"put {file} into it, or leave data.folder out to have it searched for"
    raise UserError(f"data.folder {folder} holds no {'labels of ' if labels else ''}{name}: {mend}")


def _read_official(name: str, path: Path, labels: bool) -> np.ndarray:
    values, official = _read(name, path, labels)
    if not official:
        raise UserError(f"{path} is not the official {name}, its checksum differs: get another copy")
    return values


def _read(name: str, path: Path, labels: bool) -> Tuple[np.ndarray, bool]:
    """The images in a file, uint8 (N, C, H, W), or the labels (N,), and whether they are the official ones."""
    try:
        values, official = _read_cifar(path, labels) if name == "cifar10" else _read_idx(name, path, labels)
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({_one_line(error)}): get another copy") from error
    if values.size == 0:
        raise UserError(f"{path} holds no {'labels' if labels else 'images'}: get another copy")
    return values, official


def _fetch(name: str, url: str, cache: Path, labels: bool) -> np.ndarray:
    """The images or labels that `url` gives; the file enters the cache only whole and with the right checksum."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="partial-", dir=cache) as folder:
            file = Path(folder, os.path.basename(url))
            _download(url, file)
            try:
                values = _read_official(name, file, labels)
            except UserError as error:
                raise UserError(str(error).replace(str(file), url)) from error
            os.replace(file, cache / file.name)
            return values
    except OSError as error:
        raise UserError(f"data.cache {cache} cannot be written ({error}): give another by --data.cache") from error


def _download(url: str, file: Path) -> None:
    from download import download

    print(f"downloading {url}", file=sys.stderr)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)  # `download` heeds its own timeout only until the server first answers
    try:
        with redirect_stdout(sys.stderr):  # where a progress bar belongs
            download(url, str(file), progressbar=sys.stderr.isatty(), timeout=_TIMEOUT, verbose=False)
    except Exception as error:  # whatever it is, the next mirror may do
        raise UserError(f"{url}: {_one_line(error).split('Error: ')[-1]}") from error
    finally:
        socket.setdefaulttimeout(before)


# IDX, the format of MNIST and its relatives


def _read_idx(name: str, path: Path, labels: bool) -> Tuple[np.ndarray, bool]:
    content, file = path.read_bytes(), _file(_IDX, labels)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.namelist() if PurePosixPath(m).name == file]
            if not members:
                raise UserError(f"{path} holds no {file}: get another copy")
            content = archive.read(members[0])
    elif path.suffix == ".gz":
        content = _gunzip(content, path, labels)
    kind, dimensions = ("labels", 1) if labels else ("images", 3)
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise _wrong_size(content, path, labels)
    if content[:4] != bytes([0, 0, 8, dimensions]):
        begun = content[:4].hex()
        raise UserError(
            f"{path} is not an IDX file of {kind}: it begins with {begun}, not 0000080{dimensions}; get {file}"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) != start + math.prod(shape):
        raise _wrong_size(content, path, labels)
    values = np.frombuffer(content, dtype=np.uint8, offset=start)
    official = hashlib.sha256(content).hexdigest() in (_LABELS_SHA256 if labels else _SHA256)[name]
    return values if labels else values.reshape(shape[0], 1, *shape[1:]), official


def _gunzip(compressed: bytes, path: Path, labels: bool) -> bytes:
    if compressed[:2] != b"\x1f\x8b":
        raise UserError(f"{path} is not gzip: it begins with {compressed[:2].hex()}, not 1f8b; get another copy")
    chunks = []
    try:
        with gzip.open(BytesIO(compressed)) as stream:
            while chunk := stream.read1(1 << 20):
                chunks.append(chunk)
    except EOFError as error:
        raise _wrong_size(b"".join(chunks), path, labels) from error
    return b"".join(chunks)


def _wrong_size(content: bytes, path: Path, labels: bool) -> UserError:
    dimensions = 1 if labels else 3
    start = 4 + 4 * dimensions
    known = len(content) >= start
    expected = start + math.prod(struct.unpack(f">{dimensions}I", content[4:start])) if known else f"at least {start}"
    return UserError(f"{path} is damaged: {expected} bytes of content expected, {len(content)} found; get another copy")


# CIFAR-10


def _read_cifar(path: Path, labels: bool) -> Tuple[np.ndarray, bool]:
    """The training images in an archive, or in the extracted folder of data_batch_1, uint8 (N, 3, 32, 32).

    Or their `labels`, (N,).
    """
    parse, suffix = (_parse_batch, ".bin") if "bin" in path.name else (_unpickle_batch, "")
    names = [f"data_batch_{i}{suffix}" for i in range(1, 6)]
    official = None
    if path.name.endswith(".tar.gz"):
        archived = path.read_bytes()
        official = hashlib.sha256(archived).hexdigest() in _SHA256["cifar10"]
        with tarfile.open(fileobj=BytesIO(archived)) as archive:
            members = ((PurePosixPath(member.name).name, member) for member in archive if member.isfile())
            found = {name: archive.extractfile(member).read() for name, member in members if name in names}
    else:
        found = {name: path.with_name(name).read_bytes() for name in names if path.with_name(name).is_file()}
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing; five batches are expected, get another copy")
    values = np.concatenate([parse(found[name], f"{path}: {name}", labels) for name in names])
    return values, len(values) == 50000 if official is None else official


def _parse_batch(content: bytes, where: str, labels: bool) -> np.ndarray:
    """One record is a label and 3 x 32 x 32 bytes."""
    if len(content) % 3073:
        expected = f"a multiple of 3073 bytes expected, {len(content)} found"
        raise UserError(f"{where} is damaged: {expected}; get another copy")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 3073)
    return records[:, 0] if labels else records[:, 1:].reshape(-1, 3, 32, 32)


class _StandIn:
    """Keeps what a pickle says of an array, so that no file reaches NumPy's own, trusting, reconstruction."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayUnpickler(pickle.Unpickler):
    """Admits plain containers and the four names of a NumPy array, because a pickle can call any function it names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return _StandIn
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _StandIn
        raise ValueError(f"it asks for {module}.{name}, for which images have no use")


def _unpickle_batch(content: bytes, where: str, labels: bool) -> np.ndarray:
    try:
        batch = _ArrayUnpickler(BytesIO(content), encoding="bytes").load()
        if labels:
            values = np.array(batch[b"labels"], ndmin=1)
            if values.dtype.kind != "i" or values.ndim != 1 or values.min() < 0:
                raise ValueError("its labels are no list of whole numbers")
            return values
        array = batch[b"data"]
        _, shape, dtype, fortran_order, pixels = array.state
        if dtype.args[0] not in ("u1", b"u1") or fortran_order or shape[1:] != (3072,):
            raise ValueError("its data are not uint8 (N, 3072)")
        return np.frombuffer(pixels, dtype=np.uint8).reshape(shape[0], 3, 32, 32)
    except Exception as error:  # a damaged pickle can raise almost anything
        raise UserError(f"{where} is refused ({_one_line(error)}): get cifar-10-binary.tar.gz") from error
