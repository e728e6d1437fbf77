"""Luna beside PyTorch, torch.compile, ONNX Runtime and OpenVINO in one run: ./dev bench peers

All sides load the same files of random weights (SDXL's VAE, CLIP-L, bigG; float16, made once in
build/bench) and compute in float32, each in a process of its own with the same number of threads,
and obey the same lines on stdin (bench_peer.c tells which; peer_sides.py are the others). In a
round each side runs once, in an order that turns, so that what else the machine does strikes all of
them; a ratio is the median of the rounds' ratios. On a machine with other work the processor time
says more than the wall's. Then the largest difference from PyTorch's answer, the time from the
process's start to its first answer, the peak of resident memory (mapped weights included), what is
installed, and Luna through its daemon. Everything goes to build/bench/peers.json too. A side that
cannot be had is skipped with a line.

    peers.py [--threads N] [--rounds N] [--sides A,B] [--cases PART] [--bench-peer FILE] [--luna FILE]
"""
import argparse
import importlib.metadata
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
# Case, verb, height and width (or rows and tokens), share of the rounds.
CASES = (
    ("decode 256x256", "decode", 32, 32, 1),
    ("decode 512x512", "decode", 64, 64, 1),
    ("decode 1024x1024", "decode", 128, 128, 0.2),
    ("encode 512x512", "encode", 512, 512, 1),
    ("text, one row", "text", 1, 77, 1),
    ("text, two rows", "text", 2, 77, 1),
    ("text, eight rows", "text", 8, 77, 1),
)
SIDES = ("luna", "torch", "compile", "onnxruntime", "openvino")
GRAPHS = {"vae": ("decode", "encode"), "text": ("clip_l", "clip_g")}
# What has to be installed for a side, beside Python.
PACKAGES = {
    "torch": ("torch", "diffusers", "transformers", "tokenizers", "huggingface-hub", "safetensors", "numpy"),
    "onnxruntime": ("onnxruntime", "numpy"),
    "openvino": ("openvino", "numpy"),
}
PACKAGES["compile"] = PACKAGES["torch"]
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
    for case, verb, h, w, _ in CASES:
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


# The graphs that ONNX Runtime and OpenVINO read.


def make_graphs(group, paths):
    """None, or why there are none."""
    if all((OUT / f"peers_{name}" / "graph.onnx").exists() for name in GRAPHS[group]):
        return None
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "bench" / "peer_sides.py", "export", group, OUT, *paths],
        capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return f"the graphs cannot be exported: {lines[-1] if lines else done.returncode}"


# All sides, from outside.


class Skipped(Exception):
    pass


class Side:
    def __init__(self, name, group, arguments, paths):
        self.name = name
        command = [arguments.bench_peer, arguments.threads, *paths]
        if name != "luna":
            command = [sys.executable, ROOT / "tests" / "bench" / "peer_sides.py", name, group,
                       arguments.threads, *paths]
        self.begin = time.perf_counter()
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        words = self.line()
        if words[0] == "skipped":
            self.process.wait()
            raise Skipped(" ".join(words[1:]))
        self.ready_ms = 1e3 * (time.perf_counter() - self.begin)

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            raise Skipped(f"its process ended with {self.process.wait()}")
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


def installed_mib(name, luna):
    """What is on the disk for a side: its packages' files, or our binary."""
    if name == "luna":
        return luna.stat().st_size / 2**20 if luna.exists() else None
    total = 0
    for package in PACKAGES[name]:
        try:
            files = importlib.metadata.distribution(package).files or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            path = pathlib.Path(file.locate())
            total += path.stat().st_size if path.is_file() else 0
    return total / 2**20


def open_sides(names, group, arguments, paths, cold):
    """Starts the sides one after the other, each up to its first answer."""
    sides = []
    graphs = {"onnxruntime", "openvino"} & set(names)
    reason = make_graphs(group, paths) if graphs else None
    for name in names:
        try:
            if name in graphs and reason is not None:
                raise Skipped(reason)
            side = Side(name, group, arguments, paths)
            side.ask(*cold)
            side.cold_ms = 1e3 * (time.perf_counter() - side.begin - PAUSE_S)
            sides.append(side)
        except Skipped as error:
            print(f"{name} ({group}): skipped: {error}", flush=True)
    return sides


HEAD = ("median ms", "least ms", "ratio", "cpu s", "cpu ratio", "first ms", "peak MiB", "difference")


