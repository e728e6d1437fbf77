"""Makes the references that the VAE is compared with: diffusers' AutoencoderKL on random weights.

    make_vae.py                 writes tests/golden/vae/*.safetensors (small, committed)
    make_vae.py --real FOLDER   writes an autoencoder of SDXL's size and its references (not committed);
                                LUNA_REAL_DIR=FOLDER makes the unit test and bench_vae use it

A file NAME.safetensors holds weights under diffusers' names, NAME.cases.safetensors the tensor `config`
and for each case CASE:

    CASE.input     [n,h,w,c] pixels (u8 or f32) or [n,c,h,w] latents
    CASE.output    what must come out, every step-th row and column, computed in float64
    CASE.options   i32: decode, tiling (0 auto, 1 never, 2 always), tile, overlap, passes, raw, step
    CASE.distance  f32: how far torch's float32 is from float64 (largest difference; of latents relative
                   to the largest value), or -1 where that was not computed

Tiling and cropping are written here from the description of ComfyUI's algorithm, not taken from it.
"""
import argparse
import os

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
NEVER, ALWAYS = 1, 2


def create(channels, layers, latent, groups, quant=True, attention=True):
    """An autoencoder with random weights that keep every activation near unit size."""
    levels = len(channels)
    model = AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels, block_out_channels=list(channels),
        layers_per_block=layers, latent_channels=latent, norm_num_groups=groups, sample_size=256,
        use_quant_conv=quant, use_post_quant_conv=quant, mid_block_add_attention=attention)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1:
                is_gamma = "norm" in name and name.endswith("weight")
                value.copy_(0.1 * torch.randn_like(value) + (1 if is_gamma else 0))
            else:
                fan_in = value[0].numel()
                value.copy_(torch.randn_like(value) / fan_in ** 0.5)
    return model.eval()


def inject_outliers(model, image, latent):
    """Scales one output channel in each half until activations reach 3e5."""
    with torch.no_grad():
        for run, start, block in ((lambda x: model.encode(x), image, model.encoder.down_blocks[0].resnets[0]),
                                  (lambda x: model.decode(x), latent, model.decoder.up_blocks[0].resnets[0])):
            seen = []
            hook = block.conv2.register_forward_hook(lambda m, i, o: seen.append(o[:, 3].abs().max().item()))
            run(start)
            hook.remove()
            scale = 3e5 / seen[0]
            block.conv2.weight[3] *= scale
            block.conv2.bias[3] *= scale


def calibrate(model, image, latent):
    """Scales the two last convolutions: images of mean 0 and deviation 0.35 in -1..1, latents of deviation 1."""
    with torch.no_grad():
        y = model.decode(latent).sample
        model.decoder.conv_out.weight *= 0.35 / y.std()
        model.decoder.conv_out.bias.copy_((model.decoder.conv_out.bias - y.mean()) * 0.35 / y.std())
        z = model.encode(image).latent_dist.mean
        model.encoder.conv_out.weight *= 1.0 / z.std()
        model.encoder.conv_out.bias *= 1.0 / z.std()


def picture(n, h, w, seed):
    """Smooth coloured noise, u8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, max(2, h // 8), max(2, w // 8), generator=generator)
    fine = torch.rand(n, 3, h, w, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (h, w), mode="bilinear", align_corners=False)
    return ((0.8 * smooth + 0.2 * fine) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def tiled_scale(network, x, tile_y, tile_x, overlap, scale):
    """One pass of one image x [1,c,h,w]; scale is the factor of the output's sides."""
    h, w = x.shape[2:]
    if h <= tile_y and w <= tile_x:
        return network(x)
    feather = round(overlap * scale)
    out = weight = None
    starts = [range(0, side - overlap, tile - overlap) if side > tile else [0]
              for side, tile in ((h, tile_y), (w, tile_x))]
    for top in starts[0]:
        for left in starts[1]:
            y0, x0 = max(0, min(h - overlap, top)), max(0, min(w - overlap, left))
            part = network(x[:, :, y0:y0 + min(tile_y, h - y0), x0:x0 + min(tile_x, w - x0)])
            if out is None:
                out = part.new_zeros(1, part.shape[1], round(h * scale), round(w * scale))
                weight = torch.zeros_like(out)
            mask = torch.ones_like(part)
            for axis in (2, 3):
                length = part.shape[axis]
                if feather >= length:
                    continue
                for t in range(feather):
                    for line in (t, length - 1 - t):
                        mask.narrow(axis, line, 1).mul_((t + 1) / feather)
            oy, ox = round(y0 * scale), round(x0 * scale)
            out[:, :, oy:oy + part.shape[2], ox:ox + part.shape[3]] += part * mask
            weight[:, :, oy:oy + part.shape[2], ox:ox + part.shape[3]] += mask
    return out / weight


