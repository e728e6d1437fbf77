"""Models of real sizes with weights that mean nothing: SDXL's VAE, CLIP-L and bigG in fp16, and a checkpoint.

Written once (1.8 GB, a few seconds) and kept. Weights are one block of noise, repeated, at a scale that keeps
activations near 1; shapes and names are the real ones. A checkpoint's UNet is a hole in the file.
"""

import json
import math
import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
VAE_SHAPES = ROOT / "tests" / "golden" / "real" / "vae.json"

# A prime number of them, so that no two rows of a matrix are alike.
NOISE = np.random.default_rng(7).uniform(-1, 1, 1_000_003).astype(np.float32)

ENCODERS = {"l": (768, 12, False), "g": (1280, 32, True)}  # width, layers, has a projection
VOCABULARY, TOKENS = 49408, 77


# ---- shapes: {name: dims}


def vae_shapes():
    return {name: tuple(dims) for name, dims, _, _ in json.loads(VAE_SHAPES.read_text())["tensors"]}


def clip_shapes(letter):
    """In Hugging Face's names."""
    width, layers, projection = ENCODERS[letter]
    shapes = {"text_model.embeddings.token_embedding.weight": (VOCABULARY, width),
              "text_model.embeddings.position_embedding.weight": (TOKENS, width)}

    def pair(name, *dims):
        shapes[f"{name}.weight"] = dims
        shapes[f"{name}.bias"] = dims[:1]

    for layer in range(layers):
        prefix = f"text_model.encoder.layers.{layer}"
        pair(f"{prefix}.layer_norm1", width)
        pair(f"{prefix}.layer_norm2", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            pair(f"{prefix}.self_attn.{part}", width, width)
        pair(f"{prefix}.mlp.fc1", 4 * width, width)
        pair(f"{prefix}.mlp.fc2", width, 4 * width)
    pair("text_model.final_layer_norm", width)
    if projection:
        shapes["text_projection.weight"] = (width, width)
    return shapes


def open_clip_shapes():
    """bigG as a checkpoint of SDXL has it."""
    width, layers, _ = ENCODERS["g"]
    shapes = {"positional_embedding": (TOKENS, width), "token_embedding.weight": (VOCABULARY, width),
              "ln_final.weight": (width,), "ln_final.bias": (width,), "text_projection": (width, width),
              "logit_scale": ()}
    for layer in range(layers):
        prefix = f"transformer.resblocks.{layer}"
        shapes |= {f"{prefix}.{norm}.{part}": (width,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
        shapes |= {f"{prefix}.attn.in_proj_weight": (3 * width, width), f"{prefix}.attn.in_proj_bias": (3 * width,),
                   f"{prefix}.attn.out_proj.weight": (width, width), f"{prefix}.attn.out_proj.bias": (width,),
                   f"{prefix}.mlp.c_fc.weight": (4 * width, width), f"{prefix}.mlp.c_fc.bias": (4 * width,),
                   f"{prefix}.mlp.c_proj.weight": (width, 4 * width), f"{prefix}.mlp.c_proj.bias": (width,)}
    return shapes


LDM_WORDS = [
    (r"(de|en)coder\.mid_block\.resnets\.(\d)", lambda m: f"{m[1]}coder.mid.block_{int(m[2]) + 1}"),
    (r"(de|en)coder\.mid_block\.attentions\.0", r"\1coder.mid.attn_1"),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.up.{3 - int(m[1])}.block.{m[2]}"),
    (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{3 - int(m[1])}.upsample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]


def ldm_shapes():
    """The VAE as a checkpoint has it."""
    shapes = {}
    for name, dims in vae_shapes().items():
        for pattern, words in LDM_WORDS:
            name = re.sub(pattern, words, name)
        if "attn_1" in name and len(dims) == 2:
            dims = (*dims, 1, 1)
        shapes[name] = dims
    return shapes


def unet_shapes():
    """SDXL's UNet: 2,567,463,684 weights."""
    shapes = {}

    def pair(name, *dims, bias=True):
        shapes[f"{name}.weight"] = dims
        if bias:
            shapes[f"{name}.bias"] = dims[:1]

    def residual(name, channels_in, channels):
        pair(f"{name}.in_layers.0", channels_in)
        pair(f"{name}.in_layers.2", channels, channels_in, 3, 3)
        pair(f"{name}.emb_layers.1", channels, 1280)
        pair(f"{name}.out_layers.0", channels)
        pair(f"{name}.out_layers.3", channels, channels, 3, 3)
        if channels_in != channels:
            pair(f"{name}.skip_connection", channels, channels_in, 1, 1)

    def transformer(name, width, depth):
        pair(f"{name}.norm", width)
        pair(f"{name}.proj_in", width, width)
        for i in range(depth):
            block = f"{name}.transformer_blocks.{i}"
            for attention, context in (("attn1", width), ("attn2", 2048)):
                pair(f"{block}.{attention}.to_q", width, width, bias=False)
                pair(f"{block}.{attention}.to_k", width, context, bias=False)
                pair(f"{block}.{attention}.to_v", width, context, bias=False)
                pair(f"{block}.{attention}.to_out.0", width, width)
            pair(f"{block}.ff.net.0.proj", 8 * width, width)
            pair(f"{block}.ff.net.2", width, 4 * width)
            for norm in ("norm1", "norm2", "norm3"):
                pair(f"{block}.{norm}", width)
        pair(f"{name}.proj_out", width, width)

    pair("time_embed.0", 1280, 320)
    pair("time_embed.2", 1280, 1280)
    pair("label_emb.0.0", 1280, 2816)
    pair("label_emb.0.2", 1280, 1280)
    pair("input_blocks.0.0", 320, 4, 3, 3)
    levels, depths = (320, 640, 1280), (0, 2, 10)
    skips, channels, index = [320], 320, 1
    for level, width in enumerate(levels):
        for _ in range(2):
            residual(f"input_blocks.{index}.0", channels, width)
            if depths[level]:
                transformer(f"input_blocks.{index}.1", width, depths[level])
            channels, index = width, index + 1
            skips.append(channels)
        if level < 2:
            pair(f"input_blocks.{index}.0.op", width, width, 3, 3)
            skips.append(channels)
            index += 1
    residual("middle_block.0", 1280, 1280)
    transformer("middle_block.1", 1280, 10)
    residual("middle_block.2", 1280, 1280)
    index = 0
    for level, width in reversed(list(enumerate(levels))):
        for i in range(3):
            residual(f"output_blocks.{index}.0", channels + skips.pop(), width)
            channels, last = width, 1
            if depths[level]:
                transformer(f"output_blocks.{index}.1", width, depths[level])
                last = 2
            if level and i == 2:
                pair(f"output_blocks.{index}.{last}.conv", width, width, 3, 3)
            index += 1
    pair("out.0", 320)
    pair("out.2", 4, 320, 3, 3)
    assert not skips
    assert sum(math.prod(dims) for dims in shapes.values()) == 2_567_463_684
    return shapes


# ---- files


def weights(name, dims, seed):
    """Noise at a gain near one; gammas near one; small biases and embeddings."""
    count = math.prod(dims)
    start = seed * 7919 % len(NOISE)
    noise = np.resize(np.roll(NOISE, -start), count) if count > len(NOISE) - start else NOISE[start : start + count]
    if len(dims) <= 1:
        gamma = 1 if re.search(r"(norm\w*|ln_\w+|in_layers\.0|attn_1\.norm)\.weight$", name) else 0
        return (gamma + 0.05 * noise).astype("<f2")
    if "embedding" in name:
        return (0.1 * noise).astype("<f2")
    return (noise * np.float32(math.sqrt(2 / math.prod(dims[1:])))).astype("<f2")


def write(path, shapes, is_hole=lambda name: False):
    """A file of fp16 tensors in the order of their names, holes where nothing has to stand. Kept if it is there."""
    if path.exists():
        return path
    header, offset = {}, 0
    for name in sorted(shapes):
        count = 2 * math.prod(shapes[name])
        header[name] = {"dtype": "F16", "shape": list(shapes[name]), "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_suffix(".part")
    with open(unfinished, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for seed, name in enumerate(sorted(shapes)):
            if is_hole(name):
                file.seek(2 * math.prod(shapes[name]), 1)
            else:
                file.write(weights(name, shapes[name], seed).data)
        file.truncate(8 + len(text) + offset)
    unfinished.rename(path)
    return path


def make_parts(folder):
    """SDXL's VAE, CLIP-L and bigG as three files."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "sdxl_vae.safetensors", vae_shapes())
    write(folder / "clip_l.safetensors", clip_shapes("l"))
    write(folder / "clip_g.safetensors", clip_shapes("g"))
    return folder


def make_checkpoint(folder):
    """SDXL in one file of 6.5 GB, of which the VAE alone takes room on the disk; the encoders are zero."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {f"first_stage_model.{name}": dims for name, dims in ldm_shapes().items()}
    shapes |= {f"conditioner.embedders.0.transformer.{name}": dims for name, dims in clip_shapes("l").items()}
    shapes |= {f"conditioner.embedders.1.model.{name}": dims for name, dims in open_clip_shapes().items()}
    shapes |= {f"model.diffusion_model.{name}": dims for name, dims in unet_shapes().items()}
    return write(folder / "sdxl_checkpoint.safetensors", shapes,
                 lambda name: not name.startswith("first_stage_model."))


def unet_range(path):
    """(begin, end) of the UNet's bytes in a checkpoint."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    offsets = [entry["data_offsets"] for name, entry in header.items() if name.startswith("model.diffusion_model.")]
    return 8 + length + min(begin for begin, _ in offsets), 8 + length + max(end for _, end in offsets)