def measure(sides, case, rounds, inputs, folder):
    """A row for each side of one case."""
    name, verb, h, w, share = case
    rounds = max(1, round(rounds * share))
    commands = [(verb, h, w, inputs[name], folder / f"{side.name}.out") for side in sides]
    first = [side.ask(*command)[0] for side, command in zip(sides, commands)]
    runs = [[] for _ in sides]
    for turn in range(rounds):
        for i in range(len(sides)):
            at = (turn + i) % len(sides)
            runs[at].append(sides[at].ask(*commands[at]))
    answers = [np.fromfile(command[-1], np.float32) for command in commands]
    names = [side.name for side in sides]
    model = answers[names.index("torch")] if "torch" in names else None
    rows = []
    for at, side in enumerate(sides):
        peak, arena = side.peak_mib(*commands[at])
        ms, cpu = [run[0] for run in runs[at]], [run[1] for run in runs[at]]
        row = {
            "case": name, "side": side.name, "rounds": rounds, "load": os.getloadavg()[0],
            "median_ms": statistics.median(ms), "least_ms": min(ms), "all_ms": ms,
            "cpu_s": statistics.median(cpu), "first_ms": first[at], "peak_mib": peak,
            "arena_mib": arena,
        }
        if "luna" in names:
            ours = runs[names.index("luna")]
            row["ratio"] = statistics.median(run[0] / our[0] for run, our in zip(runs[at], ours))
            row["cpu_ratio"] = statistics.median(
                run[1] / our[1] for run, our in zip(runs[at], ours) if our[1] > 0)
        if model is not None:
            row["difference"] = float(np.abs(answers[at] - model).max())
            row["largest"] = float(np.abs(model).max())
        rows.append(row)
    return rows


def print_rows(rows):
    for row in rows:
        print(f"{row['case']:18} {row['side']:12} {row['median_ms']:10.1f} {row['least_ms']:10.1f} "
              f"{row.get('ratio', float('nan')):10.2f} {row['cpu_s']:10.2f} "
              f"{row.get('cpu_ratio', float('nan')):10.2f} {row['first_ms']:10.1f} "
              f"{row['peak_mib']:10.0f} {row.get('difference', float('nan')):10.1e}", flush=True)


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


def compare_group(group, cases, names, arguments, paths, folder, inputs, result):
    _, verb, h, w, _ = cases[0]
    cold = (verb, h, w, inputs[cases[0][0]], folder / "cold.out")
    sides = open_sides(names, group, arguments, paths, cold)
    for side in sides:
        result["cold"].append({"side": side.name, "group": group, "case": cases[0][0],
                               "ready_ms": side.ready_ms, "cold_ms": side.cold_ms})
    for case in cases:
        rows = measure(sides, case, arguments.rounds, inputs, folder)
        print_rows(rows)
        result["cases"] += rows
        if case[0] == "decode 512x512" and sides and sides[0].name == "luna":
            (folder / "direct.out").write_bytes((folder / "luna.out").read_bytes())
    for side in sides:
        side.close()


def compare(arguments):
    paths = make_files()
    names = [name for name in SIDES if name in arguments.sides.split(",")]
    cases = [case for case in CASES if arguments.cases in case[0]]
    result = {"threads": arguments.threads, "rounds": arguments.rounds, "read_ms": read_ms(paths),
              "cases": [], "cold": [], "installed_mib": {}}
    for name in names:
        result["installed_mib"][name] = installed_mib(name, arguments.luna)
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        folder = pathlib.Path(name)
        inputs = make_inputs(folder)
        print(f"{arguments.threads} threads, {arguments.rounds} rounds; ratios over luna")
        print(" " * 31, *(f"{word:>10}" for word in HEAD))
        for group in ("vae", "text"):
            some = [case for case in cases if (case[1] == "text") == (group == "text")]
            if some:
                compare_group(group, some, names, arguments, paths, folder, inputs, result)
        for cold in result["cold"]:
            print(f"{cold['side']} ({cold['group']}): ready after {cold['ready_ms']:.0f} ms, "
                  f"first answer ({cold['case']}) after {cold['cold_ms']:.0f} ms")
        for side, mib in result["installed_mib"].items():
            print(f"{side}: {mib:.1f} MiB installed" if mib is not None else f"{side}: not built")
        if (folder / "direct.out").exists() and arguments.luna.exists():
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
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--cases", default="", help="part of the names of the cases to run")
    parser.add_argument("--bench-peer", default=str(OUT / "bench_peer"))
    parser.add_argument("--luna", type=pathlib.Path, default=ROOT / "build" / "luna")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
