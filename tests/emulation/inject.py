#!/usr/bin/env python3
"""Breaks the convolution on tensor cores in every way of a list and shows which builds find it.

    python3 tests/emulation/inject.py [--build FOLDER] [--quick] [NAME ...]

A bug is found by wrong values, by a report of the emulator, by AddressSanitizer, or, where it makes
the kernel slow and not wrong, by the counter of bank conflicts. A bug that no build finds fails the
list, and so does a list whose text no longer fits the kernel. --quick takes one bug of every kind.
"""
import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
KERNEL = "kernels/cuda/convolution_mma.cu"
TILES = "kernels/cuda/tiles.h"
SEEDS = (0, 1, 2, 3)
FLAGS = ["-std=c++17", "-g", "-fno-strict-aliasing", "-ffp-contract=off", "-Wno-unknown-pragmas", "-w"]
RACE = ["-O1", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]
ASAN = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# name, file, what stands there, what it becomes, quick
BUGS = [
    ("no barrier at the head of a stage", KERNEL,
     "            __syncthreads();  // this stage is there for all",
     "            if (stage % F::TAPS == 0) __syncthreads();  // this stage is there for all", True),
    ("no barrier after the norm", KERNEL,
     "                normalize(stage);\n                __syncthreads();",
     "                normalize(stage);", False),
    ("a barrier that half the warps reach", KERNEL,
     "                normalize(stage);\n                __syncthreads();",
     "                normalize(stage);\n                if (threadIdx.x < 128) __syncthreads();", True),
    ("no wait for copies", KERNEL, "            gpu::copy_wait<1>();\n", "", True),
    ("a wait that leaves one group too many", KERNEL, "gpu::copy_wait<1>()", "gpu::copy_wait<2>()", False),
    ("a ring of two stages", KERNEL, "constexpr unsigned STAGES = 3;", "constexpr unsigned STAGES = 2;", True),
    ("loads before the barrier", KERNEL,
     "            gpu::copy_wait<1>();\n            __syncthreads();",
     "            gpu::copy_wait<1>();\n            if (stage + 2 < stages) load_stage(stage + 2);\n"
     "            __syncthreads();", False),
    ("the input's next chunk over the live one", KERNEL,
     "chunk_of(stage) % STAGES * F::INPUT_BYTES", "chunk_of(stage) % 1 * F::INPUT_BYTES", False),
    ("ldmatrix lanes of the pixels", KERNEL, "step * 2 + lane / 16)", "step * 2 + lane / 8 % 2)", True),
    ("ldmatrix lanes of the weights", TILES, "row + (lane & 7) + ((lane >> 4) << 3)", "row + (lane & 15)", False),
    ("ldmatrix at 8 bytes", KERNEL, "gpu::load_matrix4(x[i], input +", "gpu::load_matrix4(x[i], 8 + input +", True),
    ("fragments of the weights exchanged", KERNEL, "y[j / 2] + j % 2 * 2", "y[j / 2] + (1 - j % 2) * 2", True),
    ("rows of the sums exchanged", KERNEL, "float *two = sums[i / 2][j] + i % 2 * 2;",
     "float *two = sums[i / 2][j] + (1 - i % 2) * 2;", False),
    ("the halo one pixel to the right", KERNEL, "return tile_x * F::STRIDE + x - before;",
     "return tile_x * F::STRIDE + x - before + 1;", False),
    ("a bound that lets one row too many in", KERNEL, "bool inside = input_y(y) < a.h &&",
     "bool inside = input_y(y) <= a.h &&", True),
    ("padding goes through the norm", KERNEL,
     "if (input_y(y) >= a.h || input_x(x) >= a.w || count == 0) continue;", "if (count == 0) continue;", False),
    ("rows below the image are stored", KERNEL, "return *y < rows() && *x < columns();",
     "return *x < columns();", True),
    ("factors read past the channels", KERNEL, "        if (count > 1) x.y = fmaf(",
     "        x.y = fmaf(", False),
    ("one stage too little shared memory", KERNEL,
     "STAGES * (INPUT_BYTES + WEIGHT_BYTES);", "STAGES * (INPUT_BYTES + WEIGHT_BYTES) - WEIGHT_BYTES;", False),
    ("a shuffle that lanes beyond the image miss", KERNEL,
     "for (int step = 16; step >= 4; step /= 2) sum +=",
     "if (tile_x + lane / 4 < columns()) for (int step = 16; step >= 4; step /= 2) sum +=", True),
    ("partials over sums that are still read", KERNEL,
     "        total(sums, means, totals);\n        __syncthreads();",
     "        total(sums, means, totals);", False),
    ("two blocks write one partial", KERNEL, "slot = phase * (gridDim.x / blocks_k) + tile;",
     "slot = phase * (gridDim.x / blocks_k);", True),
    ("phases in the wrong order", KERNEL, "uint64_t column = F::FOUR_PHASES ? 2 * x + phase % 2 : x;",
     "uint64_t column = F::FOUR_PHASES ? 2 * x + 1 - phase % 2 : x;", False),
    ("rows of shared memory without their order (slow, not wrong)", TILES,
     "((unit ^ ((row >> 1) & 3)) << 4)", "(unit << 4)", True),
    ("stride 2 with even and odd columns together (slow, not wrong)", KERNEL,
     "    if (F::STRIDE == 1) return y * F::HALO + x;\n", "    return y * F::HALO + x;\n", False),
]

