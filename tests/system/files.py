"""Model files and latents for the tests: safetensors in a few lines, and pictures of a known kind."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "conf" / "demo" / "picture.png"
VAE = ROOT / "conf" / "demo" / "vae.safetensors"

_TYPES = {"F32": "<f4", "F16": "<f2", "U8": "u1", "I32": "<i4", "I64": "<i8", "F64": "<f8"}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}


def read_safetensors(data):
    """({name: array}, metadata) of a file's bytes; bfloat16 becomes float32."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            halves = np.frombuffer(data[begin:end], "<u2").astype("<u4") << 16
            tensors[name] = halves.view("<f4").reshape(entry["shape"])
        else:
            tensors[name] = np.frombuffer(data[begin:end], _TYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def safetensors_dtypes(data):
    """{name: dtype} as the file's header says."""
    length = int.from_bytes(data[:8], "little")
    return {name: entry["dtype"] for name, entry in json.loads(data[8 : 8 + length]).items()
            if name != "__metadata__"}


def pack_safetensors(tensors, metadata=None):
    """The bytes of a file."""
    header, blobs, offset = ({"__metadata__": metadata} if metadata else {}), [], 0
    for name, array in tensors.items():
        shape = list(np.shape(array))  # a number has none, and ascontiguousarray gives it one
        array = np.ascontiguousarray(array)
        header[name] = {"dtype": _NAMES[array.dtype], "shape": shape,
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
        blobs.append(array.tobytes())
    return with_header(header, b"".join(blobs))


def with_header(header, data):
    """A file with any header, true or not: a dictionary or the bytes themselves."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def make_models(folder):
    """The demo's VAE and the small text encoders in a folder, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "clip_g.safetensors").exists() or not (folder / "clip_l.safetensors").exists():
        subprocess.run([sys.executable, ROOT / "conf" / "demo" / "make_clip.py", folder], check=True)
    if not (folder / "vae.safetensors").exists():
        (folder / "vae.safetensors").write_bytes(VAE.read_bytes())
    return folder


def read_picture(path=PICTURE):
    """[1,H,W,3] in 0..1."""
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"), np.float32)[None] / 255


def random_latent(seed, height=8, width=8, count=1):
    """Latents that the demo's VAE could have made."""
    return np.random.default_rng(seed).standard_normal((count, 16, height, width)).astype(np.float32)


def psnr(a, b):
    return 10 * np.log10(1 / np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
