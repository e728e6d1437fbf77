"""Makes tests/golden/lora/: what adapters must do to the tiny encoders of make_text.py.

    adapters/NAME.safetensors, .pt   adapters of every family, in every naming
    adapters.json                    {NAME.suffix: {"family", "modules": [[part, target]], "unused": [key],
                                     "other": count}}; unused: on SDXL
    merges.json                      [{"adapter", "strength", "dtype", "part", "target"}]: the weights of
    merges.safetensors               entry i after one patch are tensor "i", in dtype: row n // 3 of n
                                     (of a vector: all of it)
    cases.json                       [{"name", "kind", "dtype", "prompt", "stack": [{"adapter", "strength"}]}]
    cases.safetensors                NAME.cond (every 19th token; metadata "stride") and NAME.pooled, f32

A strength is a number, or {"clip_l": x, "clip_g": y}. dtype is that of all base weights (F32, F16); what
is merged is computed in fp32 in the order of the stack and rounded to it once. kind, parts and the base
weights are make_text.py's, with base weights rounded to dtype first.

The formulas are written here once more, naively, from the description of ComfyUI's behaviour; where peft
and lycoris-lora know a family, main() compares with them before it writes anything.
"""

import json
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file

import make_text

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "lora"
STRIDE = 19
PROMPT = "a photo of a (red:1.3) fox"
TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LAYER = "text_model.encoder.layers."


def noise(name, shape, scale):
    count = int(np.prod(shape))
    values = make_text.splitmix("lora." + name, count) * np.float32(scale)
    return torch.from_numpy(values).reshape(shape)


def shape_of(part, target):
    """The canonical shape of a weight, or of a bias."""
    sizes = make_text.TINY[part]
    width, mlp = sizes["width"], sizes["mlp"]
    name = target.removesuffix(".weight").removesuffix(".bias").split(".")[-1]
    if name == "token_embedding":
        return (49408, width)
    if name == "position_embedding":
        return (77, width)
    if name == "text_projection":
        return (sizes["projection"], width)
    shape = {"fc1": (mlp, width), "fc2": (width, mlp)}.get(name, (width, width))
    if "norm" in name or target.endswith(".bias"):
        return (shape[0],)
    return shape


# Namings: the stem of a weight's keys.


def kohya(prefix):
    return lambda part, target: prefix + target.replace(".", "_")


def kohya_sdxl(part, target):
    return ("lora_te1_" if part == "clip_l" else "lora_te2_") + target.replace(".", "_")


def diffusers(part, target):
    return ("text_encoder." if part == "clip_l" else "text_encoder_2.") + target


def generic(part, target):
    return f"text_encoders.{part}.transformer.{target}"


# Families: tensors by suffix, for a weight of [out, in]. Every one ends with its formula below.


def lora(name, out, inn, rank, up=".lora_up.weight", down=".lora_down.weight", conv=False, alpha=None):
    ones = (1, 1) if conv else ()
    tensors = {
        up: noise(name + up, (out, rank) + ones, 0.25),
        down: noise(name + down, (rank, inn) + ones, 0.25),
    }
    if alpha is not None:
        tensors[".alpha"] = torch.tensor(alpha)
    return tensors


def loha(name, out, inn, rank, alpha=None, tucker=False):
    sides = {
        ".hada_w1_a": (out, rank), ".hada_w1_b": (rank, inn),
        ".hada_w2_a": (out, rank), ".hada_w2_b": (rank, inn),
    }
    if tucker:
        sides[".hada_w1_a"] = sides[".hada_w2_a"] = (rank, out)
        sides[".hada_t1"] = sides[".hada_t2"] = (rank, rank, 1, 1)
    scale = 1.0 if tucker else 0.5
    tensors = {suffix: noise(name + suffix, shape, scale) for suffix, shape in sides.items()}
    if alpha is not None:
        tensors[".alpha"] = torch.tensor(alpha)
    return tensors


