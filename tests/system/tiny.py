"""The tiny encoders that the goldens of tests/golden/text and tests/golden/lora were made of: every weight is
computed from its tensor's name, as make_text.py there says, but without torch."""

import numpy as np

from files import pack_safetensors

TOKENS = 77
SIZES = {
    "clip_l": dict(width=64, mlp=256, layers=3, projection=0),
    "clip_g": dict(width=128, mlp=512, layers=3, projection=128),
}
KINDS = {"sd1": ["clip_l"], "sdxl": ["clip_l", "clip_g"], "refiner": ["clip_g"]}


def splitmix(name, count):
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & (2**64 - 1)
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)


def scale(name, shape):
    if "embedding" in name or "norm" in name:
        return 2.0**-4
    if name.endswith("bias"):
        return 2.0**-6
    return {64: 2.0**-3, 128: 2.0**-3, 256: 2.0**-4, 512: 2.0**-4}.get(shape[-1], 2.0**-5)


def tensor(part, name, shape):
    values = splitmix(f"{part}.{name}", int(np.prod(shape))) * np.float32(scale(name, shape))
    if "norm" in name and name.endswith("weight"):
        values = values + np.float32(1)
    if name.endswith("layers.0.mlp.fc2.bias"):
        values[7] = 24
        values[40] = -12
    if "layer_norm1.weight" in name:
        values[3] = 4
    return values.reshape(shape)


def shapes(part):
    sizes = SIZES[part]
    width, mlp = sizes["width"], sizes["mlp"]
    yield "text_model.embeddings.token_embedding.weight", (49408, width)
    yield "text_model.embeddings.position_embedding.weight", (TOKENS, width)
    for layer in range(sizes["layers"]):
        stem = f"text_model.encoder.layers.{layer}."
        linears = [(f"self_attn.{name}_proj", (width, width)) for name in ("k", "v", "q", "out")]
        for name, shape in linears + [("mlp.fc1", (mlp, width)), ("mlp.fc2", (width, mlp))]:
            yield stem + name + ".weight", shape
            yield stem + name + ".bias", shape[:1]
        for name in ("layer_norm1", "layer_norm2"):
            yield stem + name + ".weight", (width,)
            yield stem + name + ".bias", (width,)
    yield "text_model.final_layer_norm.weight", (width,)
    yield "text_model.final_layer_norm.bias", (width,)
    if sizes["projection"]:
        yield "text_projection.weight", (sizes["projection"], width)


def write_encoders(folder, dtype="F32"):
    """clip_l.safetensors and clip_g.safetensors in a folder, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = {"F32": np.float32, "F16": np.float16}[dtype]
    for part in SIZES:
        path = folder / f"{part}.safetensors"
        if not path.exists():
            tensors = {name: tensor(part, name, shape).astype(kind) for name, shape in shapes(part)}
            path.write_bytes(pack_safetensors(tensors))
    return folder
