#!/usr/bin/env python3
"""Breaks the kernels on tensor cores, and those of images, in every way of a list and shows which builds find it.

    python3 tests/emulation/inject.py [--build FOLDER] [NAME ...]

A bug is found by wrong values, by a report of the emulator, by AddressSanitizer, or, where it makes
the kernel slow and not wrong, by the counter of bank conflicts. A bug that no build finds fails the
list, and so does a list whose text no longer fits the kernel.
"""
import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MMA = "kernels/cuda/convolution_mma.cu"
WGMMA = "kernels/cuda/convolution_wgmma.cu"
TILE = "kernels/cuda/convolution_tile.h"
TILES = "kernels/cuda/tiles.h"
HOPPER = "kernels/cuda/gpu_hopper.h"
ATTENTION = "kernels/cuda/attention_mma.cu"
SHORT = "kernels/cuda/attention_short.cu"
MULTIPLY = "kernels/cuda/multiply_mma.cu"
GROUP_MULTIPLY = "kernels/cuda/multiply_wgmma.cu"
MULTIPLY_TILE = "kernels/cuda/multiply_tile.h"
IMAGES = "kernels/cuda/images.cu"
KERNELS = {"mma": MMA, "wgmma": WGMMA, "attention": ATTENTION, "short": SHORT, "multiply": MULTIPLY,
           "group": GROUP_MULTIPLY, "images": IMAGES}
# Which kernels the cases of a file try.
CASES = {"convolution_cases": ["mma", "wgmma"], "product_cases": ["attention", "short", "multiply", "group"],
         "image_cases": ["images"]}
# Which kernels a file is part of.
USERS = {MMA: ["mma"], WGMMA: ["wgmma"], HOPPER: ["wgmma", "group"], TILE: ["mma", "wgmma"],
         TILES: ["mma", "wgmma", "attention", "multiply", "group"], ATTENTION: ["attention"], SHORT: ["short"],
         MULTIPLY: ["multiply"], GROUP_MULTIPLY: ["group"], MULTIPLY_TILE: ["multiply", "group"],
         IMAGES: ["images"]}
