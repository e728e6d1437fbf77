"""Luna beside PyTorch (eager, channels_last, float32) in one run: ./dev bench peers

Both sides load the same files of random weights (SDXL's VAE, CLIP-L, bigG; float16, made once in
build/bench), each in a process of its own with the same number of threads, and obey the same lines
on stdin (bench_peer.c tells which). In a round each side runs once, in turns first and second, so
that what else the machine does strikes both; ratios are those of medians. On a machine with other
work the processor time says more than the wall's. Then the largest difference between the two
answers, what the first run costs, the peak of resident memory (mapped weights included), and the
same through the daemon. Everything goes to build/bench/peers.json too.

    peers.py [--threads N] [--rounds N] [--bench-peer PROGRAM] [--luna PROGRAM]
"""
import argparse
import ctypes
import gc
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "build" / "bench"
sys.path.insert(0, str(ROOT / "tests" / "golden"))
FILES = ("vae", "clip_l", "clip_g")
CASES = (
    ("decode 256x256", "decode", 32, 32),
    ("decode 512x512", "decode", 64, 64),
    ("encode 512x512", "encode", 512, 512),
    ("text, one row", "text", 1, 77),
    ("text, two rows", "text", 2, 77),
)
PAUSE_S = 0.2  # after a run: idle threads of the other side may still spin
START, END = 49406, 49407


# Weights: those of the golden tests, by the same formula.


def make_files():
    import torch
    from safetensors.torch import save_file

    import make_real
    import make_text
    import make_vae

    OUT.mkdir(parents=True, exist_ok=True)
    paths = [OUT / f"peers_{name}.safetensors" for name in FILES]
    if not paths[0].exists():
        shapes = make_vae.create(make_real.CHANNELS, 2, 4, 32).state_dict()
        tensors = {}
        for name, value in shapes.items():
            exponent, offset = make_real.rule(name, tuple(value.shape))
            tensors[name] = make_real.noise(name, value.shape, 2.0**exponent, offset).half()
        save_file(tensors, paths[0])
    for part, path in zip(FILES[1:], paths[1:]):
        if path.exists():
            continue
        model, projection = make_text.build(part, make_text.REAL[part])
        tensors = {name: value.half() for name, value in model.state_dict().items()}
        tensors.pop("text_model.embeddings.position_ids", None)
        if projection is not None:
            tensors["text_projection.weight"] = projection.half()
        save_file(tensors, path)
    return paths


def make_inputs(folder):
    random = np.random.default_rng(1)
    inputs = {}
    for case, verb, h, w in CASES:
        path = folder / f"{case}.in".replace(" ", "_").replace(",", "")
        if verb == "decode":
            data = random.standard_normal((1, 4, h, w), dtype=np.float32)
        elif verb == "encode":
            data = random.random((1, h, w, 3), dtype=np.float32)
        else:
            data = np.full((2, h, 77), END, dtype=np.int32)
            data[1] = 0
            data[:, :, 0] = START
            data[:, :, 1:21] = random.integers(1000, 40000, (h, 20))
            data[:, :, 21] = END
        data.tofile(path)
        inputs[case] = path
    return inputs


# PyTorch's side.


