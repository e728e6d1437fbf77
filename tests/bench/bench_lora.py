"""What adapters cost, and what PyTorch pays to switch them: ./dev bench lora

Runs bench_lora (its first lines tell what it measures), says which bars of the project hold, and
measures beside it how long PyTorch takes to patch a rank-32 adapter into the same float16 linears
in fp32 and to restore them from a backup, which is how a patched model changes its adapter. Without
a Python with torch in .venv/reference or .venv/peers that is left out, and says so. Everything goes
to build/bench/lora.json too.

    bench_lora.py [--pairs N] [--switches N] [--threads N] [--torch-switches N]
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "build" / "bench"
RANK = 32
STRENGTH = 0.8
ENCODERS = ((12, 768, 3072), (32, 1280, 5120))  # layers, width, width of the MLP
# name, where it is in the result, the bar, and whether it is the most (or the least)
BARS = (
    ("1 request, rank 32 on all linears / none", ("functional", "ratio"), 1.15, True),
    ("throughput of 8 with 8 stacks / 8 without", ("throughput",), 0.8, False),
    ("switched / same stack", ("switching", "ratio"), 1.02, True),
)


# PyTorch's side, in a Python of its own.


def torch_side(switches, threads):
    import torch

    torch.set_num_threads(threads)
    shapes = []
    for layers, width, mlp in ENCODERS:
        shapes += layers * (4 * [(width, width)] + [(mlp, width), (width, mlp)])
    half = torch.float16  # the values do not matter for the time
    weights = [torch.full(shape, 0.02, dtype=half) for shape in shapes]
    adapters = [[(torch.full((rows, RANK), 0.02, dtype=half), torch.full((RANK, columns), 0.02, dtype=half))
                 for rows, columns in shapes] for _ in range(2)]
    backups = [weight.clone() for weight in weights]

    def restore():
        for weight, backup in zip(weights, backups):
            weight.copy_(backup)

    def patch(adapter):
        for weight, (up, down) in zip(weights, adapter):
            merged = weight.float()
            merged += STRENGTH * (up.float() @ down.float())
            weight.copy_(merged)

    patch(adapters[0])
    times = []
    for i in range(switches):
        begin = time.monotonic()
        restore()
        patch(adapters[(i + 1) % 2])
        times.append((time.monotonic() - begin) * 1e3)
    print(json.dumps({"switch_ms": statistics.median(times), "switches": switches,
                      "torch": torch.__version__}))


def find_torch():
    for name in ("reference", "peers"):
        python = ROOT / ".venv" / name / "bin" / "python"
        if python.exists() and subprocess.run([python, "-c", "import torch"],
                                              capture_output=True).returncode == 0:
            return python
    return None


# The table.


def run_json(command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--switches", type=int, default=50)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--torch-switches", type=int, default=5)
    parser.add_argument("--bench-lora", default=OUT / "bench_lora")
    parser.add_argument("--torch-side", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch_side:
        torch_side(arguments.torch_switches, arguments.threads)
        return
    result = run_json([arguments.bench_lora, arguments.pairs, arguments.switches, arguments.threads])
    for name, keys, bar, is_most in BARS:
        value = result
        for key in keys:
            value = value[key]
        good = value <= bar if is_most else value >= bar
        print(f"{name:44} {value:7.3f}  bar {'<=' if is_most else '>='} {bar}: {'holds' if good else 'MISSED'}")
    python = find_torch()
    if python is None:
        print("PyTorch, patch and restore: left out, there is no torch in .venv/reference or .venv/peers")
    else:
        result["pytorch"] = run_json([python, __file__, "--torch-side", "--torch-switches",
                                      arguments.torch_switches, "--threads", arguments.threads])
        extra = result["switching"]["b_ms"] - result["switching"]["a_ms"]
        print(f"PyTorch {result['pytorch']['torch']}, restore and patch: "
              f"{result['pytorch']['switch_ms']:.0f} ms a switch; ours {extra:.1f} ms "
              f"(one merged copy instead: {result['merged']['make_ms']:.0f} ms, once)")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "lora.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