def tiled(network, x, decode, tile, overlap, passes, factor):
    if decode and tile < 4 * overlap:
        overlap = tile // 4
    tile, overlap = tile // factor * factor, overlap // factor * factor
    if decode:
        tile, overlap = tile // factor, overlap // factor
    scale = factor if decode else 1 / factor
    tall, wide, square = (tile // 2, tile * 2), (tile * 2, tile // 2), (tile, tile)
    order = [square] if passes == 1 else [tall, wide, square] if decode else [square, wide, tall]
    results = []
    for image in x.split(1):
        total = None
        for tile_x, tile_y in order:
            one = tiled_scale(network, image, tile_y, tile_x, overlap, scale)
            total = one if total is None else total + one
        results.append(total / len(order) if len(order) > 1 else total)
    return torch.cat(results)


def run(model, x, decode, options, dtype):
    """The whole way of one request in one precision, as numbers of that precision."""
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    _, tiling, tile, overlap, passes, raw, _ = options
    with torch.no_grad():
        if decode:
            x, network = x.to(dtype), lambda part: model.decode(part).sample
        else:
            top, left = x.shape[1] % factor // 2, x.shape[2] % factor // 2
            h, w = x.shape[1] // factor * factor, x.shape[2] // factor * factor
            x = x[:, top:top + h, left:left + w, :3].permute(0, 3, 1, 2)
            x = x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)
            x, network = x * 2 - 1, lambda part: model.encode(part).latent_dist.mean
        if tiling == ALWAYS:
            y = tiled(network, x, decode, tile, overlap, passes, factor)
        else:
            y = torch.cat([network(image) for image in x.split(1)])
        if decode:
            y = y.permute(0, 2, 3, 1)
            return y if raw else ((y + 1) / 2).clamp(0, 1)
        return y


class Cases:
    """References of one model, as they go to a file."""

    def __init__(self, model, exact=True):
        self.model, self.exact = model, exact
        config = model.config
        state = model.state_dict()
        channels = list(config.block_out_channels)
        self.tensors = {"config": torch.tensor(
            [len(channels)] + channels + [0] * (8 - len(channels)) +
            [config.layers_per_block, config.latent_channels, config.norm_num_groups,
             int("quant_conv.weight" in state), int("post_quant_conv.weight" in state),
             int(config.mid_block_add_attention)], dtype=torch.int32)}

    def add(self, name, x, tiling=NEVER, tile=512, overlap=64, passes=3, raw=False, step=1, exact=None):
        decode = name.startswith("decode")
        options = (int(decode), tiling, tile, overlap, passes, int(raw), step)
        single = run(self.model, x, decode, options, torch.float32).double()
        distance = -1.0
        y = single
        if self.exact if exact is None else exact:
            y = run(self.model.double(), x, decode, options, torch.float64)
            self.model.float()
            distance = (single - y).abs().max().item()
            if not decode:
                distance /= y.abs().max().item()
        clamped = ((y <= 0) | (y >= 1)).double().mean().item() if decode and not raw else 0.0
        print(f"  {name}: {list(y.shape)} std {y.std():.3f} clamped {100 * clamped:.2f} % torch {distance:.2e}")
        assert y.std() >= 0.1 and clamped <= 0.03, "a reference that shows nothing"
        y = y[:, ::step, ::step] if decode else y[:, :, ::step, ::step]
        self.tensors[name + ".input"] = x.clone().contiguous()
        self.tensors[name + ".output"] = y.float().clone().contiguous()
        self.tensors[name + ".options"] = torch.tensor(options, dtype=torch.int32)
        self.tensors[name + ".distance"] = torch.tensor([distance])


def round_weights(model, dtype):
    model.load_state_dict({name: value.to(dtype).float() for name, value in model.state_dict().items()})