def lokr(name, first, second, rank1=0, rank2=0, alpha=None, tucker=False):
    tensors = {}
    for index, (rows, columns), rank in ((1, first, rank1), (2, second, rank2)):
        key = f".lokr_w{index}"
        if rank == 0:
            tensors[key] = noise(name + key, (rows, columns), 0.3)
            continue
        turned = tucker and index == 2
        tensors[key + "_a"] = noise(name + key + "_a", (rank, rows) if turned else (rows, rank), 0.4)
        tensors[key + "_b"] = noise(name + key + "_b", (rank, columns), 0.4)
    if tucker:
        tensors[".lokr_t2"] = noise(name + ".lokr_t2", (rank2, rank2, 1, 1), 0.6)
    if alpha is not None:
        tensors[".alpha"] = torch.tensor(alpha)
    return tensors


def glora(name, out, inn, rank, old=False, alpha=None):
    sides = {".a1": (inn, rank), ".a2": (rank, inn), ".b1": (out, rank), ".b2": (rank, inn)}
    if old:
        sides = {".a1": (rank, inn), ".a2": (inn, rank), ".b1": (rank, inn), ".b2": (out, rank)}
    tensors = {
        suffix + ".weight": noise(name + suffix, shape, 0.2) for suffix, shape in sides.items()
    }
    if alpha is not None:
        tensors[".alpha"] = torch.tensor(alpha)
    return tensors


def dora(tensors, name, out, inn, rows):
    """Magnitudes about as large as the norms of the weights."""
    shape = (out, 1) if rows else (1, inn)
    return dict(tensors, **{".dora_scale": noise(name + ".dora_scale", shape, 0.3) + 0.8})


