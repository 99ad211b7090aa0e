"""Messages between the grader and the student's process: JSON of limited length, then the raw bytes of arrays.

Neither side ever unpickles or evaluates what the other wrote.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from typing import Any, Sequence

import numpy as np

LONGEST_HEADER = 1 << 16
LONGEST_BODY = 1 << 26
_TYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_LENGTHS = struct.Struct("!QQ")


class BadMessage(ValueError):
    """What came is no message of this kind, or too long."""


def send(connection: socket.socket, header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write a message. Raises `BadMessage` where it would be longer than the other side reads."""
    described = [[array.dtype.name, list(array.shape)] for array in arrays]
    text = json.dumps({**header, "arrays": described}).encode()
    length = sum(array.nbytes for array in arrays)
    if len(text) > LONGEST_HEADER or length > LONGEST_BODY:
        raise BadMessage(f"{length} bytes of arrays are more than {LONGEST_BODY}")
    connection.sendall(_LENGTHS.pack(len(text), length) + text + b"".join(array.tobytes() for array in arrays))


def receive(connection: socket.socket, deadline: float = math.inf) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read a message until `deadline`, in seconds of `time.monotonic`.

    Raises EOFError where the other side has gone, TimeoutError, and `BadMessage`.
    """
    header_length, body_length = _LENGTHS.unpack(_read(connection, _LENGTHS.size, deadline))
    if header_length > LONGEST_HEADER or body_length > LONGEST_BODY:
        raise BadMessage("a message is too long")
    text = _read(connection, header_length, deadline)
    body = _read(connection, body_length, deadline)
    try:
        header = json.loads(text)
        arrays, start = [], 0
        for name, shape in header.pop("arrays"):
            if name not in _TYPES or not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 8:
                raise BadMessage("an array of no kind that is known")
            end = start + math.prod(shape) * np.dtype(name).itemsize
            if end > len(body):
                raise BadMessage("an array is cut off")
            arrays.append(np.frombuffer(body[start:end], name).reshape(shape))
            start = end
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise BadMessage("a message cannot be read") from error
    return header, arrays


def _read(connection: socket.socket, length: int, deadline: float) -> bytes:
    parts = []
    while length:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(None if math.isinf(left) else left)
        part = connection.recv(min(length, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