class Peer:
    def __init__(self, threads, paths):
        import torch
        from diffusers import AutoencoderKL
        from safetensors.torch import load_file
        from transformers import CLIPTextConfig, CLIPTextModel

        import make_text

        self.torch = torch
        torch.set_num_threads(threads)
        begin = time.perf_counter()
        with torch.device("meta"):
            self.vae = AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4)
        self.vae.load_state_dict(load_file(paths[0]), assign=True)
        self.vae = self.vae.float().eval().to(memory_format=torch.channels_last)
        vae_ms = 1e3 * (time.perf_counter() - begin)
        begin = time.perf_counter()
        self.encoders = []
        for part, path in zip(FILES[1:], paths[1:]):
            sizes = make_text.REAL[part]
            # SDXL takes L's penultimate layer, so its last one is not computed here either.
            config = CLIPTextConfig(
                vocab_size=49408, hidden_size=sizes["width"], intermediate_size=sizes["mlp"],
                num_hidden_layers=sizes["layers"] - (part == "clip_l"),
                num_attention_heads=sizes["width"] // 64,
                hidden_act="quick_gelu" if sizes["quick"] else "gelu", attn_implementation="sdpa",
                eos_token_id=END)
            state = load_file(path)
            self.projection = state.pop("text_projection.weight", None)
            with torch.device("meta"):
                model = CLIPTextModel(config)
            model.load_state_dict(state, strict=False, assign=True)
            model.text_model.embeddings.position_ids = torch.arange(77)[None]
            self.encoders.append(model.float().eval())
        self.projection = self.projection.float()
        text_ms = 1e3 * (time.perf_counter() - begin)
        print(f"ready 0 {vae_ms:.3f} {text_ms:.3f}", flush=True)

    def decode(self, latent):
        y = self.vae.decode(latent).sample
        return [((y + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous()]

    def encode(self, image):
        x = (image * 2 - 1).permute(0, 3, 1, 2)
        return [self.vae.encode(x).latent_dist.mean.contiguous()]

    def text(self, ids):
        narrow = self.encoders[0](ids[0], output_hidden_states=True).hidden_states[-1]
        wide = self.encoders[1](ids[1], output_hidden_states=True)
        cond = self.torch.cat([narrow, wide.hidden_states[-2]], dim=-1)
        pooled = wide.pooler_output @ self.projection.T
        return [part for row in range(len(cond)) for part in (cond[row], pooled[row])]

    def run(self, verb, h, w, path):
        torch = self.torch
        if verb == "text":
            data = torch.from_numpy(np.fromfile(path, np.int32).reshape(2, h, w)).long()
        else:
            shape = (1, 4, h, w) if verb == "decode" else (1, h, w, 3)
            data = torch.from_numpy(np.fromfile(path, np.float32).reshape(shape))
        if verb == "decode":
            data = data.contiguous(memory_format=torch.channels_last)
        begin = time.perf_counter()
        with torch.inference_mode():
            parts = getattr(self, verb)(data)
        return 1e3 * (time.perf_counter() - begin), parts

    def serve(self):
        for line in sys.stdin:
            verb, h, w, path, out = line.split()
            ms = 0
            if verb == "release":
                gc.collect()
                ctypes.CDLL(None).malloc_trim(0)
            else:
                ms, parts = self.run(verb, int(h), int(w), path)
                np.concatenate([part.numpy().ravel() for part in parts]).tofile(out)
            print(f"{ms:.3f} 0", flush=True)


# Both sides, from outside.


class Side:
    def __init__(self, name, command):
        self.name = name
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True)
        self.load_ms = [float(part) for part in self.line()[1:]]

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"peers: {self.name} ended with {self.process.wait()}")
        return line.split()

    def ask(self, verb, h=0, w=0, path="-", out="-"):
        begin_s = self.cpu_s()
        self.process.stdin.write(f"{verb} {h} {w} {path} {out}\n")
        self.process.stdin.flush()
        ms, arena = self.line()
        time.sleep(PAUSE_S)
        return float(ms), self.cpu_s() - begin_s, int(arena)

    def cpu_s(self):
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def peak_mib(self, *command):
        """The most that is resident while a command runs, mapped files included."""
        self.ask("release")
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        _, _, arena = self.ask(*command)
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        return kib / 1024, arena / 2**20

    def close(self):
        self.process.stdin.close()
        self.process.wait()


COLUMNS = (
    ("luna ms", "ours_ms", "9.1f"), ("torch ms", "torch_ms", "9.1f"), ("ratio", "ratio", "6.2f"),
    ("luna cpu s", "ours_cpu_s", "10.2f"), ("torch cpu s", "torch_cpu_s", "11.2f"),
    ("ratio", "cpu_ratio", "6.2f"), ("difference", "difference", "10.1e"),
    ("luna 1st", "ours_first_ms", "9.1f"), ("torch 1st", "torch_first_ms", "9.1f"),
    ("luna MiB", "ours_rss_mib", "8.0f"), ("torch MiB", "torch_rss_mib", "9.0f"),
    ("arena MiB", "ours_arena_mib", "9.0f"), ("load", "load", "4.1f"),
)


def width(form):
    return int(form.split(".")[0])


def measure(sides, rounds, inputs, folder):
    print(" " * 16, *(f"{title:>{width(form)}}" for title, _, form in COLUMNS))
    rows = []
    for case, verb, h, w in CASES:
        outputs = [folder / f"{side.name}.out" for side in sides]
        commands = [(verb, h, w, inputs[case], out) for out in outputs]
        first = [side.ask(*command) for side, command in zip(sides, commands)]
        runs = [[], []]
        for turn in range(rounds):
            for i in (0, 1) if turn % 2 == 0 else (1, 0):
                runs[i].append(sides[i].ask(*commands[i]))
        ours, theirs = (np.fromfile(out, np.float32) for out in outputs)
        row = {
            "case": case, "load": os.getloadavg()[0],
            "difference": float(np.abs(ours - theirs).max()),
            "largest": float(np.abs(theirs).max()),
        }
        for name, side, command, some, cold in zip(("ours", "torch"), sides, commands, runs, first):
            rss_mib, arena_mib = side.peak_mib(*command)
            row.update({
                f"{name}_ms": statistics.median(ms for ms, _, _ in some),
                f"{name}_cpu_s": statistics.median(cpu_s for _, cpu_s, _ in some),
                f"{name}_all_ms": [ms for ms, _, _ in some],
                f"{name}_first_ms": cold[0], f"{name}_first_cpu_s": cold[1],
                f"{name}_rss_mib": rss_mib, f"{name}_arena_mib": arena_mib,
            })
        row["ratio"] = row["torch_ms"] / row["ours_ms"]
        row["cpu_ratio"] = row["torch_cpu_s"] / row["ours_cpu_s"]
        rows.append(row)
        print(f"{case:16}", *(f"{row[key]:{form}}" for _, key, form in COLUMNS), flush=True)
    return rows


