"""Arrays on the GPU of a client of the emulated device: over tests/emulation/fake_cuda.c, without torch."""

import ctypes
import types

import numpy as np

from conftest import BINARY

LIBRARY = BINARY.parent / "fake" / "cuda.so"
SERVED, OTHER = 1, 0  # numbers here of the daemon's first card and of its second
STREAM = 7


def library():
    """What luna.cuda finds in the process once it was loaded."""
    loaded = ctypes.CDLL(str(LIBRARY), mode=ctypes.RTLD_GLOBAL)
    loaded.fake_allocate.restype = ctypes.c_uint64
    loaded.fake_allocate.argtypes = [ctypes.c_int, ctypes.c_uint64]
    loaded.cuMemFree_v2.argtypes = [ctypes.c_uint64]
    return loaded


def bytes_at(pointer, count):
    return ctypes.string_at(pointer, count)


class Array:
    """What cupy and numba have, but for everything else."""

    def __init__(self, values, device=SERVED, strides=None):
        values = np.ascontiguousarray(values)
        self.pointer = library().fake_allocate(device, values.nbytes)
        ctypes.memmove(self.pointer, values.ctypes.data, values.nbytes)
        self.__cuda_array_interface__ = {"shape": values.shape, "typestr": values.dtype.str, "version": 3,
                                         "data": (self.pointer, False), "strides": strides, "stream": STREAM}

    def __del__(self):
        library().cuMemFree_v2(self.pointer)


def to_numpy(array):
    """A copy of anything with the interface."""
    told = array.__cuda_array_interface__
    dtype = np.dtype(told["typestr"])
    data = bytes_at(told["data"][0], dtype.itemsize * int(np.prod(told["shape"])))
    return np.frombuffer(data, dtype).reshape(told["shape"])


class Tensor:
    """As much of torch.Tensor on a GPU as the package asks for."""

    is_cuda = True

    def __init__(self, memory, shape, dtype, device):
        self.memory, self.shape, self.dtype, self.device = memory, tuple(shape), dtype, device

    def detach(self):
        return self

    def contiguous(self):
        return self

    def numel(self):
        return int(np.prod(self.shape))

    def element_size(self):
        return self.dtype.itemsize

    def data_ptr(self):
        return self.memory.pointer

    def data(self):
        return bytes_at(self.data_ptr(), self.numel() * self.element_size())


class Dtype:
    """An element type of torch."""

    def __init__(self, name, itemsize):
        self.name, self.itemsize = name, itemsize


def make_torch():
    """A module that looks like torch, to be put in sys.modules; tensor(bytes, shape, dtype) makes one."""
    torch = types.ModuleType("torch")
    torch.Tensor = Tensor
    for name, size in {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "uint8": 1}.items():
        setattr(torch, name, Dtype(name, size))

    def empty(shape, dtype, device):
        unwritten = np.full(int(np.prod(shape)) * dtype.itemsize, 0xEE, np.uint8)
        return Tensor(Array(unwritten, device), shape, dtype, device)

    torch.empty = empty
    torch.tensor = lambda data, shape, dtype: Tensor(Array(np.frombuffer(data, np.uint8)), shape, dtype, SERVED)
    torch.cuda = types.SimpleNamespace(current_stream=lambda device: types.SimpleNamespace(cuda_stream=11))
    return torch
