"""The other sides of peers.py, each a process of its own that obeys the same lines as bench_peer.

    peer_sides.py torch|compile|onnxruntime|openvino vae|text THREADS FILE...
    peer_sides.py export vae|text FOLDER FILE...

FILE... are the VAE, CLIP-L and bigG; a side loads what its group of cases needs, in float32.
`export` writes the graphs that ONNX Runtime and OpenVINO read. A side that cannot be says "skipped"
and why instead of "ready". Answers have the layout of bench_peer.c.
"""
import ctypes
import gc
import os
import pathlib
import shutil
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "golden"))
END = 49407


# Networks in PyTorch.


def make_vae(path):
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file

    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4)
    vae.load_state_dict(load_file(path), assign=True)
    return vae.float().eval().to(memory_format=torch.channels_last)


def make_encoder(part, path, attention):
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel

    import make_text

    sizes = make_text.REAL[part]
    # SDXL takes L's penultimate layer, so its last one is not computed here either.
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=sizes["width"], intermediate_size=sizes["mlp"],
        num_hidden_layers=sizes["layers"] - (part == "clip_l"),
        num_attention_heads=sizes["width"] // 64, eos_token_id=END, attn_implementation=attention,
        hidden_act="quick_gelu" if sizes["quick"] else "gelu")
    state = load_file(path)
    projection = state.pop("text_projection.weight", None)
    with torch.device("meta"):
        model = CLIPTextModel(config)
    model.load_state_dict(state, strict=False, assign=True)
    model.text_model.embeddings.position_ids = torch.arange(77)[None]
    return model.float().eval(), None if projection is None else projection.float()


