"""Files of named tensors: safetensors and torch zips are read, safetensors are written, all are hashed.

Nothing here needs torch: a torch file is a zip of storages and one pickle, and the few names that
the pickle of tensors says are known below. Every other name is an error, and nothing is called.
"""

import collections
import hashlib
import io
import json
import math
import pickle
import struct
import sys
import zipfile

import numpy

_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_NAMES = {numpy.dtype(kind): name for name, kind in _NUMPY.items()}
_ELEMENT_BYTES = {name: numpy.dtype(kind).itemsize for name, kind in _NUMPY.items()}
_ELEMENT_BYTES.update({"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1})
_TORCH = {  # those that numpy lacks
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_DEPTH_MAX = 16  # of containers in a pickle

Entry = collections.namedtuple("Entry", "dtype dims data")
Entry.__doc__ = "A tensor: its type as safetensors writes it, its shape, its bytes (little-endian)."


# ---- reading


def read(data):
    """{name: Entry} of a file's bytes; ValueError says what is wrong with them."""
    data = memoryview(data)
    return _read_torch(data) if bytes(data[:4]) == b"PK\x03\x04" else _read_safetensors(data)


def _checked(name, dtype, dims, data):
    if dtype not in _ELEMENT_BYTES:
        raise ValueError(f'tensor "{name}" has the unknown type {dtype}')
    if len(data) != math.prod(dims) * _ELEMENT_BYTES[dtype]:
        raise ValueError(f'tensor "{name}" has {len(data)} bytes, which {dtype}{list(dims)} is not')
    return Entry(dtype, tuple(dims), data)


def _read_safetensors(data):
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError("neither a safetensors file nor a torch zip")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
        content = data[8 + length :]
        entries = {}
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                entries[name] = _checked(name, entry["dtype"], entry["shape"], content[begin:end])
        return entries
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"the safetensors header cannot be read: {error!r}") from error


class _Storage:
    def __init__(self, dtype):
        self.dtype = dtype


_Tensor = collections.namedtuple("_Tensor", "storage offset dims strides")


def _rebuild(storage, offset, dims, strides, *_):
    return _Tensor(storage, offset, dims, strides)


def _nothing(*_):
    return None


_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch", "Size"): tuple,
    ("torch", "device"): _nothing,
    ("numpy.core.multiarray", "scalar"): _nothing,
    ("numpy._core.multiarray", "scalar"): _nothing,
    ("numpy", "dtype"): _nothing,
    ("_codecs", "encode"): _nothing,
}
for _name, _dtype in {
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Double": "F64",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
}.items():
    _ALLOWED["torch", f"{_name}Storage"] = _Storage(_dtype)
for _name in ("float32", "float16", "bfloat16"):
    _ALLOWED["torch", _name] = _nothing


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise ValueError(f"the file uses {module}.{name}, which is not allowed")
        return _ALLOWED[module, name]

    def persistent_load(self, pid):
        kind, storage, key, _, _ = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise ValueError(f"the file has a persistent id of the kind {kind!r}")
        return storage.dtype, key


def _is_contiguous(tensor):
    stride = 1
    for size, step in zip(reversed(tensor.dims), reversed(tensor.strides)):
        if size != 1 and step != stride:
            return False
        stride *= size
    return True


def _read_torch(data):
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip file, but not one that torch.save wrote")
        root = pickles[0][: -len("data.pkl")]
        value = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
        if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
            value = value["state_dict"]
        entries, storages = {}, {}
        for name, tensor in _walk("tensor" if isinstance(value, _Tensor) else "", value, 0):
            dtype, key = tensor.storage
            if key not in storages:
                storages[key] = memoryview(archive.read(f"{root}data/{key}"))
            if math.prod(tensor.dims) and not _is_contiguous(tensor):
                raise ValueError(f'tensor "{name}" is not contiguous; save it with .contiguous()')
            begin = tensor.offset * _ELEMENT_BYTES[dtype]
            end = begin + math.prod(tensor.dims) * _ELEMENT_BYTES[dtype]
            entries[name] = _checked(name, dtype, tensor.dims, storages[key][begin:end])
        return entries
    except (pickle.UnpicklingError, zipfile.BadZipFile, KeyError, TypeError, EOFError) as error:
        raise ValueError(f"the torch file cannot be read: {error!r}") from error


def _walk(name, value, depth):
    if depth > _DEPTH_MAX:
        raise ValueError(f"the file's containers nest deeper than {_DEPTH_MAX}")
    if isinstance(value, _Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if isinstance(key, (str, int)):
                yield from _walk(f"{name}.{key}" if name else str(key), item, depth + 1)


# ---- state dictionaries


def _from_array(name, array):
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        dims = tuple(array.shape)
        array = array.detach().cpu().contiguous()
        for dtype, attribute in _TORCH.items():
            if array.dtype == getattr(torch, attribute, None):
                whole = torch.int16 if _ELEMENT_BYTES[dtype] == 2 else torch.uint8
                return Entry(dtype, dims, _bytes_of(array.view(whole).numpy()))
        array = array.numpy()
    array = numpy.asarray(array)
    dims = array.shape
    little = array.dtype.newbyteorder("<")
    if little not in _NAMES:
        raise TypeError(f'"{name}" has the element type {array.dtype}, which cannot be sent')
    return Entry(_NAMES[little], dims, _bytes_of(numpy.ascontiguousarray(array, little)))


def _bytes_of(array):
    return memoryview(array.reshape(-1).view(numpy.uint8)) if array.size else memoryview(b"")


def from_state_dict(tensors):
    """{name: Entry} of a dictionary of numpy arrays, torch tensors, or numbers."""
    return {str(name): _from_array(name, array) for name, array in tensors.items()}


def _to_torch(torch, entry):
    attribute = _TORCH.get(entry.dtype)
    kind = _NUMPY.get(entry.dtype) or f"u{_ELEMENT_BYTES[entry.dtype]}"
    if kind == "u2":
        kind = "<i2"  # torch can see bfloat16 in these, not in unsigned ones
    numbers = numpy.frombuffer(entry.data, kind).reshape(entry.dims)
    made = torch.from_numpy(numbers.copy())
    return made if attribute is None else made.view(getattr(torch, attribute))


def _to_numpy(name, entry):
    if entry.dtype == "BF16":  # numpy has none
        halves = numpy.frombuffer(entry.data, "<u2").astype("<u4")
        return (halves << 16).view("<f4").reshape(entry.dims)
    if entry.dtype not in _NUMPY:
        raise ValueError(f'tensor "{name}" is {entry.dtype}, which numpy lacks: ask for torch=True')
    return numpy.frombuffer(entry.data, _NUMPY[entry.dtype]).reshape(entry.dims)


def state_dict(data, torch=False):
    """The tensors of a file's bytes, by name, as get_lora returns them.

    numpy arrays share the bytes' memory (bfloat16, which numpy lacks, becomes float32); torch
    tensors are copies.
    """
    entries = read(data)
    if not torch:
        return {name: _to_numpy(name, entry) for name, entry in entries.items()}
    import torch as library

    return {name: _to_torch(library, entry) for name, entry in entries.items()}


# ---- hashing and writing


def content_hash(entries):
    """The 64 hexadecimal digits by which the daemon knows these tensors, whatever file they are in."""
    state = hashlib.blake2b(digest_size=32)
    for name, entry in sorted((name.encode(), entry) for name, entry in entries.items()):
        dtype = entry.dtype.encode()
        state.update(struct.pack("<I", len(name)) + name + struct.pack("<I", len(dtype)) + dtype)
        state.update(struct.pack(f"<I{len(entry.dims)}Q", len(entry.dims), *entry.dims))
        state.update(struct.pack("<Q", len(entry.data)))
        state.update(entry.data)
    return state.hexdigest()


def pack(entries):
    """The parts of a safetensors file, to be written one behind the other."""
    header, parts, offset = {}, [], 0
    order = sorted(entries.items(), key=lambda item: (-_ELEMENT_BYTES[item[1].dtype], item[0]))
    for name, entry in order:
        end = offset + len(entry.data)
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.dims),
            "data_offsets": [offset, end],
        }
        parts.append(entry.data)
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *parts]