SEEDS = (0, 1, 2, 3)
FLAGS = ["-std=c++17", "-g", "-fno-strict-aliasing", "-ffp-contract=off", "-Wno-unknown-pragmas", "-w"]
RACE = ["-O1", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]
ASAN = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# name, file, what stands there, what it becomes
BUGS = [
    # ---- one kernel that does everything with all threads
    ("no barrier at the head of a stage", MMA,
     "            __syncthreads();  // this stage is there for all",
     "            if (stage % F::TAPS == 0) __syncthreads();  // this stage is there for all"),
    ("no barrier after the norm", MMA,
     "                this->normalize(stage);\n                __syncthreads();",
     "                this->normalize(stage);"),
    ("a barrier that half the warps reach", MMA,
     "                this->normalize(stage);\n                __syncthreads();",
     "                this->normalize(stage);\n                if (threadIdx.x < 128) __syncthreads();"),
    ("no wait for copies", MMA, "            gpu::copy_wait<1>();\n", ""),
    ("a wait that leaves one group too many", MMA, "gpu::copy_wait<1>()", "gpu::copy_wait<2>()"),
    ("a ring of two stages", MMA, "WEIGHTS = 3;", "WEIGHTS = 2;"),
    ("loads before the barrier", MMA,
     "            gpu::copy_wait<1>();\n            __syncthreads();",
     "            gpu::copy_wait<1>();\n            if (stage + 2 < this->stages) load_stage(stage + 2);\n"
     "            __syncthreads();"),
    ("the input's next chunk over the live one", MMA, "INPUTS = 3;", "INPUTS = 1;"),
    ("ldmatrix lanes of columns", TILES, "row + (lane & 7) + ((lane >> 4) << 3)", "row + (lane & 15)"),
    ("fragments of the weights exchanged", MMA, "y[j / 2] + j % 2 * 2", "y[j / 2] + (1 - j % 2) * 2"),
    # ---- what both share
    ("ldmatrix lanes of the pixels", TILE, "unit + lane / 16)", "unit + lane / 8 % 2)"),
    ("ldmatrix at 8 bytes", TILE, "load_matrix4(x[i], input +", "load_matrix4(x[i], 8 + input +"),
    ("rows of the sums exchanged", TILE, "float *two = sums[i / 2][j] + i % 2 * 2;",
     "float *two = sums[i / 2][j] + (1 - i % 2) * 2;"),
    ("the halo one pixel to the right", TILE, "return tile_x * F::STRIDE + x - before;",
     "return tile_x * F::STRIDE + x - before + 1;"),
    ("a bound that lets one row too many in", TILE, "bool inside = input_y(y) < a.h &&",
     "bool inside = input_y(y) <= a.h &&"),
    ("padding goes through the norm", TILE,
     "if (input_y(y) >= a.h || input_x(x) >= a.w || count == 0) continue;", "if (count == 0) continue;"),
    ("rows below the image are stored", TILE, "return *y < rows() && *x < columns();",
     "return *x < columns();"),
    ("factors read past the channels", TILE, "        if (count > 1) x.y = fmaf(",
     "        x.y = fmaf("),
    ("too little shared memory", TILE, "R::INPUTS * INPUT_BYTES + R::WEIGHTS * WEIGHT_BYTES;",
     "R::INPUTS * INPUT_BYTES + R::WEIGHTS * WEIGHT_BYTES - INPUT_BYTES;"),
    ("a shuffle that lanes beyond the image miss", TILE,
     "for (int step = 16; step >= 4; step /= 2) sum +=",
     "if (tile_x + lane / 4 < columns()) for (int step = 16; step >= 4; step /= 2) sum +="),
    ("partials over sums that are still read", TILE,
     "        total(sums, means, totals);\n        F::barrier::wait();",
     "        total(sums, means, totals);"),
    ("two blocks write one partial", TILE, "slot = phase * (gridDim.x / blocks_k) + tile;",
     "slot = phase * (gridDim.x / blocks_k);"),
    ("phases in the wrong order", TILE, "uint64_t column = F::FOUR_PHASES ? 2 * x + phase % 2 : x;",
     "uint64_t column = F::FOUR_PHASES ? 2 * x + 1 - phase % 2 : x;"),
    ("rows of shared memory without their order", TILES, "((unit ^ ((row >> 1) & 3)) << 4)", "(unit << 4)"),
    ("stride 2 with even and odd columns together (slow, not wrong)", TILE,
     "    if (F::STRIDE == 1) return y * F::HALO + x;\n", "    return y * F::HALO + x;\n"),
    # ---- attention
    ("keys that are not there for all", ATTENTION,
     "            gpu::copy_wait<1>();\n            __syncthreads();  // the keys are there for all\n",
     "            gpu::copy_wait<1>();\n"),
    ("no wait for keys", ATTENTION, "            gpu::copy_wait<1>();\n", ""),
    ("a wait that leaves the values out", ATTENTION, "            gpu::copy_wait<0>();\n            __sync",
     "            gpu::copy_wait<1>();\n            __sync"),
    ("parts of scores over keys that are still read", ATTENTION,
     "        __syncthreads();  // everybody has read the keys\n", ""),
    ("parts of scores that are not there for all", ATTENTION,
     "= scores[i / 4][i % 4];\n        __syncthreads();", "= scores[i / 4][i % 4];"),
    ("values loaded over those that are still read", ATTENTION,
     "            __syncthreads();  // all have read the values\n", ""),
    ("parts of scores of another pair", ATTENTION, "(threadIdx.x ^ 32)", "(threadIdx.x ^ 64)"),
    ("a causal mask one key too far", ATTENTION, "at <= query)", "at <= query + 1)"),
    ("keys behind the last token", ATTENTION, "bool seen = at < a.tokens && ", "bool seen = "),
    ("fragments of the values exchanged", ATTENTION, "operand, y);", "operand, y + 2);"),
    ("sums scaled as those of another query", ATTENTION, "*= rescale[i % 4 / 2]", "*= rescale[i % 2]"),
    # ---- attention of short texts
    ("no barrier behind the keys", SHORT, "    __syncthreads();\n", ""),
    ("no rendezvous behind the weights", SHORT, "    __syncwarp();\n", ""),
    ("a query sees the one behind it", SHORT, "query < a.tokens ? query + 1", "query < a.tokens ? query + 2"),
    ("keys of the tiles that a causal block needs not", SHORT, "(blockIdx.x + 1) * QUERIES", "blockIdx.x * QUERIES"),
    ("a warp's queries from the next warp", SHORT, "stage.q[threadIdx.x / 32]",
     "stage.q[(threadIdx.x / 32 + 1) % WARPS]"),
    ("columns behind a head's end", SHORT, "token >= a.tokens || column >= a.head_width", "token >= a.tokens"),
    ("outputs behind a head's end", SHORT, "a.tokens || column >= a.head_width) continue", "a.tokens) continue"),
    # ---- products
    ("no barrier at the head of a stage, products", MULTIPLY,
     "            __syncthreads();  // this stage is there for all, and all have left the one before\n", ""),
    ("no wait for copies, products", MULTIPLY, "            gpu::copy_wait<F::STAGES - 2>();\n", ""),
    ("a wait that leaves one group too many, products", MULTIPLY, "gpu::copy_wait<F::STAGES - 2>()",
     "gpu::copy_wait<F::STAGES - 1>()"),
    ("products of the first part alone", MULTIPLY, "this->left_of(stage, part)", "this->left_of(stage, 0)"),
    ("the last slice is not added", MULTIPLY,
     "  // only empty groups are left\n        gpu::end_slice<COUNT>(sums[0][0], total[0][0]);\n", "\n"),
    ("fragments of b exchanged", MULTIPLY, "y[j / 2] + j % 2 * 2", "y[j / 2] + (1 - j % 2) * 2"),
    ("sums behind a row's end are stored", MULTIPLY, "if (n + 1 < this->a.n) line[n + 1]", "line[n + 1]"),
    ("sums behind the last row are stored", MULTIPLY, "            if (m >= this->a.m) continue;\n", ""),
    ("ldmatrix lanes of a", MULTIPLY, "step * 2 + lane / 16)", "step * 2 + lane / 8 % 2)"),
    # ---- what both kernels of products share
    ("a ring of one place less than it is filled, products", MULTIPLY_TILE, "stage % F::STAGES * F::STAGE_BYTES",
     "stage % (F::STAGES - 1) * F::STAGE_BYTES"),
    ("the first part's rows for all parts", MULTIPLY_TILE, "static_cast<uint64_t>(part) * a.m * a.a_pitch",
     "static_cast<uint64_t>(part) * 0"),
    ("columns behind a row's end", MULTIPLY_TILE, "at < a.k ? a.k - at : 0", "at < a.k ? 8 : 0"),
    ("rows behind the last one", MULTIPLY_TILE, "begin + line < rows && at < a.k", "at < a.k"),
    ("a slice's sums stay for the next one", MULTIPLY_TILE, "        sums[i] = 0;\n", ""),
    ("slices of their own walk on to the end", MULTIPLY_TILE, "a.is_apart && first + in_slice < all", "false"),
    ("slices over one another", MULTIPLY_TILE, "static_cast<uint64_t>(blockIdx.y) * a.m * a.n", "0"),
    # ---- that of warpgroups
    ("no wait for the last products of a slice", GROUP_MULTIPLY, "            gpu::group_wait<0>();\n", ""),
    ("a wait that leaves one group too many, warpgroups", GROUP_MULTIPLY, "gpu::group_wait<1>()",
     "gpu::group_wait<2>()"),
    ("loaders one stage too far ahead", GROUP_MULTIPLY, "AHEAD = F::STAGES - 2", "AHEAD = F::STAGES - 1"),
    ("loaders do not wait for their copies", GROUP_MULTIPLY, "            gpu::copy_wait<AHEAD>();\n", ""),
    ("copies that products do not see", GROUP_MULTIPLY,
     "            gpu::fence_async();\n            gpu::counter_arrive", "            gpu::counter_arrive"),
    ("a place is left while products read it", GROUP_MULTIPLY, "if (stage > 0) leave(stage - 1);", "leave(stage);"),
    ("a parity of the wrong phase, products", GROUP_MULTIPLY, "(i / F::STAGES + 1) % 2", "i / F::STAGES % 2"),
    ("operands of products under way are loaded over", GROUP_MULTIPLY, "multiply_stage(stage + 1, odd, sums)",
     "multiply_stage(stage + 1, even, sums)"),
    ("no fence before products", GROUP_MULTIPLY, "        gpu::group_fence();\n", ""),
    ("a step of 16 bytes, products", GROUP_MULTIPLY, "left + step * 32", "left + step * 16"),
    ("the first part alone, warpgroups", GROUP_MULTIPLY, "this->left_of(stage, part)", "this->left_of(stage, 0)"),
    ("c is not transposed", GROUP_MULTIPLY, "i / 2 % 2 * 8 + lane / 4", "i / 2 % 2 * 8 + lane % 4"),
    ("registers that nobody gives, products", GROUP_MULTIPLY, "        gpu::registers_give<LOADER_REGISTERS>();\n", ""),
    # ---- NaN and infinity in images
    ("a last element that a load does not look at", IMAGES, "found |= reaches(value, INFINITY);",
     "found |= i + 1 < count && reaches(value, INFINITY);"),
    ("a byte that makes its word forget what was found", IMAGES, "*found |= reaches", "*found = reaches"),
    ("NaN is not larger", IMAGES, "return !(fabsf(value) < limit);", "return fabsf(value) >= limit;"),
    ("a clamp in front of the look", IMAGES,
     "    *found |= reaches(value, a.limit);\n    if (!a.clamp) return value;\n",
     "    if (a.clamp) value = value < -1.0f ? -1.0f : value > 1.0f ? 1.0f : value;\n"
     "    *found |= reaches(value, a.limit);\n    if (!a.clamp) return value;\n"),
    ("only what the first thread of a block has found", IMAGES, "if (found && not_finite",
     "if (found && threadIdx.x == 0 && not_finite"),
    ("a stored latent whose other channels are looked at", IMAGES,
     "gpu::load_element(a.input, i % pixels * a.stride + i / pixels, a.input_type);",
     "gpu::load_element(a.input, i % pixels * a.stride + i / pixels, a.input_type);\n"
     "        found |= reaches(gpu::load_element(a.input, i, a.input_type), a.limit);"),
    ("a word that threads set without regard to each other", IMAGES, "atomicOr(not_finite, 1u)", "*not_finite = 1u"),
    # ---- one with roles, barriers that count, and products that are waited for later
    ("no wait for the last products", WGMMA, "        gpu::group_wait<0>();\n", ""),
    ("a wait that leaves one group too many, wgmma", WGMMA, "gpu::group_wait<1>()", "gpu::group_wait<2>()"),
    ("weights left before their products are waited for", WGMMA,
     "        gpu::group_wait<1>();\n        if (stage > 0) leave(&counters.weight_empty[(stage - 1) % F::WEIGHTS]);",
     "        leave(&counters.weight_empty[stage % F::WEIGHTS]);\n        gpu::group_wait<1>();"),
    ("operands loaded over those of products under way", WGMMA, "multiply_stage(stage + 1, odd, sums)",
     "multiply_stage(stage + 1, even, sums)"),
    ("no fence before the products", WGMMA, "        gpu::group_fence();\n", ""),
    ("bytes that nobody expects", WGMMA, "gpu::counter_arrive_expect(&counters.weight_full[place], bytes);",
     "gpu::counter_arrive(&counters.weight_full[place]);"),
    ("fewer bytes expected than come", WGMMA, "counter_arrive_expect(&counters.weight_full[place], bytes)",
     "counter_arrive_expect(&counters.weight_full[place], bytes / 2)"),
    ("full weights of the wrong parity", WGMMA, "stage / F::WEIGHTS % 2);", "(stage / F::WEIGHTS + 1) % 2);"),
    ("full weights of a parity that stays", WGMMA, "stage / F::WEIGHTS % 2);", "0);"),
    ("empty weights of the wrong parity", WGMMA, "(stage / F::WEIGHTS + 1) % 2", "stage / F::WEIGHTS % 2"),
    ("no wait for empty weights", WGMMA,
     "            gpu::counter_wait(&counters.weight_empty[place], (stage / F::WEIGHTS + 1) % 2);\n", ""),
    ("full input of the wrong parity", WGMMA, "chunk / F::INPUTS % 2);", "(chunk / F::INPUTS + 1) % 2);"),
    ("no wait for empty input", WGMMA,
     "            gpu::counter_wait(&counters.input_empty[place], (chunk / F::INPUTS + 1) % 2);\n", ""),
    ("input left before its last tap", WGMMA, "stage % F::TAPS == F::TAPS - 1;", "stage % F::TAPS == F::TAPS / 2;"),
    ("input told before it is there", WGMMA, "            gpu::copy_wait<1>();\n", ""),
    ("a place left by a lane that does not know the others", WGMMA, "        __syncwarp();\n", ""),
    ("one arrival too few makes a place empty", WGMMA, "input_empty[i], F::COMPUTERS / 32)",
     "input_empty[i], F::COMPUTERS / 32 - 1)"),
    ("no fence between stores and the async proxy", WGMMA, "        gpu::fence_async();\n", ""),
    ("a fence of one thread alone", WGMMA, "        gpu::fence_async();\n",
     "        if (threadIdx.x == 0) gpu::fence_async();\n"),
    ("no barrier behind the making of barriers", WGMMA,
     "        gpu::fence_async();\n        gpu::block_barrier::wait();", "        gpu::fence_async();"),
    ("rows of weights beyond the last channel unwritten", WGMMA,
     "            to[begin + i % units] = make_uint4(0, 0, 0, 0);\n", ""),
    ("copies of rows that are not there", WGMMA, "uint32_t bytes = this->channels_here() * gpu::ROW_BYTES;",
     "uint32_t bytes = F::BLOCK_K * gpu::ROW_BYTES;"),
    ("channels of the other warpgroup", WGMMA, "threadIdx.x / 32 / F::WARPS_M * F::MMA_N * 8", "0"),
    ("half a stage at the wrong channels", WGMMA, "weight + step * 32", "weight + (1 - step) * 32"),
    ("a step of 16 bytes", WGMMA, "weight + step * 32", "weight + step * 16"),
    ("rows of a descriptor twice as far apart", HOPPER, "(512 >> 4)", "(1024 >> 4)"),
    ("registers that nobody gives", WGMMA, "        gpu::registers_give<LOADER_REGISTERS>();\n", ""),
    ("a warp that keeps its registers", WGMMA, "        gpu::registers_give<LOADER_REGISTERS>();\n",
     "        if (threadIdx.x < CARRIER) gpu::registers_give<LOADER_REGISTERS>();\n"),
    ("a barrier of computers that waits for all", WGMMA, "gpu::part_barrier<1, 256>", "gpu::part_barrier<1, 384>"),
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
        for name in ("block", "memory", "tensor_core", "hopper"):
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


def compile_source(target, folder, source, flags):
    """Why it does not compile, or None."""
    done = run(["g++", *FLAGS, *flags, f"-I{folder}", f"-I{ROOT}", "-x", "c++", "-c", str(source), "-o", str(target)])
    return None if done.returncode == 0 else done.stderr[:400]


def try_kernels(folder, objects, replaced, users):
    """Compiles the kernels with the files of `replaced` in place of the tree's, the others as they were compiled
    first, and runs the cases on each of `users`; returns the verdicts of each."""
    (folder / "kernels/cuda").mkdir(parents=True, exist_ok=True)
    for name in USERS:
        text = replaced.get(name, (ROOT / name).read_text())
        # The cases are bf16: fp16 would only take time to compile.
        (folder / name).write_text(re.sub(r"(convolve_w?g?mma)<__half, F>", r"\1<__nv_bfloat16, F>", text))
    found = {user: {} for user in users}
    builds = (("plain", ["-O1"], []), ("race", RACE, []), ("asan", ASAN, ["-fsanitize=address,undefined"]))
    for kind, flags, link in builds:
        for cases, kernels in CASES.items():
            tried = [user for user in users if user in kernels]
            if not tried:
                continue
            parts = [str(folder / f"{kind}_{cases}.o")]
            if not replaced:
                compile_source(parts[0], folder, ROOT / f"tests/emulation/{cases}.cpp", flags)
            for kernel in kernels:
                parts.append(str(folder / f"{kind}_{kernel}{'_broken' if replaced and kernel in users else ''}.o"))
                if kernel not in users:
                    continue
                why = compile_source(parts[-1], folder, folder / KERNELS[kernel], flags)
                if why is not None:
                    return {kernel: {"compile": why}}
            program = str(folder / f"{kind}_{cases}")
            subprocess.run(["g++", *link, *parts, *objects[kind], "-o", program, "-pthread"], check=True)
            for user in tried:
                for seed in SEEDS if kind == "plain" else SEEDS[:1]:
                    result = verdict(run([program, user], LUNA_EMULATION_SEED=str(seed), ASAN_OPTIONS="detect_leaks=0"))
                    found[user][f"{kind} {seed}" if kind == "plain" else kind] = result
        if replaced and all(is_found(verdicts) for verdicts in found.values()):
            break  # the other builds take minutes and could only agree
    return found


def is_found(verdicts):
    return "compile" not in verdicts and set(verdicts.values()) != {"-"}


def tell(name, found):
    for user, verdicts in found.items():
        print(f"{name:62} {user:5}", " ".join(f"{build}: {word}" for build, word in verdicts.items()), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build/inject")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    folder = (ROOT / options.build).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    objects = compile_emulator(folder)
    sound = try_kernels(folder, objects, {}, list(KERNELS))
    tell("the kernels as they are", sound)
    failed = [f"the {user} kernel as it is" for user, verdicts in sound.items() if set(verdicts.values()) != {"-"}]
    count = 0
    for name, file, old, new in BUGS:
        if options.names and not any(part in name for part in options.names):
            continue
        text = (ROOT / file).read_text()
        if text.count(old) == 0:
            failed.append(f"{name}: the kernel no longer has {old!r}")
            continue
        count += 1
        # Warpgroups read columns without ldmatrix.
        users = [user for user in USERS[file]
                 if user not in ("wgmma", "group") or "ldmatrix lanes of columns" not in name]
        found = try_kernels(folder, objects, {file: text.replace(old, new)}, users)
        tell(name, found)
        failed += [f"{name}, {user}" for user, verdicts in found.items() if not is_found(verdicts)]
    for name in failed:
        print(f"NOT FOUND: {name}")
    print(f"{count} bugs, {len(failed)} not found")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