def make_modules(group, paths, attention):
    """Modules by name: tensors as the lines have them in, what the answer is made of out."""
    import torch

    class Decoder(torch.nn.Module):
        def __init__(self, vae):
            super().__init__()
            self.vae = vae

        def forward(self, latent):
            y = self.vae.decode(latent, return_dict=False)[0]
            return ((y + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous()

    class Encoder(torch.nn.Module):
        def __init__(self, vae):
            super().__init__()
            self.vae = vae

        def forward(self, image):
            moments = self.vae.quant_conv(self.vae.encoder((image * 2 - 1).permute(0, 3, 1, 2)))
            return moments[:, :4].contiguous()

    class Narrow(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model(ids, output_hidden_states=True).hidden_states[-1]

    class Wide(torch.nn.Module):
        def __init__(self, model, projection):
            super().__init__()
            self.model = model
            self.projection = torch.nn.Parameter(projection, requires_grad=False)

        def forward(self, ids):
            out = self.model(ids, output_hidden_states=True)
            return out.hidden_states[-2], out.pooler_output @ self.projection.T

    if group == "vae":
        vae = make_vae(paths[0])
        return {"decode": Decoder(vae), "encode": Encoder(vae)}
    narrow, _ = make_encoder("clip_l", paths[1], attention)
    wide, projection = make_encoder("clip_g", paths[2], attention)
    return {"clip_l": Narrow(narrow), "clip_g": Wide(wide, projection)}


# Sides: run(name, array) gives a list of arrays.


class Torch:
    def __init__(self, group, threads, paths, compiled):
        import torch

        self.torch = torch
        torch.set_num_threads(threads)
        self.modules = make_modules(group, paths, "sdpa")
        if compiled:
            self.modules = {name: torch.compile(module) for name, module in self.modules.items()}

    def run(self, name, array):
        torch = self.torch
        tensor = torch.from_numpy(array)
        if name == "decode":
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        if array.dtype == np.int32:
            tensor = tensor.long()
        with torch.inference_mode():
            parts = self.modules[name](tensor)
        parts = parts if isinstance(parts, tuple) else (parts,)
        return [part.numpy() for part in parts]


class OnnxRuntime:
    def __init__(self, group, threads, folder):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.sessions = {
            name: onnxruntime.InferenceSession(graph_of(folder, name), options,
                                               providers=["CPUExecutionProvider"])
            for name in GRAPHS[group]
        }

    def run(self, name, array):
        return self.sessions[name].run(None, {"x": widened(array)})


class OpenVino:
    def __init__(self, group, threads, folder):
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32",
                    "PERFORMANCE_HINT": "LATENCY"}
        self.compiled = {}
        for name in GRAPHS[group]:
            model = core.read_model(graph_of(folder, name))
            self.compiled[name] = core.compile_model(model, "CPU", settings)

    def run(self, name, array):
        result = self.compiled[name](widened(array))
        return [np.array(result[i]) for i in range(len(self.compiled[name].outputs))]


def graph_of(folder, name):
    return folder / f"peers_{name}" / "graph.onnx"


def widened(array):
    return array.astype(np.int64) if array.dtype == np.int32 else array


GRAPHS = {"vae": ("decode", "encode"), "text": ("clip_l", "clip_g")}


def export(group, folder, paths):
    import torch

    examples = {"decode": torch.zeros(1, 4, 32, 32), "encode": torch.zeros(1, 256, 256, 3),
                "clip_l": torch.full((2, 77), END), "clip_g": torch.full((2, 77), END)}
    axes = {"decode": {0: "n", 2: "h", 3: "w"}, "encode": {0: "n", 1: "h", 2: "w"},
            "clip_l": {0: "n"}, "clip_g": {0: "n"}}
    for name, module in make_modules(group, paths, "eager").items():
        # A folder for each: large graphs keep their weights in files beside them.
        part = folder / f"peers_{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        with torch.inference_mode():
            torch.onnx.export(module, (examples[name],), str(part / "graph.onnx"),
                              input_names=["x"], dynamic_axes={"x": axes[name]}, opset_version=17,
                              dynamo=False)
        part.rename(graph_of(folder, name).parent)


# The lines.


def answer(side, verb, h, w, path):
    if verb == "text":
        data = np.fromfile(path, np.int32).reshape(2, h, w)
    else:
        shape = (1, 4, h, w) if verb == "decode" else (1, h, w, 3)
        data = np.fromfile(path, np.float32).reshape(shape)
    begin = time.perf_counter()
    if verb != "text":
        parts = side.run(verb, data)
        return 1e3 * (time.perf_counter() - begin), parts
    (narrow,) = side.run("clip_l", data[0])
    wide, pooled = side.run("clip_g", data[1])
    cond = np.concatenate([narrow, wide], axis=-1)
    parts = [part for row in range(h) for part in (cond[row], pooled[row])]
    return 1e3 * (time.perf_counter() - begin), parts


def serve(side):
    for line in sys.stdin:
        verb, h, w, path, out = line.split()
        ms = 0
        if verb == "release":
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
        else:
            ms, parts = answer(side, verb, int(h), int(w), path)
            np.concatenate([part.ravel() for part in parts]).tofile(out)
        print(f"{ms:.3f} 0", flush=True)


def main():
    kind, group = sys.argv[1:3]
    if kind == "export":
        export(group, pathlib.Path(sys.argv[3]), sys.argv[4:])
        return
    threads, paths = int(sys.argv[3]), sys.argv[4:]
    folder = pathlib.Path(paths[0]).parent
    begin = time.perf_counter()
    try:
        if kind == "onnxruntime":
            side = OnnxRuntime(group, threads, folder)
        elif kind == "openvino":
            side = OpenVino(group, threads, folder)
        else:
            side = Torch(group, threads, paths, kind == "compile")
    except Exception as error:
        print("skipped", str(error).splitlines()[0] if str(error) else type(error).__name__, flush=True)
        return
    print(f"ready {1e3 * (time.perf_counter() - begin):.3f} pid {os.getpid()}", flush=True)
    serve(side)


if __name__ == "__main__":
    main()
