"""Pickles of plain values and arrays of numbers, read without building anything else.

A pickle names functions and says what to call them with. NumPy's trust what they are given, down to the memory, so a
file meets stand-ins for them, which check each array and build it from a copy of its bytes.
"""

import math
import pickle
import reprlib
from typing import Any, BinaryIO

import numpy as np

# What NumPy writes into a file for the types that have a counterpart in PyTorch.
_KINDS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_MAX_AXES = 32


class Refused(ValueError):
    """A pickle that asks for more than plain values and arrays of numbers; the message says for what."""


class _DType:
    """In place of ``numpy.dtype``."""

    __hash__ = None

    def __init__(self, kind: str, align: bool = False, copy: bool = False) -> None:
        if kind not in _KINDS:
            raise Refused(f"it has an array of type {kind!r}, but only {', '.join(_KINDS)} are read")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: tuple) -> None:
        """Take the byte order and nothing else: (version, order, subtype, names, fields, ...)."""
        _, order, *structure = state[:5]
        if order not in ("<", ">", "=", "|") or structure != [None, None, None]:
            raise Refused("it has an array of a structured type, but only arrays of numbers are read")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """In place of ``numpy.ndarray``: what an unfinished array is until its content comes."""

    __hash__ = None

    def __init__(self, *_: Any) -> None:
        raise Refused("it calls numpy.ndarray, which no file written by NumPy does")

    def __setstate__(self, state: tuple) -> None:
        """(version, shape, type, whether the first axis runs fastest, bytes)."""
        _, shape, dtype, is_fortran, data = state
        self.array = _build_array(shape, dtype, data, "F" if is_fortran else "C")


def _build_array(shape: Any, dtype: Any, data: Any, order: str) -> np.ndarray:
    """A new array of the machine's byte order, if the bytes are as many as shape and type need."""
    if not isinstance(dtype, _DType):
        raise Refused("it has an array without a type")
    if type(shape) is not tuple or len(shape) > _MAX_AXES or any(type(n) is not int or n < 0 for n in shape):
        raise Refused("it has an array whose shape is no tuple of lengths")
    if isinstance(data, str):  # written by Python 2
        data = data.encode("latin1")
    if not isinstance(data, bytes):
        raise Refused(f"it has an array with a {type(data).__name__} for its bytes")
    needed = math.prod(shape) * dtype.dtype.itemsize
    if len(data) != needed:
        raise Refused(f"it has an array of shape {list(shape)} with {len(data)} bytes instead of {needed}")
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
    return array.astype(dtype.dtype.newbyteorder("="), copy=True)


def _reconstruct(*_: Any) -> _Array:
    """In place of the function that begins every array; its arguments are the same for all of them."""
    return _Array.__new__(_Array)


def _scalar(dtype: Any, data: Any) -> np.generic:
    """In place of the function that makes a NumPy number."""
    return _build_array((), dtype, data, "C")[()]


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """In place of the function that makes arrays in pickles of protocol 5; ``axes`` where ``order`` is "K"."""
    if order not in ("C", "F") and not (order == "K" and type(axes) is tuple and type(shape) is tuple):
        raise Refused(f"it has an array in the order {order!r}")
    array = _build_array(shape, dtype, data, "F" if order == "F" else "C")
    if order != "K":
        return array
    if any(type(axis) is not int for axis in axes) or sorted(axes) != list(range(array.ndim)):
        raise Refused(f"it has an array of {array.ndim} axes in the order {reprlib.repr(axes)}")
    return array.transpose(axes)


def _encode_latin1(text: str, encoding: str) -> bytes:
    """What NumPy needs of ``codecs.encode`` to restore bytes, and no more."""
    if encoding != "latin1":
        raise Refused(f"it has text in encoding {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """In place of ``bytes``, which stands in a file where there are none."""
    return b""


_STAND_INS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("__builtin__", "bytes"): _empty_bytes,
    ("builtins", "bytes"): _empty_bytes,
}
_GLOBALS = {**_STAND_INS, ("_codecs", "encode"): _encode_latin1, ("collections", "OrderedDict"): dict}
# For ``torch.serialization.safe_globals``; what is read with them has to go through ``finish_arrays``.
STAND_INS = [(value, ".".join(name)) for name, value in _STAND_INS.items()]


def _refuse_operation(unpickler: Any) -> None:
    raise pickle.UnpicklingError("it has an operation that plain values and arrays do not need")


class _PlainUnpickler(pickle._Unpickler):
    """Builds arrays of numbers and plain containers; every other name in the file is refused before it is imported.

    NOTE: The unpickler written in C would reserve any memory that a damaged file asks for, and sets attributes of
    whatever a file tells it to.
    """

    dispatch = dict.fromkeys(range(256), _refuse_operation) | {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if bytes([code])
        not in (
            *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
            *(pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4),
            *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
        )
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise Refused(f"it asks for {module}.{name}, but only arrays and plain containers are read")
        return _GLOBALS[module, name]

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], _Array | _DType):
            raise Refused("it sets attributes of something that is no array")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = pickle._Unpickler.load_binbytes8  # bytes will do, and are not reserved at once


def load_plain(file: BinaryIO) -> Any:
    """What the pickle in ``file`` holds. ``Refused`` where that is more than is read; a broken one raises anything."""
    return finish_arrays(_PlainUnpickler(file, encoding="latin1").load())


def finish_arrays(value: Any) -> Any:
    """``value`` with arrays where their stand-ins are, in place in dictionaries and lists."""
    return _finish(value, {})


def _finish(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """``done`` holds (before, after) by identity: a file may have a container in many places, even in itself."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, _DType):
        return value.dtype
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, dict):
        done[id(value)] = value, value
        for key, item in value.items():
            value[key] = _finish(item, done)
    elif isinstance(value, list):
        done[id(value)] = value, value
        value[:] = [_finish(item, done) for item in value]
    elif type(value) is tuple:
        done[id(value)] = value, tuple(_finish(item, done) for item in value)
        return done[id(value)][1]
    return value
