"""PyTorch beside us: the same weights and inputs, by plain torch alone, in the ways that people run it.

    torch_side.py SCRATCH OUT.json SIDE SECONDS       on a card, as gpu.py calls it
    torch_side.py --bars MODELS CASES OUT.json        on the CPU: how far bf16 is from float64 at 128 x 192

The first writes after every measurement, so that what was measured stays when time runs out: {"version", "ms": {"decode
eager bf16": median...}, "errors": {"image": ..., "latent": ...}, "copy_gb_s", "gemm_tflop_s"}. Networks are functions
of a dictionary of tensors under diffusers' and transformers' names: neither package has to be there.
"""

import json
import pathlib
import sys
import time
import traceback

import torch
import torch.nn.functional as F

GROUPS, EPSILON = 32, 1e-6
DEVICE = "cuda"
TYPES = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}


def read(path, device, dtype):
    """{name: tensor} of a safetensors file."""
    data = bytearray(pathlib.Path(path).read_bytes())
    length = int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            kind = TYPES[entry["dtype"]]
            values = torch.frombuffer(data, dtype=kind, count=(end - begin) // kind.itemsize, offset=begin)
            found[name] = values.reshape(entry["shape"]).to(device, dtype)
    return found


def read_floats(path, shape, device):
    return torch.frombuffer(bytearray(pathlib.Path(path).read_bytes()), dtype=torch.float32).reshape(shape).to(device)


# ---- the VAE


def conv(w, name, x, **options):
    return F.conv2d(x, w[name + ".weight"], w[name + ".bias"], **options)


def norm(w, name, x):
    return F.group_norm(x, GROUPS, w[name + ".weight"], w[name + ".bias"], EPSILON)


def residual(w, name, x):
    y = conv(w, name + ".conv1", F.silu(norm(w, name + ".norm1", x)), padding=1)
    y = conv(w, name + ".conv2", F.silu(norm(w, name + ".norm2", y)), padding=1)
    return y + (conv(w, name + ".conv_shortcut", x) if name + ".conv_shortcut.weight" in w else x)


def pixel_attention(w, name, x):
    n, c, h, width = x.shape
    y = norm(w, name + ".group_norm", x).flatten(2).transpose(1, 2)
    q, k, v = (F.linear(y, w[f"{name}.to_{part}.weight"], w[f"{name}.to_{part}.bias"])[:, None] for part in "qkv")
    y = F.scaled_dot_product_attention(q, k, v)[:, 0]
    y = F.linear(y, w[name + ".to_out.0.weight"], w[name + ".to_out.0.bias"])
    return x + y.transpose(1, 2).reshape(n, c, h, width)


def middle(w, name, x):
    x = residual(w, name + ".mid_block.resnets.0", x)
    x = pixel_attention(w, name + ".mid_block.attentions.0", x)
    return residual(w, name + ".mid_block.resnets.1", x)


def decode(w, latent):
    """Latent [1,c,h,w] to y [1,3,8h,8w], before the clamp."""
    x = conv(w, "decoder.conv_in", conv(w, "post_quant_conv", latent), padding=1)
    x = middle(w, "decoder", x)
    for level in range(4):
        for block in range(3):
            x = residual(w, f"decoder.up_blocks.{level}.resnets.{block}", x)
        if level < 3:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = conv(w, f"decoder.up_blocks.{level}.upsamplers.0.conv", x, padding=1)
    return conv(w, "decoder.conv_out", F.silu(norm(w, "decoder.conv_norm_out", x)), padding=1)


def encode(w, image):
    """Image [1,3,H,W] of -1..1 to the latent's mean."""
    x = conv(w, "encoder.conv_in", image, padding=1)
    for level in range(4):
        for block in range(2):
            x = residual(w, f"encoder.down_blocks.{level}.resnets.{block}", x)
        if level < 3:
            x = conv(w, f"encoder.down_blocks.{level}.downsamplers.0.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
    x = middle(w, "encoder", x)
    x = conv(w, "encoder.conv_out", F.silu(norm(w, "encoder.conv_norm_out", x)), padding=1)
    return conv(w, "quant_conv", x)[:, : x.shape[1] // 2]


def pixels(y):
    return ((y.float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)


# ---- the encoders


def clip(w, ids, heads, layers, quick, pooled):
    """Hidden states behind `layers` layers; with `pooled` one more layer, norm and projection of the last token too."""
    prefix = "text_model.encoder.layers."
    x = w["text_model.embeddings.token_embedding.weight"][ids] + w["text_model.embeddings.position_embedding.weight"]
    n, t, width = x.shape
    hidden = None
    for i in range(layers + bool(pooled)):
        if i == layers:
            hidden = x
        name = f"{prefix}{i}"
        y = F.layer_norm(x, (width,), w[name + ".layer_norm1.weight"], w[name + ".layer_norm1.bias"])
        q, k, v = (F.linear(y, w[f"{name}.self_attn.{p}_proj.weight"], w[f"{name}.self_attn.{p}_proj.bias"])
                   .view(n, t, heads, width // heads).transpose(1, 2) for p in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, width)
        x = x + F.linear(y, w[name + ".self_attn.out_proj.weight"], w[name + ".self_attn.out_proj.bias"])
        y = F.layer_norm(x, (width,), w[name + ".layer_norm2.weight"], w[name + ".layer_norm2.bias"])
        y = F.linear(y, w[name + ".mlp.fc1.weight"], w[name + ".mlp.fc1.bias"])
        y = y * torch.sigmoid(1.702 * y) if quick else F.gelu(y)
        x = x + F.linear(y, w[name + ".mlp.fc2.weight"], w[name + ".mlp.fc2.bias"])
    if not pooled:
        return x, None
    x = F.layer_norm(x, (width,), w["text_model.final_layer_norm.weight"], w["text_model.final_layer_norm.bias"])
    return hidden, F.linear(x[torch.arange(n, device=x.device), ids.argmax(1)], w["text_projection.weight"])


def both(narrow, wide, ids):
    a, _ = clip(narrow, ids, 12, 11, True, False)
    b, pooled = clip(wide, ids, 20, 31, False, True)
    return torch.cat([a, b], 2), pooled


# ---- measuring


def distance(found, wanted):
    apart = (found.double().cpu() - wanted.double().cpu()).abs()
    return {"worst": apart.max().item(), "rms": apart.square().mean().sqrt().item()}


class Side:
    def __init__(self, scratch, out, side, seconds):
        self.scratch, self.out, self.side = pathlib.Path(scratch), pathlib.Path(out), side
        self.end = time.monotonic() + seconds
        self.found = {"version": torch.__version__, "ms": {}, "errors": {}, "problems": []}
        self.latent = read_floats(self.scratch / "latent.f32", (1, 4, side // 8, side // 8), DEVICE)
        self.image = read_floats(self.scratch / "image.f32", (1, side, side, 3), DEVICE).permute(0, 3, 1, 2) * 2 - 1

    def keep(self):
        self.out.write_text(json.dumps(self.found))

    def time(self, name, work, runs=20):
        """The median of events around single runs."""
        if time.monotonic() > self.end:
            return
        times = []
        for i in range(runs + 3):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            if i >= 3:
                times.append(begin.elapsed_time(end))
        self.found["ms"][name] = sorted(times)[len(times) // 2]
        self.keep()

    def attempt(self, work, *given):
        """What cannot be measured here costs only itself."""
        try:
            return work(*given)
        except Exception as error:
            traceback.print_exc()
            self.found["problems"].append(f"{work.__name__}: {error}"[:300])
            self.keep()

    def roofline(self):
        a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        self.time("gemm", lambda: a @ b)
        self.found["gemm_tflop_s"] = 2 * 8192**3 / self.found["ms"].pop("gemm") / 1e9
        a = torch.empty(1 << 30, device=DEVICE, dtype=torch.uint8).random_()
        b = torch.empty_like(a)
        self.time("copy", lambda: b.copy_(a))
        self.found["copy_gb_s"] = 2 * (1 << 30) / self.found["ms"].pop("copy") / 1e6
        self.keep()

    def vae(self):
        vae = self.scratch / "models" / "vae.safetensors"
        exact = read(vae, DEVICE, torch.float32)
        wanted_image, wanted_latent = pixels(decode(exact, self.latent)), encode(exact, self.image)
        del exact
        w = read(vae, DEVICE, torch.bfloat16)
        latent, image = self.latent.bfloat16(), self.image.bfloat16()
        self.found["errors"] = {"image": distance(pixels(decode(w, latent)), wanted_image),
                                "latent": distance(encode(w, image), wanted_latent)}
        ours = self.scratch / "image.cpu"
        if ours.exists():
            shape = wanted_image.shape
            self.found["torch_fp32_beside_luna_cpu"] = distance(read_floats(ours, shape, "cpu"), wanted_image)
        del wanted_image, wanted_latent
        torch.cuda.empty_cache()
        torch.backends.cudnn.benchmark = True
        self.time("decode eager bf16", lambda: decode(w, latent), 10)
        self.time("encode eager bf16", lambda: encode(w, image), 10)
        last = {name: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for name, t in w.items()}
        latent_last, image_last = (t.to(memory_format=torch.channels_last) for t in (latent, image))
        self.time("decode channels_last bf16", lambda: decode(last, latent_last), 10)
        self.time("encode channels_last bf16", lambda: encode(last, image_last), 10)
        return w, last

    def text(self, mode, dtype):
        narrow, wide = (read(self.scratch / "models" / f"clip_{part}.safetensors", DEVICE, dtype) for part in "lg")
        ids = torch.randint(0, 49000, (2, 77), generator=torch.Generator().manual_seed(1)).to(DEVICE)
        ids[:, 20:] = 49407
        kind = str(dtype).split(".")[1]
        self.time(f"text {mode} eager {kind}", lambda: both(narrow, wide, ids))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            both(narrow, wide, ids)
        self.time(f"text {mode} graph {kind}", graph.replay)

    def compiled(self, w, last):
        """Last, because compiling takes long."""
        for name, function, weights, given in (("decode", decode, w, self.latent), ("encode", encode, w, self.image),
                                               ("decode", decode, last, self.latent)):
            if self.end - time.monotonic() < 40:
                return
            work = torch.compile(function)
            given = given.bfloat16()
            kind = "compiled channels_last bf16" if weights is last else "compiled bf16"
            self.time(f"{name} {kind}", lambda: work(weights, given), 10)


def measure(scratch, out, side, seconds):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    self = Side(scratch, out, int(side), float(seconds))
    with torch.no_grad():
        self.attempt(self.roofline)
        weights = self.attempt(self.vae)
        self.attempt(self.text, "faithful", torch.float32)
        self.attempt(self.text, "fast", torch.float16)
        if weights:
            self.attempt(self.compiled, *weights)
    self.keep()


# ---- bars where there is no PyTorch


def rounded_once(function):
    """As tensor cores do: sums in fp32, one rounding at the end. A CPU's own bf16 is slow and may round otherwise."""
    return lambda x, weight, bias=None, **options: function(
        x.float(), weight.float(), None if bias is None else bias.float(), **options).to(x.dtype)


def bars(models, cases, out):
    """Errors of bf16 at the places that the committed references kept, relative as gpu.py takes them."""
    F.conv2d, F.linear = rounded_once(F.conv2d), rounded_once(F.linear)
    wanted = read(cases, "cpu", torch.float32)
    golden = {"bf16": {}}
    latent = read_floats(pathlib.Path(models) / "golden_latent.f32", (1, 4, 16, 24), "cpu").bfloat16()
    image = read_floats(pathlib.Path(models) / "golden_image.f32", (1, 128, 192, 3), "cpu").permute(0, 3, 1, 2) * 2 - 1
    for kind, file in (("plain", "vae"), ("outliers", "outliers")):
        w = read(pathlib.Path(models) / f"{file}.safetensors", "cpu", torch.bfloat16)
        with torch.no_grad():
            raw = decode(w, latent).permute(0, 2, 3, 1).float()
            mean = encode(w, image.bfloat16()).float()
        for what, value in (("raw", raw), ("image", ((raw + 1) / 2).clamp(0, 1)), ("latent", mean)):
            name = f"vae.{kind}.{what}"
            stride, _, deviation, _ = wanted[name + ".facts"].tolist()
            apart = distance(value.flatten()[:: int(stride)], wanted[name + ".values"])
            unit = deviation if what == "latent" else 1
            golden["bf16"][name] = {key: float(f"{number / unit:.3g}") for key, number in apart.items()}
            print(name, golden["bf16"][name])
    golden["torch"] = torch.__version__
    pathlib.Path(out).write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    bars(*sys.argv[2:]) if sys.argv[1] == "--bars" else measure(*sys.argv[1:])