# Through the daemon.


def measure_daemon(luna, paths, rounds, inputs, folder):
    from safetensors.numpy import load_file, save_file

    latent = np.fromfile(inputs["decode 512x512"], np.float32).reshape(1, 4, 64, 64)
    save_file({"latent": latent}, folder / "latent.safetensors")
    config, endpoint = folder / "luna.conf", f"ipc://{folder}/luna.sock"
    config.write_text(
        f"[service]\nthreads = {len(os.sched_getaffinity(0))}\n[listen]\nrequests = {endpoint}\n"
        f"page =\nevents =\n[models]\ndirectories = {paths[0].parent}\n"
        f"[model sdxl]\nfiles = {', '.join(path.name for path in paths)}\n")
    log = folder / "daemon.log"
    with open(log, "w") as file:
        daemon = subprocess.Popen([luna, "serve", "-c", config], stdout=subprocess.PIPE,
                                  stderr=file, text=True)
    image, cond = folder / "image.safetensors", folder / "cond.safetensors"
    decode = ("decode", folder / "latent.safetensors", "-o", image)
    texts = [("text", f"fox number {turn}", "--negative", f"blur number {turn}", "-o", cond)
             for turn in range(rounds + 1)]
    try:
        ready = daemon.stdout.readline()
        if not ready.startswith("luna: ready"):
            raise SystemExit(f"peers: the daemon is not ready:\n{log.read_text()}")
        result = {
            "decode 512x512": time_commands(luna, endpoint, [decode] * (rounds + 1)),
            "text, two rows": time_commands(luna, endpoint, texts),
        }
        direct = np.fromfile(folder / "direct.out", np.float32)
        differs = np.abs(load_file(image)["image"].ravel() - direct).max()
        result["difference"] = float(differs)
        return result
    finally:
        daemon.terminate()
        daemon.wait()


def time_commands(luna, endpoint, commands):
    """Milliseconds of the first and the median of the others, the client's start included."""
    times = []
    for command in commands:
        begin = time.perf_counter()
        subprocess.run([luna, *command, "--connect", endpoint, "--no-progress"], check=True,
                       stdout=subprocess.DEVNULL)
        times.append(1e3 * (time.perf_counter() - begin))
    return {"first_ms": times[0], "ms": statistics.median(times[1:])}


def read_ms(paths):
    """Milliseconds to read the files from the page cache, the better of two times."""
    best = float("inf")
    buffer = bytearray(1 << 22)
    for _ in range(2):
        begin = time.perf_counter()
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        best = min(best, 1e3 * (time.perf_counter() - begin))
    return best


def compare(arguments):
    paths = make_files()
    result = {"threads": arguments.threads, "rounds": arguments.rounds, "read_ms": read_ms(paths)}
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        folder = pathlib.Path(name)
        inputs = make_inputs(folder)
        peer = [sys.executable, __file__, "--peer", "--threads", arguments.threads, *paths]
        ours = Side("luna", [arguments.bench_peer, arguments.threads, *paths])
        theirs = Side("torch", peer)
        for side in (ours, theirs):
            result[f"{side.name}_load_ms"] = side.load_ms
            print(f"{side.name}: VAE ready in {side.load_ms[1]:.1f} ms, encoders in "
                  f"{side.load_ms[2]:.1f} ms (reading the files alone: {result['read_ms']:.0f} ms)")
        print(f"{arguments.threads} threads, medians of {arguments.rounds} rounds")
        result["cases"] = measure((ours, theirs), arguments.rounds, inputs, folder)
        ours.ask("decode", 64, 64, inputs["decode 512x512"], folder / "direct.out")
        ours.close()
        theirs.close()
        if pathlib.Path(arguments.luna).exists():
            daemon = measure_daemon(arguments.luna, paths, arguments.rounds, inputs, folder)
            result["daemon"] = daemon
            for case in ("decode 512x512", "text, two rows"):
                print(f"through the daemon and the command line, {case}: "
                      f"{daemon[case]['ms']:.1f} ms, first {daemon[case]['first_ms']:.1f} ms")
            print(f"the daemon's image differs from the direct one by {daemon['difference']:.1e}")
    (OUT / "peers.json").write_text(json.dumps(result, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bench-peer", default=str(OUT / "bench_peer"))
    parser.add_argument("--luna", default=str(ROOT / "build" / "luna"))
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        Peer(arguments.threads, arguments.files).serve()
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
