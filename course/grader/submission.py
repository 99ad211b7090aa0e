"""What was handed in: a folder, a zip or one file, read into memory once, before any of it runs."""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Iterator, NamedTuple, Optional

from course.grader.check import Both
from course.grader.sandbox import plain
from ms_diffusion.errors import UserError

LARGEST = 1 << 20
"""Bytes of a file of Python."""
LARGEST_ZIP = 1 << 26
"""Bytes of a zip: its list of contents is read into memory."""
_NAME = re.compile(r"ex(\d\d)\w*\.py", flags=re.ASCII)
NOT_HANDED_IN = Both("not handed in", "没有交")


class File(NamedTuple):
    """One exercise as it was handed in: its source, or why it is not graded."""

    name: str
    source: bytes = b""
    problem: Optional[Both] = None
    place: str = ""
    """Its path in the zip."""


def read(submission: str) -> dict[int, File]:
    """The files exNN*.py of a folder, of a zip (in any folder of it) or of one file, by the exercise's number.

    Raises `UserError` where there is nothing of the kind.
    """
    place = Path(submission)
    if not place.exists():
        raise UserError(f"there is no {place}: give the folder with your ex01_schedule.py and so on, or a zip of it")
    if place.is_dir():
        found = _of_folder(place)
    elif place.suffix.lower() == ".zip":
        found = _of_zip(place)
    elif place.suffix == ".py":
        found = iter([_of_path(place)])
    else:
        raise UserError(f"{place} is no folder, no zip and no file of Python: hand in one of these")
    files: dict[int, File] = {}
    for file in found:
        match = _NAME.fullmatch(file.name)
        if match is None:
            continue
        number = int(match.group(1))
        if number in files:
            both = ", ".join(plain(each.place or each.name, 60) for each in (files[number], file))
            file = File(file.name, problem=Both(f"two files for one exercise: {both}", f"同一练习有两个文件：{both}"))
        files[number] = file
    if not files:
        raise UserError(f"{place} holds no exercise: the files are named like ex01_schedule.py, as in course/exercises")
    return files


def _of_folder(folder: Path) -> Iterator[File]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    return (_of_path(path) for path in paths if _NAME.fullmatch(path.name))


def _of_path(path: Path) -> File:
    if path.is_symlink() or not path.is_file():
        return File(path.name, problem=_NO_FILE)
    try:
        with path.open("rb") as file:
            return _limited(path.name, file.read(LARGEST + 1))
    except OSError as error:
        return File(path.name, problem=Both(f"cannot be read: {error.strerror}", f"读不了：{error.strerror}"))


def _of_zip(path: Path) -> Iterator[File]:
    """Nothing is unpacked: a name in a zip is never used as a path. Of several for one exercise the first is read."""
    if path.stat().st_size > LARGEST_ZIP:
        raise UserError(f"{path} has more than {LARGEST_ZIP >> 20} MB: hand in the exercises alone")
    seen = set()
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                path_inside = entry.filename.replace("\\", "/")  # some programs for Windows write these
                name = path_inside.rpartition("/")[2]
                if not _NAME.fullmatch(name) or path_inside.startswith("__MACOSX/"):
                    continue
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG) or name[:4] in seen:
                    yield File(name, problem=_NO_FILE, place=path_inside)
                    continue
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    yield File(name, problem=_PACKED)
                    continue
                seen.add(name[:4])
                with archive.open(entry) as file:
                    yield _limited(name, file.read(LARGEST + 1))._replace(place=path_inside)
    except (EOFError, OSError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as a zip: {' '.join(str(error).split()) or 'it is cut off'}") from error


def _limited(name: str, source: bytes) -> File:
    if len(source) > LARGEST:
        return File(name, problem=Both("more than 1 MB: no exercise needs that", "超过 1 MB：练习用不了这么大"))
    return File(name, source)


_PACKED = Both("packed in an unusual way: make an ordinary zip (Deflate)", "压缩方式不常见：请用普通的 zip (Deflate)")
_NO_FILE = Both("a link or no plain file: hand in the file itself", "是链接或不是普通文件：请交文件本身")
