"""Adapters for the tests: the demo's makers on the demo's encoders, and what they do to a weight, in numpy.

The formulas are those that everybody uses: a model file whose weights were changed by them beforehand has to
encode as the unchanged model does with the adapter.
"""

import struct
import sys
import zipfile

import numpy as np

from files import ROOT, pack_safetensors, read_safetensors

sys.path[:0] = [str(ROOT / "conf" / "demo")]
from make_loras import linears, make_loha, make_lora  # noqa: E402

SDXL = {"l": "lora_te1", "g": "lora_te2"}
SD15 = {"l": "lora_te"}


def targets(encoders="lg"):
    """The linears of the demo's encoders, in kohya's naming for a model of these encoders."""
    return list(linears(encoders, SDXL if len(encoders) == 2 else SD15))


def change(tensors, stem):
    """What an adapter adds to a weight at strength 1, in double."""
    def of(name):
        return tensors[f"{stem}.{name}"].astype(np.float64)

    if f"{stem}.lora_up.weight" in tensors:
        return of("alpha") / len(of("lora_down.weight")) * (of("lora_up.weight") @ of("lora_down.weight"))
    product = (of("hada_w1_a") @ of("hada_w1_b")) * (of("hada_w2_a") @ of("hada_w2_b"))
    return of("alpha") / len(of("hada_w1_b")) * product


def write_changed(path, source, encoder, stack, where, dtype="<f4"):
    """A copy of an encoder's file with the changes of [(adapter, strength)] in its weights, rounded once."""
    tensors, metadata = read_safetensors(source.read_bytes())
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    for stem, name, letter, _, _ in where:
        if letter == encoder:
            weight = read_safetensors(source.read_bytes())[0][name].astype(np.float64)
            tensors[name] = (weight + sum(s * change(adapter, stem) for adapter, s in stack)).astype(dtype)
    path.write_bytes(pack_safetensors(tensors, metadata))


def write(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack_safetensors(tensors))
    return path


def write_torch(path, tensors, extra=b""):
    """What torch.save writes, of contiguous tensors: a zip of storages and a pickle (protocol 2)."""
    kinds = {"<f4": "FloatStorage", "<f2": "HalfStorage"}

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value):
        return b"J" + struct.pack("<i", value)

    def numbers(values):
        return b"(" + b"".join(number(value) for value in values) + b"t"

    body = b"\x80\x02" + extra + b"}("
    with zipfile.ZipFile(path, "w") as archive:
        for i, (name, array) in enumerate(tensors.items()):
            array = np.asarray(array)
            archive.writestr(f"archive/data/{i}", array.tobytes())
            strides = [stride // array.itemsize for stride in array.strides]
            body += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
            body += text("storage") + b"ctorch\n" + kinds[array.dtype.str].encode() + b"\n"
            body += text(str(i)) + text("cpu") + number(array.size) + b"tQ"
            body += number(0) + numbers(array.shape) + numbers(strides)
            body += b"\x89ccollections\nOrderedDict\n)RtR"
        archive.writestr("archive/data.pkl", body + b"u.")
    return path


def relative(a, b):
    """The distance of two answers, beside the second's length."""
    return np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64))


__all__ = ["SD15", "SDXL", "change", "make_loha", "make_lora", "relative", "targets", "write", "write_changed",
           "write_torch"]