VERDICTS = {0: "-", 1: "wrong", 2: "report", 3: "conflicts"}


def run(command, **environment):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=300,
                              env=dict(os.environ, **environment))
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 99, "", "timeout")


def compile_emulator(folder):
    """The emulator's objects, plain and with AddressSanitizer, and the race detector."""
    objects = {"plain": [], "asan": [], "race": []}
    for kind, flags in (("plain", ["-O2"]), ("asan", ASAN)):
        for name in ("block", "memory", "tensor_core"):
            target = folder / f"{kind}_{name}.o"
            subprocess.run(["g++", *FLAGS, *flags, f"-I{ROOT}", "-c", str(ROOT / f"kernels/emulation/{name}.cpp"),
                            "-o", str(target)], check=True)
            objects[kind].append(str(target))
    target = folder / "race.o"
    subprocess.run(["g++", *FLAGS, "-O2", f"-I{ROOT}", "-c", str(ROOT / "kernels/emulation/race.cpp"), "-o",
                    str(target)], check=True)
    objects["race"] = objects["plain"] + [str(target)]
    return objects


def verdict(done):
    if "AddressSanitizer" in done.stderr or "runtime error" in done.stderr:
        return "sanitizer"
    return VERDICTS.get(done.returncode, "crash")


def try_kernel(folder, objects, replaced):
    """Compiles the cases with the files of `replaced` in place of the tree's; returns the verdicts."""
    copy = folder / "kernels/cuda"
    copy.mkdir(parents=True, exist_ok=True)
    for name in (KERNEL, TILES):
        text = replaced.get(name, (ROOT / name).read_text())
        # The cases are bf16: fp16 would only take time to compile.
        (folder / name).write_text(text.replace("convolve_mma<__half, F>", "convolve_mma<__nv_bfloat16, F>"))
    found = {}
    builds = (("plain", ["-O1"], []), ("race", RACE, []), ("asan", ASAN, ["-fsanitize=address,undefined"]))
    for kind, flags, link in builds:
        parts = []
        for source in (folder / KERNEL, ROOT / "tests/emulation/convolution_cases.cpp"):
            parts.append(str(folder / f"{kind}_{source.stem}.o"))
            done = run(["g++", *FLAGS, *flags, f"-I{folder}", f"-I{ROOT}", "-x", "c++", "-c", str(source),
                        "-o", parts[-1]])
            if done.returncode != 0:
                return {"compile": done.stderr[:400]}
        program = str(folder / f"{kind}_cases")
        subprocess.run(["g++", *link, *parts, *objects[kind], "-o", program, "-pthread"], check=True)
        for seed in SEEDS if kind == "plain" else SEEDS[:1]:
            result = verdict(run([program], LUNA_EMULATION_SEED=str(seed), ASAN_OPTIONS="detect_leaks=0"))
            found[f"{kind} {seed}" if kind == "plain" else kind] = result
        if kind == "plain" and set(found.values()) != {"-"}:
            break  # the other builds take minutes and could only agree
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build/inject")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    folder = (ROOT / options.build).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    objects = compile_emulator(folder)
    sound = try_kernel(folder, objects, {})
    print(f"{'the kernel as it is':60}", sound, flush=True)
    failed = [] if set(sound.values()) == {"-"} else ["the kernel as it is"]
    count = 0
    for name, file, old, new, is_quick in BUGS:
        if options.names and not any(part in name for part in options.names):
            continue
        if options.quick and not is_quick:
            continue
        text = (ROOT / file).read_text()
        if text.count(old) == 0:
            failed.append(f"{name}: the kernel no longer has {old!r}")
            continue
        count += 1
        found = try_kernel(folder, objects, {file: text.replace(old, new)})
        print(f"{name:60}", found, flush=True)
        if "compile" in found or set(found.values()) == {"-"}:
            failed.append(name)
    for name in failed:
        print(f"NOT FOUND: {name}")
    print(f"{count} bugs, {len(failed)} not found")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