def oft(name, out, size, alpha=None):
    tensors = {".oft_blocks": noise(name + ".oft", (out // size, size, size), 0.1)}
    if alpha is not None:
        tensors[".alpha"] = torch.tensor(alpha)
    return tensors


def boft(name, out, stages, size, rescale=False, alpha=0.0):
    shape = (stages, out // size, size, size)
    tensors = {".oft_blocks": noise(name + ".boft", shape, 0.1), ".alpha": torch.tensor(alpha)}
    if rescale:
        tensors[".rescale"] = noise(name + ".rescale", (out, 1), 0.2) + 1
    return tensors


# The adapters: modules of (naming, part, target, tensors by suffix), and keys that lead nowhere.


def all_linears(make, parts):
    """One module each, for every kind of linear."""
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
             "mlp.fc1", "mlp.fc2"]
    out = []
    for index, name in enumerate(names):
        for part in parts:
            target = f"{LAYER}{index % 3}.{name}"
            tensors = make(f"{part}.{target}", *shape_of(part, target + ".weight"))
            out.append((part, target, tensors))
    return out


def few(make, parts=("clip_l", "clip_g")):
    """A square and an oblong weight of each part."""
    out = []
    for part in parts:
        for target in (LAYER + "0.self_attn.v_proj", LAYER + "1.mlp.fc2"):
            tensors = make(f"{part}.{target}", *shape_of(part, target + ".weight"))
            out.append((part, target, tensors))
    return out


def named(naming, modules):
    return [(naming, *module) for module in modules]


def unet(suffixes=(".lora_up.weight", ".lora_down.weight", ".alpha")):
    return {
        "lora_unet_down_blocks_1_attentions_0_proj_in" + suffix: torch.ones(1) for suffix in suffixes
    }


def make_adapters():
    both, l_only = ("clip_l", "clip_g"), ("clip_l",)
    peft = dict(up=".lora_B.weight", down=".lora_A.weight")
    out = {}
    out["kohya_sdxl.safetensors"] = dict(
        dtype="F16", extra=unet(),
        modules=named(kohya_sdxl, all_linears(lambda n, o, i: lora(n, o, i, 4, alpha=2.0), both)),
    )
    out["kohya_sd1.safetensors"] = dict(
        dtype="BF16", extra=unet(),
        modules=named(kohya("lora_te_"), all_linears(lambda n, o, i: lora(n + "sd1", o, i, 8), l_only)),
    )
    out["kohya_sd1.pt"] = dict(
        dtype="F32", extra=unet(),
        modules=named(
            kohya("lora_te_"),
            all_linears(lambda n, o, i: lora(n + "pt", o, i, 3, alpha=1.5), l_only)[:3],
        ),
    )
    out["refiner.safetensors"] = dict(
        dtype="F16",
        modules=named(
            kohya("lora_te_"), few(lambda n, o, i: lora(n + "refiner", o, i, 4), ("clip_g",))
        ),
    )
    out["diffusers.safetensors"] = dict(
        dtype="F32",
        modules=named(
            diffusers,
            few(lambda n, o, i: lora(n + "diffusers", o, i, 2, ".lora_linear_layer.up.weight",
                                     ".lora_linear_layer.down.weight")),
        ),
    )
    out["peft.safetensors"] = dict(
        dtype="F16",
        modules=named(diffusers, few(lambda n, o, i: lora(n + "peft", o, i, 4, **peft))),
    )
    out["peft_default.safetensors"] = dict(
        dtype="F16",
        modules=named(
            diffusers,
            few(lambda n, o, i: lora(n + "default", o, i, 2, ".lora_B.default.weight",
                                     ".lora_A.default.weight", alpha=3)),
        ),
    )
    projection = "text_projection"
    out["onetrainer.safetensors"] = dict(
        dtype="BF16",
        modules=named(
            kohya_sdxl,
            few(lambda n, o, i: lora(n + "one", o, i, 4, conv=True, alpha=4.0))
            + [("clip_g", projection, lora("one.projection", 128, 128, 4, alpha=4.0))],
        ),
        unused=["lora_te1_text_projection.lora_up.weight", "lora_te1_text_projection.lora_down.weight",
                "lora_te1_text_projection.alpha"],
    )
    position = "text_model.embeddings.position_embedding"
    token = "text_model.embeddings.token_embedding"
    out["generic.safetensors"] = dict(
        dtype="F16",
        modules=named(
            generic,
            few(lambda n, o, i: lora(n + "generic", o, i, 4, **peft, alpha=2.0))
            + [
                ("clip_l", token, lokr("token", (256, 1), (193, 64))),
                ("clip_l", position, {".diff": noise("position", (77, 64), 0.02)}),
                ("clip_g", position, lora("position.g", 77, 128, 2, **peft)),
                ("clip_g", projection, lora("generic.projection", 128, 128, 2, **peft)),
                ("clip_g", LAYER + "1.layer_norm1", {".diff": noise("norm", (128,), 0.1)}),
                ("clip_g", LAYER + "2.layer_norm2", lora("norm2", 128, 1, 1, **peft)),
                ("clip_l", "text_model.final_layer_norm", {
                    ".w_norm": noise("w_norm", (64,), 0.1), ".b_norm": noise("b_norm", (64,), 0.1)}),
            ],
        ),
        unused=["text_encoders.clip_g.logit_scale.diff"],
    )
    out["loha.safetensors"] = dict(
        dtype="F16",
        modules=named(kohya_sdxl, few(lambda n, o, i: loha(n, o, i, 4, alpha=2.0))),
    )
    out["loha_tucker.safetensors"] = dict(
        dtype="F32",
        modules=named(kohya_sdxl, few(lambda n, o, i: loha(n, o, i, 3, tucker=True, alpha=3.0), l_only)),
    )
    out["lokr.safetensors"] = dict(
        dtype="F16",
        modules=named(
            kohya_sdxl,
            # Nothing factored: alpha does not count. Then the second, both, and the first.
            [("clip_l", LAYER + "0.self_attn.v_proj", lokr("k1", (4, 8), (16, 8), alpha=100.0)),
             ("clip_l", LAYER + "1.mlp.fc2", lokr("k2", (8, 8), (8, 32), rank2=4, alpha=2.0)),
             ("clip_g", LAYER + "0.self_attn.v_proj", lokr("k3", (16, 16), (8, 8), 4, 2, alpha=2.0)),
             ("clip_g", LAYER + "1.mlp.fc2", lokr("k4", (8, 16), (16, 32), rank1=4, alpha=1.0)),
             ("clip_g", LAYER + "1.mlp.fc1", lokr("k5", (16, 8), (32, 16), 0, 3, 3.0, tucker=True))],
        ),
    )
    out["glora.safetensors"] = dict(
        dtype="F16",
        modules=named(kohya_sdxl, few(lambda n, o, i: glora(n, o, i, 4, alpha=2.0))),
    )
    out["glora_old.safetensors"] = dict(
        dtype="F16",
        modules=named(kohya_sdxl, few(lambda n, o, i: glora(n + "old", o, i, 4, True))),
    )
    out["dora.safetensors"] = dict(
        dtype="F16",
        modules=named(
            kohya_sdxl,
            few(lambda n, o, i: dora(lora(n + "dora", o, i, 4, alpha=2.0), n, o, i, rows=True)),
        ),
    )
    out["dora_columns.safetensors"] = dict(
        dtype="F32",
        modules=named(
            kohya_sdxl,
            few(lambda n, o, i: dora(lora(n + "columns", o, i, 2), n, o, i, rows=False), ("clip_g",))
            + few(lambda n, o, i: dora(loha(n + "doha", o, i, 2, 1.0), n, o, i, rows=True), l_only),
        ),
    )
    out["oft.safetensors"] = dict(
        dtype="F32",
        modules=named(
            kohya_sdxl,
            few(lambda n, o, i: oft(n, o, 8, alpha=1.0), ("clip_g",))
            + few(lambda n, o, i: oft(n, o, 16), l_only),
        ),
    )
    out["boft.safetensors"] = dict(
        dtype="F32",
        modules=named(
            kohya_sdxl,
            few(lambda n, o, i: boft(n, o, 4, 8, rescale=True, alpha=1.5), ("clip_g",))
            + few(lambda n, o, i: boft(n, o, 2, 4), l_only),
        ),
    )
    out["diff.safetensors"] = dict(
        dtype="F16",
        modules=named(
            kohya_sdxl,
            [("clip_l", LAYER + "0.self_attn.v_proj", {
                ".diff": noise("diff", (64, 64), 0.1), ".diff_b": noise("diff_b", (64,), 0.1)}),
             ("clip_g", LAYER + "0.self_attn.v_proj", {
                ".diff_b": noise("diff_b.g", (128,), 0.2), **lora("beside", 128, 128, 2)})],
        ),
    )
    out["set.safetensors"] = dict(
        dtype="F32",
        modules=named(
            kohya_sdxl,
            [("clip_l", LAYER + "0.self_attn.v_proj", {".set_weight": noise("set", (64, 64), 0.1)})],
        ),
    )
    return out


def family_of(tensors):
    if ".set_weight" in tensors:
        return "set"
    if ".diff" in tensors or ".w_norm" in tensors:
        return "diff"
    if ".oft_blocks" in tensors:
        return "oft" if tensors[".oft_blocks"].ndim == 3 else "boft"
    if ".dora_scale" in tensors:
        return "dora"
    for suffix, family in ((".a1.weight", "glora"), (".hada_w1_a", "loha"), (".diff_b", "diff")):
        if suffix in tensors and find_pair(tensors) is None:
            return family
    return "lora" if find_pair(tensors) is not None else "lokr"


def find_pair(tensors):
    for up, down in ((".lora_up.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_A.weight"),
                     (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
                     (".lora_B.default.weight", ".lora_A.default.weight")):
        if up in tensors:
            return tensors[up], tensors[down]
    return None


# Formulas, on fp32 tensors. W is not changed.


def product(tensors, W):
    """(difference without strength, factor) of the families that add a product."""
    alpha = float(tensors[".alpha"]) if ".alpha" in tensors else None

    def factor(rank):
        return 1.0 if alpha is None or rank is None else alpha / rank

    def tucker(t, a, b):
        return torch.einsum("ij,ip,jr->pr", t.flatten(1), a, b)

    pair = find_pair(tensors)
    if pair is not None:
        up, down = pair
        return (up.flatten(1) @ down.flatten(1)).reshape(W.shape), factor(down.shape[0])
    if ".hada_w1_a" in tensors:
        w = [tensors[f".hada_w{i}_{s}"] for i in (1, 2) for s in "ab"]
        if ".hada_t1" in tensors:
            m1 = tucker(tensors[".hada_t1"], w[0], w[1])
            m2 = tucker(tensors[".hada_t2"], w[2], w[3])
        else:
            m1, m2 = w[0] @ w[1], w[2] @ w[3]
        return (m1 * m2).reshape(W.shape), factor(w[1].shape[0])
    if ".a1.weight" in tensors:
        a1, a2, b1, b2 = (tensors[f".{x}.weight"] for x in ("a1", "a2", "b1", "b2"))
        old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
        new = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
        if new and not (old and a2.shape[0] == W.shape[0] == W.shape[1]):
            return W @ a1 @ a2 + b1 @ b2, factor(a2.shape[0])
        assert old
        return b2 @ b1 + W @ a2 @ a1, factor(a1.shape[0])
    rank, sides = None, []
    for index in (1, 2):
        key = f".lokr_w{index}"
        if key in tensors:
            sides.append(tensors[key])
            continue
        a, b = tensors[key + "_a"], tensors[key + "_b"]
        rank = b.shape[0]
        turned = index == 2 and ".lokr_t2" in tensors
        sides.append(tucker(tensors[".lokr_t2"], a, b) if turned else a @ b)
    return torch.kron(*sides).reshape(W.shape), factor(rank)


def rotation(blocks, alpha):
    q = blocks - blocks.transpose(-1, -2)
    norm = float(q.norm()) + 1e-8
    if alpha > 0 and norm > alpha:
        q = q * (alpha / norm)
    eye = torch.eye(q.shape[-1])
    return (eye + q) @ torch.linalg.inv(eye - q)


def rotate(tensors, W, s):
    """What OFT and BOFT add before the strength that every family has; they also have it inside."""
    blocks = tensors[".oft_blocks"]
    alpha = float(tensors[".alpha"]) if ".alpha" in tensors else 0.0
    R = rotation(blocks, alpha)
    eye = torch.eye(blocks.shape[-1])
    if blocks.ndim == 3:  # ComfyUI knows no rescale here
        count, size, _ = blocks.shape
        rows = W.reshape(count, size, -1)
        return torch.stack([(s * (R[k] - eye)).T @ rows[k] for k in range(count)]).reshape(W.shape)
    stages, _, size, _ = blocks.shape
    V = W.clone()
    for stage in range(stages):
        half = 2**stage * (size // 2)
        # Row c * 2 half + g * half + k goes to place c * 2 half + 2 k + g.
        index = torch.arange(W.shape[0]).reshape(-1, 2, half).transpose(1, 2).reshape(-1)
        turned = V[index].reshape(-1, size, *V.shape[1:])
        mixed = s * R[stage] + (1 - s) * eye
        turned = torch.stack([mixed[k] @ turned[k] for k in range(turned.shape[0])])
        V = torch.empty_like(V)
        V[index] = turned.reshape(W.shape)
    if ".rescale" in tensors:
        V = V * tensors[".rescale"]
    return V - W


def decompose(scale, W, difference, factor, s):
    V = W + factor * difference
    if scale.shape[0] == W.shape[0]:
        norm = W.norm(dim=1, keepdim=True)  # of the weight before the patch
    else:
        norm = V.norm(dim=0, keepdim=True)
    V = V * (scale / (norm + torch.finfo(torch.float32).eps))
    return V if s == 1 else W + s * (V - W)


def patch(tensors, target, W, s):
    """W after one patch; W, a weight or a bias, in fp32."""
    if target.endswith(".bias"):
        name = ".diff_b" if ".diff_b" in tensors else ".b_norm"
        return W + s * tensors[name]
    if ".set_weight" in tensors:
        return tensors[".set_weight"].clone()
    for name in (".diff", ".w_norm"):
        if name in tensors:
            return W + s * tensors[name]
    if ".oft_blocks" in tensors:
        return W + s * rotate(tensors, W, s)
    difference, factor = product(tensors, W)
    if ".dora_scale" in tensors:
        return decompose(tensors[".dora_scale"], W, difference, factor, s)
    return W + s * factor * difference


def targets(tensors, target):
    if set(tensors) != {".diff_b"}:
        yield target + ".weight"
    if ".diff_b" in tensors or ".b_norm" in tensors:
        yield target + ".bias"


# Against others.


def check_lycoris(W):
    from lycoris.functional import boft as boft_module, diag_oft, loha as loha_module, lokr as lokr_module
    from lycoris.modules.glora import _glora_weight

    def same(ours, theirs, what):
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        print(f"lycoris {what}: {error:.1e}")
        assert error < 1e-5, what

    out, inn = W.shape
    for s in (1.0, 0.7, -0.5):
        x = loha("check", out, inn, 4, alpha=2.0)
        theirs = loha_module.diff_weight(
            x[".hada_w1_b"], x[".hada_w1_a"], x[".hada_w2_b"], x[".hada_w2_a"], None, None,
            gamma=2.0 / 4 * s)
        same(patch(x, "x.weight", W, s), W + theirs.reshape(W.shape), "loha")
        x = lokr("check", (8, 8), (out // 8, inn // 8), rank2=4, alpha=2.0)
        theirs = lokr_module.diff_weight(
            x[".lokr_w1"], None, None, None, x[".lokr_w2_a"], x[".lokr_w2_b"], None, gamma=2.0 * s)
        same(patch(x, "x.weight", W, s), W + theirs.reshape(W.shape), "lokr")
        x = glora("check", out, inn, 4, alpha=2.0)
        a1, a2, b1, b2 = (x[f".{i}.weight"] for i in ("a1", "a2", "b1", "b2"))
        same(patch(x, "x.weight", W, s), W + _glora_weight(W, a1, a2, b1, b2, None, 0.5 * s), "glora")
        x = boft("check", out, 3, 8, rescale=True, alpha=1.0)
        theirs = boft_module._diff_weight(W, x[".oft_blocks"], x[".rescale"], 1.0, s)
        same(rotate(x, W, s), theirs, "boft")
    x = oft("check", out, 8, alpha=1.0)
    same(patch(x, "x.weight", W, 1.0), W + diag_oft._diff_weight(W, x[".oft_blocks"], None, 1.0), "oft")


def check_peft():
    from peft import LoraConfig, get_peft_model

    for use_dora in (False, True):
        model, _ = make_text.build("clip_l", make_text.TINY["clip_l"])
        W = model.text_model.encoder.layers[1].mlp.fc2.weight.detach().clone()
        config = LoraConfig(r=4, lora_alpha=2, target_modules=["fc2"], use_dora=use_dora)
        wrapped = get_peft_model(model, config)
        layer = wrapped.base_model.model.text_model.encoder.layers[1].mlp.fc2
        x = lora("check", *W.shape, 4, alpha=2.0)
        layer.lora_A["default"].weight.data.copy_(x[".lora_down.weight"])
        layer.lora_B["default"].weight.data.copy_(x[".lora_up.weight"])
        ours = patch(x, "x.weight", W, 1.0)
        if use_dora:
            # peft's norm is that of V; ComfyUI's that of W. Told as a ratio they agree.
            magnitude = torch.full((W.shape[0],), 0.8)
            layer.lora_magnitude_vector["default"].weight.data.copy_(magnitude)
            scale = 0.8 * W.norm(dim=1, keepdim=True) / ours.norm(dim=1, keepdim=True)
            ours = patch({**x, ".dora_scale": scale}, "x.weight", W, 1.0)
        theirs = wrapped.merge_and_unload().text_model.encoder.layers[1].mlp.fc2.weight
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        print(f"peft {'dora' if use_dora else 'lora'}: {error:.1e}")
        assert error < 1e-5


# Output.


def stored(tensors, dtype):
    """As the file has them; scalars keep their type."""
    return {k: v if v.ndim == 0 else v.to(TORCH[dtype]) for k, v in tensors.items()}


def write_tensors(path, tensors, metadata=None):
    save_file(tensors, path, metadata=metadata)
    path.chmod(0o644)


def write_adapter(path, adapter):
    keys = dict(adapter.get("extra", {}))
    for key in adapter.get("unused", []):
        keys[key] = torch.ones(1)
    for naming, part, target, tensors in adapter["modules"]:
        for suffix, value in stored(tensors, adapter["dtype"]).items():
            keys[naming(part, target) + suffix] = value.contiguous()
    if path.suffix == ".pt":
        torch.save(keys, path)
    else:
        save_file(keys, path)
    path.chmod(0o644)


def describe(adapter):
    modules, families = [], set()
    for _, part, target, tensors in adapter["modules"]:
        for name in targets(tensors, target):
            modules.append([part, name])
            families.add("diff" if name.endswith(".bias") else family_of(tensors))
    return {
        "family": families.pop() if len(families) == 1 else "mixed",
        "modules": sorted(modules),
        "unused": sorted(adapter.get("unused", [])),
        "other": len(adapter.get("extra", {})),
    }


def base_weight(part, target, dtype):
    values = make_text.tensor(part, target, shape_of(part, target))
    return values.to(TORCH[dtype]).float()


def values_of(adapter, tensors):
    return {k: v.float() for k, v in stored(tensors, adapter["dtype"]).items()}


def part_strength(entry, part):
    strength = entry["strength"]
    return strength[part] if isinstance(strength, dict) else strength


def merge(adapters, stack, dtype, parts):
    """{(part, target): tensor} of all that a stack touches, rounded once."""
    weights = {}
    for entry in stack:
        adapter = adapters[entry["adapter"]]
        for _, part, target, tensors in adapter["modules"]:
            if part not in parts:
                continue
            for name in targets(tensors, target):
                key = (part, name)
                if key not in weights:
                    weights[key] = base_weight(part, name, dtype)
                weights[key] = patch(
                    values_of(adapter, tensors), name, weights[key], part_strength(entry, part)
                )
    return {key: value.to(TORCH[dtype]) for key, value in weights.items()}


def sample(value):
    return value if value.ndim == 1 else value[value.shape[0] // 3].clone()


def make_merges(adapters):
    listing, tensors = [], {}
    for name, adapter in adapters.items():
        runs = [(1.0, "F32"), (0.7, "F32"), (-0.5, "F32"), (0.0, "F32"), (0.7, "F16")]
        if name.startswith(("kohya", "peft", "diffusers", "refiner", "onetrainer")):
            runs = [(1.0, "F32"), (0.7, "F16")]
        for strength, dtype in runs:
            stack = [{"adapter": name, "strength": strength}]
            merged = merge(adapters, stack, dtype, ("clip_l", "clip_g"))
            for (part, target), value in sorted(merged.items()):
                tensors[str(len(listing))] = sample(value)
                listing.append(dict(
                    adapter=name, strength=strength, dtype=dtype, part=part, target=target))
    write_tensors(OUT / "merges.safetensors", tensors)
    make_text.write_lines(OUT / "merges.json", listing)


def make_stacks(adapters):
    """Stacks to encode with: each adapter alone, then combinations."""
    def entry(name, strength):
        return {"adapter": name, "strength": strength}

    out = [("none_sdxl", "sdxl", []), ("none_sd1", "sd1", [])]
    for name in adapters:
        short = name.replace(".safetensors", "").replace(".", "_")
        if name == "refiner.safetensors":
            out.append((short, "refiner", [entry(name, 0.7)]))
            continue
        kind = "sd1" if name.startswith("kohya_sd1") else "sdxl"
        out.append((short, kind, [entry(name, 1.0)]))
        out.append((short + "_minus", kind, [entry(name, -0.5)]))
    a, b = "kohya_sdxl.safetensors", "peft.safetensors"
    all_safe = [n for n in adapters if n not in (
        "refiner.safetensors", "kohya_sd1.pt", "kohya_sd1.safetensors", "generic.safetensors")]
    low = [a, b, "diffusers.safetensors", "peft_default.safetensors"]
    dora_name = "dora.safetensors"
    out += [
        ("two", "sdxl", [entry(a, 0.7), entry(b, -0.5)]),
        ("twice", "sdxl", [entry(a, 0.7), entry(a, 0.7)]),
        ("eight_low_rank", "sdxl", [entry(low[i % 4], 0.1 * (i + 1)) for i in range(8)]),
        ("eight", "sdxl", [entry(n, 0.4) for n in all_safe[-8:]]),
        ("lora_dora", "sdxl", [entry(b, 1.0), entry(dora_name, 0.7)]),
        ("dora_lora", "sdxl", [entry(dora_name, 0.7), entry(b, 1.0)]),
        ("zero", "sdxl", [entry(a, 0.0)]),
        ("by_part", "sdxl", [{"adapter": a, "strength": {"clip_l": 1.0, "clip_g": 0.0}},
                             {"adapter": b, "strength": {"clip_l": 0.0, "clip_g": -0.5}}]),
        ("sdxl_on_sd1", "sd1", [entry(a, 1.0)]),
        # What sees the weight as the entry before left it, be that the same adapter.
        ("dora_twice", "sdxl", [entry(dora_name, 0.7), entry(dora_name, 0.5)]),
        ("oft_twice", "sdxl", [entry("oft.safetensors", 0.7), entry("oft.safetensors", -0.5)]),
        ("set_between", "sdxl", [entry(a, 0.7), entry("set.safetensors", 0.5), entry("diff.safetensors", 0.5)]),
        ("by_part_merged", "sdxl", [
            {"adapter": "loha.safetensors", "strength": {"clip_l": 1.0, "clip_g": 0.0}},
            {"adapter": dora_name, "strength": {"clip_l": 0.0, "clip_g": 0.7}}]),
        ("zero_beside", "sdxl", [entry("loha.safetensors", 0.0), entry(a, 0.7), entry(dora_name, 0.0)]),
    ]
    return out


def make_cases(adapters):
    tokenizer = make_text.make_tokenizer()
    tensors, listing = {}, []
    runs = [(name, kind, "F32", stack) for name, kind, stack in make_stacks(adapters)]
    runs += [(name + "_f16", kind, "F16", stack) for name, kind, _, stack in runs
             if name in ("none_sdxl", "kohya_sdxl", "two", "eight")]
    for name, kind, dtype, stack in runs:
        parts = make_text.KINDS[kind]["parts"]
        merged = merge(adapters, stack, dtype, parts)
        encoders = {}
        for part in parts:
            model, projection = make_text.build(part, make_text.TINY[part])
            state = {n: v.to(TORCH[dtype]).float() for n, v in model.state_dict().items()}
            state.update({n: v.float() for (p, n), v in merged.items() if p == part and n in state})
            model.load_state_dict(state)
            if projection is not None:
                projection = projection.to(TORCH[dtype]).float()
                projection = merged.get((part, "text_projection.weight"), projection).float()
            encoders[part] = (model, projection)
        with torch.no_grad():
            cond, pooled, _ = make_text.encode_text(
                tokenizer, encoders, make_text.TINY, make_text.KINDS[kind], dict(prompt=PROMPT),
                "prompt", {})
        tensors[name + ".cond"] = cond[:, ::STRIDE].contiguous()
        tensors[name + ".pooled"] = pooled.contiguous()
        listing.append(dict(name=name, kind=kind, dtype=dtype, prompt=PROMPT, stack=stack))
    write_tensors(OUT / "cases.safetensors", tensors, {"stride": str(STRIDE)})
    make_text.write_lines(OUT / "cases.json", listing)
    check_effects(tensors, listing)


def check_effects(tensors, listing):
    """Every stack must show in the output, and order where it matters."""
    def distance(a, b):
        return float((tensors[a + ".cond"] - tensors[b + ".cond"]).abs().max()
                     / tensors[b + ".cond"].abs().max())

    for case in listing:
        base = "none_" + case["kind"] + ("_f16" if case["dtype"] == "F16" else "")
        if base + ".cond" in tensors and case["stack"]:
            print(f"{case['name']}: {distance(case['name'], base):.1e}")
            assert (distance(case["name"], base) > 1e-3) == (case["name"] != "zero")
    assert distance("lora_dora", "dora_lora") > 2e-3


def main():
    torch.manual_seed(0)
    check_lycoris(base_weight("clip_l", LAYER + "1.mlp.fc2.weight", "F32"))
    check_peft()
    (OUT / "adapters").mkdir(parents=True, exist_ok=True)
    adapters = make_adapters()
    for name, adapter in adapters.items():
        write_adapter(OUT / "adapters" / name, adapter)
    descriptions = {name: describe(adapter) for name, adapter in adapters.items()}
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in descriptions.items())
    (OUT / "adapters.json").write_text("{\n" + lines + "\n}\n")
    make_merges(adapters)
    make_cases(adapters)


if __name__ == "__main__":
    main()
