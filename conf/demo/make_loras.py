"""Writes two small adapters for the demo's text encoders, of different families, from a seed: they mean nothing.

    make_loras.py FOLDER    leaves ink.safetensors (LoRA) and grain.safetensors (LoHa) there

kohya's names for SDXL, float16; each changes the six linears of every layer of both encoders, and holds
one key for a UNet, as files from people do. The same seed makes the same bytes.
"""
import sys
from pathlib import Path

import numpy as np

from make_clip import ENCODERS, write_safetensors

PREFIXES = {"l": "lora_te1", "g": "lora_te2"}
SCALE = 0.3  # of the change at strength 1, beside the weights
UNET = "lora_unet_down_blocks_1_attentions_0_proj_in"


def linears(encoders="lg", prefixes=PREFIXES):
    """(key stem, the weight's name in its encoder, encoder, rows, columns) of every linear."""
    for letter in encoders:
        width = ENCODERS[letter]["width"]
        shapes = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        shapes.update({"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)})
        for layer in range(ENCODERS[letter]["layers"]):
            for module, (rows, columns) in shapes.items():
                name = f"text_model.encoder.layers.{layer}.{module}"
                yield f"{prefixes[letter]}_{name.replace('.', '_')}", f"{name}.weight", letter, rows, columns


def normal(random, rows, columns, deviation):
    return (deviation * random.standard_normal((rows, columns))).astype("<f2")


def make_lora(seed=3, rank=4, alpha=2.0, targets=None):
    """up @ down, scaled by alpha / rank."""
    random = np.random.Generator(np.random.PCG64(seed))
    tensors = {}
    for stem, _, _, rows, columns in targets or linears():
        deviation = np.sqrt(SCALE / alpha * np.sqrt(rank) / np.sqrt(columns))
        tensors[f"{stem}.lora_down.weight"] = normal(random, rank, columns, deviation)
        tensors[f"{stem}.lora_up.weight"] = normal(random, rows, rank, deviation)
        tensors[f"{stem}.alpha"] = np.array(alpha, "<f2")
    tensors[f"{UNET}.lora_down.weight"] = np.zeros((rank, 8), "<f2")
    tensors[f"{UNET}.lora_up.weight"] = np.zeros((8, rank), "<f2")
    return tensors


def make_loha(seed=4, rank=2, alpha=2.0, targets=None):
    """(w1_a @ w1_b) * (w2_a @ w2_b), scaled by alpha / rank."""
    random = np.random.Generator(np.random.PCG64(seed))
    tensors = {}
    for stem, _, _, rows, columns in targets or linears():
        deviation = (SCALE / alpha / np.sqrt(columns)) ** 0.25
        for name, shape in (("w1_a", (rows, rank)), ("w1_b", (rank, columns)),
                            ("w2_a", (rows, rank)), ("w2_b", (rank, columns))):
            tensors[f"{stem}.hada_{name}"] = normal(random, *shape, deviation)
        tensors[f"{stem}.alpha"] = np.array(alpha, "<f2")
    tensors[f"{UNET}.hada_w1_a"] = np.zeros((8, rank), "<f2")
    return tensors


def main(folder):
    for name, tensors in (("ink", make_lora()), ("grain", make_loha())):
        path = folder / f"{name}.safetensors"
        unfinished = path.with_suffix(".part")
        write_safetensors(unfinished, tensors, {"luna.demo": name})
        unfinished.rename(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
