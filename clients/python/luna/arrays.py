"""Arrays of numpy and torch to the bytes of a message and back.

torch is never imported here: an array of it can only come from a program that has.
"""

import math
import sys

import numpy

from . import luna_pb2 as pb

_NUMPY = {
    pb.F32: numpy.dtype("<f4"),
    pb.F16: numpy.dtype("<f2"),
    pb.U8: numpy.dtype("u1"),
    pb.I32: numpy.dtype("<i4"),
    pb.I64: numpy.dtype("<i8"),
    pb.F64: numpy.dtype("<f8"),
}
_NUMBERS = {dtype: number for number, dtype in _NUMPY.items()}
_NAMES = {"f32": pb.F32, "f16": pb.F16, "bf16": pb.BF16, "u8": pb.U8}


def dtype_number(name):
    """The number of "f32", "f16", "bf16" or "u8"; that of "not set" for None."""
    if name is None:
        return pb.DTYPE_NONE
    if name not in _NAMES:
        raise ValueError(f'dtype "{name}" is none of {", ".join(_NAMES)}')
    return _NAMES[name]


def element_bytes(number):
    """Bytes of one element; 0 for a type that is none."""
    return 2 if number == pb.BF16 else _NUMPY[number].itemsize if number in _NUMPY else 0


def _torch_of(array):
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else None


class Tensor:
    """An array as it travels: element type, shape, bytes."""

    def __init__(self, name, dtype, dims, data):
        self.name = name
        self.dtype = dtype
        self.dims = tuple(dims)
        self.data = data  # a flat buffer of bytes

    @property
    def bytes(self):
        return len(self.data)

    @property
    def is_whole(self):
        """True when the bytes are as many as type and shape say."""
        return self.bytes > 0 and math.prod(self.dims) * element_bytes(self.dtype) == self.bytes


def _flat(array):
    return memoryview(array.reshape(-1).view(numpy.uint8)) if array.size else memoryview(b"")


def from_array(name, array, floats_only=False):
    """A Tensor of a numpy array, a torch tensor, or nested lists; float64 becomes float32."""
    torch = _torch_of(array)
    if torch is not None:
        array = array.detach().cpu().contiguous()
        if array.dtype == torch.bfloat16:
            return Tensor(name, pb.BF16, array.shape, _flat(array.view(torch.int16).numpy()))
        array = array.numpy()
    array = numpy.asarray(array)
    if floats_only and array.dtype == numpy.float64:
        array = array.astype(numpy.float32)
    number = _NUMBERS.get(
        array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
    )
    if number is None:
        raise TypeError(f'"{name}" has the element type {array.dtype}, which cannot be sent')
    array = numpy.ascontiguousarray(array, dtype=_NUMPY[number])
    return Tensor(name, number, array.shape, _flat(array))


def from_text(name, text):
    """A Tensor of UTF-8."""
    data = text.encode("utf-8")
    return Tensor(name, pb.U8, (len(data),), memoryview(data))


def to_numpy(tensor):
    """A new numpy array; bfloat16, which numpy lacks, becomes float32."""
    if tensor.dtype == pb.BF16:
        halves = numpy.frombuffer(tensor.data, dtype="<u2").astype("<u4")
        return (halves << 16).view("<f4").reshape(tensor.dims)
    return numpy.frombuffer(tensor.data, dtype=_NUMPY[tensor.dtype]).reshape(tensor.dims).copy()


def to_torch(tensor, device=None):
    """A new torch tensor."""
    import torch

    if tensor.dtype == pb.BF16:
        halves = numpy.frombuffer(tensor.data, dtype="<i2").reshape(tensor.dims).copy()
        made = torch.from_numpy(halves).view(torch.bfloat16)
    else:
        made = torch.from_numpy(to_numpy(tensor))
    return made if device is None else made.to(device)


def like(tensor, original):
    """The tensor as an array of the library, and on the device, that original is of."""
    if _torch_of(original) is not None:
        return to_torch(tensor, original.device)
    return to_numpy(tensor)
