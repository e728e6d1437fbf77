"""CUDA as far as tensors on a GPU need it: ctypes on the driver's own library.

Nothing is loaded here: a program that has tensors on a GPU has libcuda.so.1 in its process, and that is
used. Devices are told apart by UUID, for the numbers of two processes need not agree.
"""

import ctypes
import os
import threading
import uuid

_LIBRARY = "libcuda.so.1"
_HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
_ATTRIBUTE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_address = ctypes.c_uint64
_stream = ctypes.c_void_p


class Error(Exception):
    """A call of the driver failed."""


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_char * _HANDLE_BYTES)]


class _Uuid(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 16)]


# Functions with the types of their arguments; ctypes would else take addresses for 32 bits.
_FUNCTIONS = {
    "cuCtxPopCurrent_v2": [ctypes.POINTER(ctypes.c_void_p)],
    "cuCtxPushCurrent_v2": [ctypes.c_void_p],
    "cuDeviceGet": [ctypes.POINTER(ctypes.c_int), ctypes.c_int],
    "cuDeviceGetUuid_v2": [ctypes.POINTER(_Uuid), ctypes.c_int],
    "cuDevicePrimaryCtxRetain": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int],
    "cuGetErrorName": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
    "cuIpcCloseMemHandle": [_address],
    "cuIpcOpenMemHandle_v2": [ctypes.POINTER(_address), _Handle, ctypes.c_uint],
    "cuMemAlloc_v2": [ctypes.POINTER(_address), ctypes.c_size_t],
    "cuMemFree_v2": [_address],
    "cuMemcpyDtoDAsync_v2": [_address, _address, ctypes.c_size_t, _stream],
    "cuMemcpyDtoH_v2": [ctypes.c_void_p, _address, ctypes.c_size_t],
    "cuMemcpyHtoD_v2": [_address, ctypes.c_void_p, ctypes.c_size_t],
    "cuPointerGetAttribute": [ctypes.c_void_p, ctypes.c_int, _address],
    "cuStreamSynchronize": [_stream],
}


class Driver:
    """The driver of this process; OSError when none is loaded."""

    def __init__(self):
        self._library = ctypes.CDLL(_LIBRARY, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        self._lock = threading.Lock()
        self._cards = {}
        for name, types in _FUNCTIONS.items():
            function = getattr(self._library, name, None)
            if function is None:
                raise OSError(f"{_LIBRARY} has no {name}")
            function.argtypes, function.restype = types, ctypes.c_int

    def call(self, name, *arguments):
        """Calls a function; raises Error."""
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(text))
            raise Error(f"{name}: {text.value.decode() if text.value else code}")

    def card_of(self, pointer):
        """The Card that an address belongs to."""
        ordinal = ctypes.c_int(-1)
        self.call("cuPointerGetAttribute", ctypes.addressof(ordinal), _ATTRIBUTE_ORDINAL, pointer)
        with self._lock:
            if ordinal.value not in self._cards:
                self._cards[ordinal.value] = Card(self, ordinal.value)
            return self._cards[ordinal.value]


class Card:
    """A device of this process, in the context that every library of the process shares."""

    def __init__(self, driver, ordinal):
        device = ctypes.c_int()
        name = _Uuid()
        self._driver = driver
        self._context = ctypes.c_void_p()
        driver.call("cuDeviceGet", ctypes.byref(device), ordinal)
        driver.call("cuDeviceGetUuid_v2", ctypes.byref(name), device)
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.uuid = f"GPU-{uuid.UUID(bytes=bytes(name.bytes))}"

    def open(self, handle):
        """Maps memory of another process; returns its address."""
        if len(handle) != _HANDLE_BYTES:
            raise Error(f"a handle has {_HANDLE_BYTES} bytes, not {len(handle)}")
        pointer = _address()
        whole = _Handle.from_buffer_copy(handle)
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(pointer), whole, _LAZY_PEER_ACCESS)
        return pointer.value

    def close(self, pointer):
        """Takes such a mapping away."""
        self._call("cuIpcCloseMemHandle", pointer)

    def copy(self, to, start, count, stream):
        """Copies on the device behind what the stream does, and waits for it."""
        self._call("cuMemcpyDtoDAsync_v2", to, start, count, stream)
        self._call("cuStreamSynchronize", stream)

    def read(self, pointer, count, stream):
        """The bytes of device memory behind what the stream does, in host memory."""
        data = bytearray(count)
        whole = (ctypes.c_char * count).from_buffer(data)
        self._call("cuStreamSynchronize", stream)
        self._call("cuMemcpyDtoH_v2", ctypes.addressof(whole), pointer, count)
        return memoryview(data)

    def allocate(self, count):
        """The address of new memory."""
        pointer = _address()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), count)
        return pointer.value

    def write(self, pointer, data):
        """Copies bytes of the host to the device."""
        whole = (ctypes.c_char * len(data)).from_buffer_copy(data)
        self._call("cuMemcpyHtoD_v2", pointer, ctypes.addressof(whole), len(data))

    def free(self, pointer):
        """Frees what allocate gave."""
        self._call("cuMemFree_v2", pointer)

    def _call(self, name, *arguments):
        self._driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            self._driver.call(name, *arguments)
        finally:
            self._driver.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


class Memory:
    """Bytes on a card. owner keeps them; stream is the one that wrote them, None where that is done."""

    def __init__(self, card, pointer, count, stream=None, owner=None):
        self.card = card
        self.pointer = pointer
        self.bytes = count
        self.stream = stream
        self.owner = owner

    def read(self):
        """A copy in host memory."""
        return self.card.read(self.pointer, self.bytes, self.stream)

    def copy_to(self, pointer, stream=None):
        """Copies to an address of the card and waits."""
        self.card.copy(pointer, self.pointer, self.bytes, self.stream if stream is None else stream)


_lock = threading.Lock()
_drivers = {}  # of the process, which a fork leaves without


def memory(pointer, count, stream=None, owner=None):
    """The Memory at an address; None where the driver is not in this process or does not know it."""
    try:
        with _lock:
            if os.getpid() not in _drivers:
                _drivers[os.getpid()] = Driver()
        return Memory(_drivers[os.getpid()].card_of(pointer), pointer, count, stream, owner)
    except (OSError, Error):
        return None


class DeviceArray:
    """An answer on a GPU for who asked with an array of neither numpy nor torch: take it over by its
    __cuda_array_interface__, as cupy.asarray and numba.cuda.as_cuda_array do."""

    def __init__(self, card, shape, typestr, count):
        self.shape = tuple(shape)
        self._card = card
        self._typestr = typestr
        self._pointer = card.allocate(count)

    def __del__(self):
        if getattr(self, "_pointer", None) is not None:
            try:
                self._card.free(self._pointer)
            except Error:
                pass  # the device is gone
            self._pointer = None

    @property
    def pointer(self):
        """The address of its first byte."""
        return self._pointer

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape,
            "typestr": self._typestr,
            "data": (self._pointer, False),
            "version": 3,
            "stream": None,  # written
        }