def build(channels, layers, latent, groups, dtype, seed, size, outliers=False, **parts):
    torch.manual_seed(seed)
    model = create(channels, layers, latent, groups, **parts)
    factor = 2 ** (len(channels) - 1)
    image = picture(1, size, size, seed).permute(0, 3, 1, 2).float() / 127.5 - 1
    z = torch.randn(1, latent, size // factor, size // factor)
    if outliers:
        inject_outliers(model, image, z)
    calibrate(model, image, z)
    round_weights(model, dtype)
    return model


def save(folder, name, model, cases, dtype):
    save_file({key: value.to(dtype).contiguous() for key, value in model.state_dict().items()},
              os.path.join(folder, name + ".safetensors"))
    save_file(cases.tensors, os.path.join(folder, name + ".cases.safetensors"))


def small(folder):
    print("two: factor 2, a level that widens, float16")
    model = build((8, 16), 1, 4, 4, torch.float16, 1, 64)
    cases = Cases(model)
    z = torch.randn(2, 4, 9, 14)
    cases.add("decode", z)
    cases.add("decode_raw", z[:1], raw=True)
    cases.add("encode_cropped_u8", picture(2, 23, 30, 2))
    cases.add("encode_alpha", torch.rand(1, 16, 18, 4))
    z = torch.randn(1, 4, 21, 33)
    cases.add("decode_three_passes", z, ALWAYS, 24, 6, 3, step=2)
    cases.add("decode_one_pass", z, ALWAYS, 24, 6, 1, step=2)
    cases.add("decode_wide_overlap", z, ALWAYS, 24, 22, 3, raw=True, step=2)
    cases.add("decode_no_overlap", z, ALWAYS, 24, 0, 1, step=2)
    cases.add("encode_three_passes", picture(1, 43, 67, 3), ALWAYS, 24, 6, 3)
    cases.add("encode_one_pass", picture(1, 43, 67, 3), ALWAYS, 24, 10, 1)
    cases.add("encode_batch_of_tiled", picture(2, 26, 24, 4), ALWAYS, 24, 6, 3)
    save(folder, "two", model, cases, torch.float16)

    print("four: factor 8, two blocks a level, no quant convs, bfloat16")
    model = build((8, 8, 16, 16), 2, 4, 4, torch.bfloat16, 5, 128, quant=False)
    cases = Cases(model)
    cases.add("decode", torch.randn(1, 4, 5, 7))
    cases.add("encode", picture(1, 41, 63, 6))
    cases.add("decode_smallest", torch.randn(3, 4, 1, 1), raw=True)
    cases.add("encode_smallest", picture(3, 8, 8, 13))
    z = torch.randn(1, 4, 9, 8)
    z[0, :, 4, 5] = 40
    cases.add("decode_hot_pixel", z, raw=True, step=2)
    cases.add("decode_three_passes", torch.randn(1, 4, 13, 19), ALWAYS, 64, 16, 3, step=4)
    cases.add("encode_three_passes", picture(1, 104, 140, 7), ALWAYS, 64, 16, 3)
    save(folder, "four", model, cases, torch.bfloat16)

    print("sixteen: 16 latents, one level, a group for each channel, no quant convs, no attention, float32")
    model = build((16,), 1, 16, 16, torch.float32, 8, 32, quant=False, attention=False)
    cases = Cases(model)
    cases.add("decode", torch.randn(1, 16, 12, 10))
    cases.add("encode", picture(1, 11, 12, 9))
    save(folder, "sixteen", model, cases, torch.float32)

    print("outliers: activations of 3e5, bfloat16")
    model = build((8, 16), 1, 4, 4, torch.bfloat16, 10, 64, outliers=True)
    cases = Cases(model)
    cases.add("decode", torch.randn(1, 4, 12, 16))
    cases.add("decode_raw", torch.randn(1, 4, 12, 16), raw=True)
    cases.add("encode", picture(1, 28, 36, 11))
    save(folder, "outliers", model, cases, torch.bfloat16)

    print("demo: the model and the picture that ship")
    from PIL import Image
    weights = load_file(os.path.join(ROOT, "conf", "demo", "vae.safetensors"))
    model = create((64, 64, 64, 64), 2, 16, 32)
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    pixels = np.asarray(Image.open(os.path.join(ROOT, "conf", "demo", "picture.png")).convert("RGB"))
    pixels = torch.from_numpy(pixels[64:160, 120:248].copy())[None]
    cases = Cases(model)
    cases.add("encode", pixels)
    z = cases.tensors["encode.output"]
    cases.add("decode", z, step=2)
    save_file(cases.tensors, os.path.join(folder, "demo.cases.safetensors"))


def real(folder):
    os.makedirs(folder, exist_ok=True)
    for name, dtype, sizes in (("real_f16", torch.float16, (256, 512)), ("real_f32", torch.float32, (256,)),
                               ("real_outliers", torch.bfloat16, (256,))):
        print(name)
        model = build((128, 256, 512, 512), 2, 4, 32, dtype, 12, 128, outliers=name == "real_outliers")
        cases = Cases(model)
        for size in sizes:
            cases.add(f"decode_{size}", torch.randn(1, 4, size // 8, size // 8), exact=size == 256)
            cases.add(f"encode_{size}", picture(1, size, size, size), exact=size == 256)
        save(folder, name, model, cases, dtype)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", metavar="FOLDER")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.real:
        real(arguments.real)
    else:
        small(os.path.join(HERE, "vae"))
