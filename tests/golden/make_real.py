"""Makes tests/golden/real/: what the networks must compute at their real sizes.

    make_real.py            cases.safetensors and vae.json (90 KB; 4 minutes, 9 GB)

The VAE has SDXL's channels (83.65 M weights), the encoders are CLIP-L and bigG. Only inputs and
pictures are small. Weights are not committed: both sides compute them from a tensor's name, as
make_text.py tells, and round them to float16. The text encoders are make_text's, outliers included.
For the VAE vae.json lists in `tensors`
    [name, dims, exponent, offset]      element = splitmix(name, i) * 2^exponent + offset
and in `outliers` [name, row, exponent]: what other exponent one row of a tensor has in the model
whose activations reach 2e5.

cases.safetensors holds for each output, computed in float64 and flattened:
    NAME.values    f32: every stride-th
    NAME.facts     f32: stride, largest absolute value, standard deviation, and how far torch's
                   float32 is from float64 (largest difference; of all but pictures relative to the
                   deviation)
"""
import json
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file

import make_text
import make_vae

OUT = pathlib.Path(__file__).resolve().parent / "real"
CHANNELS = (128, 256, 512, 512)
LATENT = (1, 4, 16, 24)
IMAGE = (1, 128, 192, 3)
OUTLIERS = [
    ("decoder.up_blocks.0.resnets.0.conv2.weight", 3, 11),
    ("decoder.up_blocks.0.resnets.0.conv2.bias", 3, 15),
    ("encoder.down_blocks.0.resnets.0.conv2.weight", 3, 12),
    ("encoder.down_blocks.0.resnets.0.conv2.bias", 3, 15),
]
TEXTS = [
    dict(name="sdxl", kind="sdxl", prompt="a photo of a (red:1.3) fox", negative="blurry, (ugly)"),
    dict(name="sd1", kind="sd1", prompt="a (cat:1.2) on a mat", negative="a ((dog))"),
]


def rule(name, shape):
    """Exponent and offset: a gain just below one for matrices, an eighth for vectors."""
    if len(shape) == 1:
        return -3, int("norm" in name and name.endswith("weight"))
    fan_in, exponent = int(np.prod(shape[1:])), 0
    while 4.0**exponent * fan_in > 4:
        exponent -= 1
    return exponent, 0


def noise(name, shape, scale, offset):
    values = make_text.splitmix(name, int(np.prod(shape))) * np.float32(scale) + np.float32(offset)
    return torch.from_numpy(values).reshape(shape)


def rounded(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model


class Cases:
    def __init__(self):
        self.tensors = {}

    def add(self, name, single, exact, stride, relative):
        single, exact = single.double().flatten(), exact.flatten()
        deviation = exact.std().item()
        distance = (single - exact).abs().max().item() / (deviation if relative else 1)
        largest = exact.abs().max().item()
        print(f"{name}: {exact.numel()} values, std {deviation:.3f}, largest {largest:.3f}, "
              f"torch {distance:.2e}")
        assert deviation >= 0.1, "a reference that shows nothing"
        self.tensors[name + ".values"] = exact[::stride].float().clone()
        self.tensors[name + ".facts"] = torch.tensor([stride, largest, deviation, distance])


def make_vae_cases(cases):
    model = make_vae.create(CHANNELS, 2, 4, 32)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    rules = [(name, shape, *rule(name, shape)) for name, shape in shapes.items()]
    model.load_state_dict({name: noise(name, shape, 2.0**exponent, offset)
                           for name, shape, exponent, offset in rules})
    listing = json.dumps({"tensors": rules, "outliers": OUTLIERS}, separators=(",", ":"))
    (OUT / "vae.json").write_text(listing.replace("],[", "],\n[") + "\n")
    latent, image = noise("latent", LATENT, 2, 0), noise("image", IMAGE, 0.5, 0.5)
    rounded(model)
    add_vae_case(cases, "plain", model, latent, image)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, row, exponent in OUTLIERS:
        state[name][row] = noise(name, state[name].shape, 2.0**exponent, 0)[row]
    model.load_state_dict(state)
    add_vae_case(cases, "outliers", rounded(model), latent, image)


def add_vae_case(cases, kind, model, latent, image):
    seen = []
    for block in (model.decoder.up_blocks[0].resnets[0], model.encoder.down_blocks[0].resnets[0]):
        block.conv2.register_forward_hook(
            lambda module, given, out: seen.append(out.abs().max().item()))
    outputs = {}
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        options = (1, make_vae.NEVER, 512, 64, 3, 1, 1)
        raw = make_vae.run(model, latent, True, options, dtype)
        options = (0, make_vae.NEVER, 512, 64, 3, 0, 1)
        mean = make_vae.run(model, image, False, options, dtype)
        outputs[dtype] = [raw, ((raw + 1) / 2).clamp(0, 1), mean]
    model.float()
    pairs = list(zip(outputs[torch.float32], outputs[torch.float64]))
    assert ((pairs[0][1].abs() >= 1).double().mean() <= 0.03).item(), "mostly clamped"
    cases.add(f"vae.{kind}.raw", *pairs[0], 31, False)
    cases.add(f"vae.{kind}.image", *pairs[1], 31, False)
    cases.add(f"vae.{kind}.latent", *pairs[2], 1, True)
    print(f"activations of {kind} reach {max(seen):.3g}")


def exact_softmax(original):
    # transformers takes its softmax in float32 whatever the type; the exact run must not.
    return lambda x, dim, dtype=None: original(x, dim=dim)


def make_text_cases(cases):
    tokenizer = make_text.make_tokenizer()
    encoders = {}
    for part, sizes in make_text.REAL.items():
        model, projection = make_text.build(part, sizes)
        encoders[part] = rounded(model), None if projection is None else projection.half().float()
    single = encode_texts(tokenizer, encoders)
    softmax = torch.nn.functional.softmax
    torch.nn.functional.softmax = exact_softmax(softmax)
    for part, (model, projection) in encoders.items():
        encoders[part] = model.double(), None if projection is None else projection.double()
    exact = encode_texts(tokenizer, encoders)
    torch.nn.functional.softmax = softmax
    for name, value in exact.items():
        assert value.dtype == torch.float64
        cases.add(name, single[name], value, 97 if name.endswith("cond") else 7, True)


def encode_texts(tokenizer, encoders):
    out = {}
    for case in TEXTS:
        for which in ("prompt", "negative"):
            with torch.no_grad():
                cond, pooled, _ = make_text.encode_text(
                    tokenizer, encoders, make_text.REAL, make_text.KINDS[case["kind"]], case,
                    which, {})
            out[f"{case['name']}.{which}.cond"] = cond
            out[f"{case['name']}.{which}.pooled"] = pooled
    return out


def main():
    torch.set_num_threads(2)
    OUT.mkdir(exist_ok=True)
    cases = Cases()
    make_vae_cases(cases)
    make_text_cases(cases)
    save_file(cases.tensors, OUT / "cases.safetensors")


if __name__ == "__main__":
    main()
