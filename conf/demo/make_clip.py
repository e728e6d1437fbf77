"""Writes two small text encoders with random weights from a seed: they show the way and mean nothing.

    make_clip.py FOLDER     leaves clip_l.safetensors and clip_g.safetensors there

Hugging Face's names, float16, the full vocabulary, shapes of CLIP-L and OpenCLIP-bigG in small. Which is
which stands in the metadata, since the widths do not tell. The same seed makes the same bytes.
"""
import json
import sys
from pathlib import Path

import numpy as np

VOCABULARY, TOKENS, HEAD = 49408, 77, 64
ENCODERS = {
    "l": {"layers": 2, "width": 64, "projection": 0, "seed": 1},
    "g": {"layers": 3, "width": 128, "projection": 128, "seed": 2},
}


def norm(tensors, name, width):
    tensors[f"{name}.weight"] = np.ones(width)
    tensors[f"{name}.bias"] = np.zeros(width)


def linear(tensors, name, rows, columns, random):
    """As wide as keeps a normal input at a standard deviation near 1."""
    tensors[f"{name}.weight"] = random.standard_normal((rows, columns)) / np.sqrt(columns)
    tensors[f"{name}.bias"] = 0.02 * random.standard_normal(rows)


def make_encoder(layers, width, projection, seed):
    """All tensors of one encoder, by name."""
    assert width % HEAD == 0
    random = np.random.Generator(np.random.PCG64(seed))
    tensors = {
        "text_model.embeddings.token_embedding.weight": random.standard_normal((VOCABULARY, width)),
        "text_model.embeddings.position_embedding.weight": 0.3 * random.standard_normal((TOKENS, width)),
    }
    for layer in range(layers):
        prefix = f"text_model.encoder.layers.{layer}"
        norm(tensors, f"{prefix}.layer_norm1", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(tensors, f"{prefix}.self_attn.{part}", width, width, random)
        norm(tensors, f"{prefix}.layer_norm2", width)
        linear(tensors, f"{prefix}.mlp.fc1", 4 * width, width, random)
        linear(tensors, f"{prefix}.mlp.fc2", width, 4 * width, random)
    norm(tensors, "text_model.final_layer_norm", width)
    if projection:
        tensors["text_projection.weight"] = random.standard_normal((projection, width)) / np.sqrt(width)
    return {name: tensor.astype("<f2") for name, tensor in tensors.items()}


def write_safetensors(path, tensors, metadata):
    """Header length, JSON header, the tensors one behind the other."""
    header, offset = {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def main(folder):
    for letter, shape in ENCODERS.items():
        path = folder / f"clip_{letter}.safetensors"
        unfinished = path.with_suffix(".part")
        write_safetensors(unfinished, make_encoder(**shape), {"luna.encoder": letter})
        unfinished.rename(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
