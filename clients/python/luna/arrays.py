"""Arrays of numpy and torch, and what has a __cuda_array_interface__, to the bytes of a message and back.

torch is never imported here: an array of it can only come from a program that has.
"""

import math
import sys

import numpy

from . import cuda
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

    memory = None  # on a GPU

    @property
    def bytes(self):
        return len(self.data)

    @property
    def is_whole(self):
        """True when the bytes are as many as type and shape say."""
        return self.bytes > 0 and math.prod(self.dims) * element_bytes(self.dtype) == self.bytes


class DeviceTensor(Tensor):
    """A Tensor on a GPU; data is a copy in host memory, made when it is first asked for."""

    def __init__(self, name, dtype, dims, memory):
        self.name = name
        self.dtype = dtype
        self.dims = tuple(dims)
        self.memory = memory
        self._data = None

    @property
    def bytes(self):
        return self.memory.bytes

    @property
    def data(self):
        if self._data is None:
            self._data = self.memory.read()
        return self._data


def _flat(array):
    return memoryview(array.reshape(-1).view(numpy.uint8)) if array.size else memoryview(b"")


def from_array(name, array, floats_only=False):
    """A Tensor of a numpy array, a torch tensor, or nested lists; float64 becomes float32."""
    torch = _torch_of(array)
    if torch is not None:
        made = _from_cuda_torch(torch, name, array, floats_only) if array.is_cuda else None
        if made is not None:
            return made
        array = array.detach().cpu().contiguous()
        if array.dtype == torch.bfloat16:
            return Tensor(name, pb.BF16, array.shape, _flat(array.view(torch.int16).numpy()))
        array = array.numpy()
    elif hasattr(array, "__cuda_array_interface__"):
        return _from_interface(name, array)
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


def _torch_number(torch, dtype):
    names = {torch.float32: pb.F32, torch.float16: pb.F16, torch.bfloat16: pb.BF16, torch.uint8: pb.U8}
    return names.get(dtype)


def _from_cuda_torch(torch, name, array, floats_only):
    """Where it lies; None for what has to go by the host."""
    array = array.detach()
    if floats_only and array.dtype == torch.float64:
        array = array.to(torch.float32)
    array = array.contiguous()
    number = _torch_number(torch, array.dtype)
    if number is None or array.numel() == 0:
        return None
    stream = torch.cuda.current_stream(array.device).cuda_stream
    count = array.numel() * array.element_size()
    memory = cuda.memory(array.data_ptr(), count, stream, array)
    return None if memory is None else DeviceTensor(name, number, array.shape, memory)


def _from_interface(name, array):
    interface = array.__cuda_array_interface__
    shape = tuple(interface["shape"])
    dtype = numpy.dtype(interface["typestr"])
    number = _NUMBERS.get(dtype)
    strides = interface.get("strides")
    dense = [dtype.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape))]
    if number is None:
        raise TypeError(f'"{name}" has the element type {dtype}, which cannot be sent')
    if strides is not None and list(strides) != dense:
        raise TypeError(f'"{name}" has strides {tuple(strides)}: make it contiguous')
    pointer, count = interface["data"][0], dtype.itemsize * math.prod(shape)
    memory = cuda.memory(pointer, count, interface.get("stream"), array) if count else None
    if memory is None:
        raise TypeError(f'"{name}" is on a GPU that CUDA\'s driver in this process does not know')
    return DeviceTensor(name, number, shape, memory)


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


def _to_cuda_torch(torch, tensor, device):
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
    dtype = next((each for each in dtypes if _torch_number(torch, each) == tensor.dtype), None)
    if dtype is None:
        return to_torch(tensor, device)
    made = torch.empty(tensor.dims, dtype=dtype, device=device)
    tensor.memory.copy_to(made.data_ptr(), torch.cuda.current_stream(device).cuda_stream)
    return made


def _to_interface(tensor, original):
    """bf16, for which the interface has no name, is two bytes of no type."""
    card = tensor.memory.card if tensor.memory is not None else None
    if card is None:
        card = cuda.memory(original.__cuda_array_interface__["data"][0], 1).card
    typestr = _NUMPY[tensor.dtype].str if tensor.dtype in _NUMPY else "|V2"
    made = cuda.DeviceArray(card, tensor.dims, typestr, tensor.bytes)
    if tensor.memory is not None:
        tensor.memory.copy_to(made.pointer)
    else:
        card.write(made.pointer, tensor.data)
    return made


def like(tensor, original):
    """The tensor as an array of the library, and on the device, that original is of."""
    torch = _torch_of(original)
    if torch is not None and tensor.memory is not None:
        return _to_cuda_torch(torch, tensor, original.device)
    if torch is not None:
        return to_torch(tensor, original.device)
    if hasattr(original, "__cuda_array_interface__"):
        return _to_interface(tensor, original)
    return to_numpy(tensor)
