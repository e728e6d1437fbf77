"""The steps of gpu.py, in the order in which it walks them. Each returns a note, or raises Failed or Skip; numbers
that belong into the table go to walk.numbers, rows of the table to walk.row()."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

from kit import ROOT, Card, Daemon, Device, Failed, Skip, median, read_floats, read_safetensors

GIB = 1 << 30
PROMPT = "a photo of a (red:1.3) fox\nblurry, (ugly)\n"  # of tests/golden/make_real.py

# Bars of the issue for an H100 or H200; on other cards numbers are written down beside them.
BARS_MS = {"decode": 20.0, "encode": 10.0, "text faithful": 1.2, "text fast": 0.8}
BAR_MEMORY = 1.1 * GIB
BAR_CLIENTS = 0.95


# ---- what is here


def find_card(walk):
    """Which card, which driver."""
    if not walk.is_card:
        raise Skip(f"device {walk.device}: no card is asked for")
    walk.card = Card()
    walk.facts["card"] = walk.card.name
    walk.facts["driver"] = walk.card.driver
    return f"{walk.card.name}, driver {walk.card.driver}"


def make_models(walk):
    """Weights and inputs from their names."""
    folder = walk.scratch / "models"
    folder.mkdir()
    real = not walk.is_small
    maker = walk.programs.path("gpu_model")
    size = "real" if real else "small"
    side = walk.side
    jobs = [["clip_g", size, folder / "clip_g.safetensors"], ["clip_l", size, folder / "clip_l.safetensors"],
            ["noise", "latent", 4 * (side // 8) ** 2, 2, 0, walk.scratch / "latent.f32"],
            ["noise", "image", 3 * side * side, 0.5, 0.5, walk.scratch / "image.f32"],
            ["noise", "latent", 4 * 16 * 24, 2, 0, walk.scratch / "golden_latent.f32"],
            ["noise", "image", 128 * 192 * 3, 0.5, 0.5, walk.scratch / "golden_image.f32"]]
    if real:
        jobs += [["vae", walk.programs.data["vae.json"], folder / "vae.safetensors"],
                 ["vae", walk.programs.data["vae.json"], "outliers", folder / "outliers.safetensors"]]
    else:
        shutil.copy(walk.programs.data["small_vae.safetensors"], folder / "vae.safetensors")
    shutil.copy(walk.programs.data["small_vae.safetensors"], folder / "small_vae.safetensors")
    jobs += [["clip_l", "small", folder / "small_l.safetensors"], ["clip_g", "small", folder / "small_g.safetensors"]]
    running = [subprocess.Popen([maker, *map(str, job)], env=walk.programs.environment(), stdout=walk.log_file,
                                stderr=walk.log_file) for job in jobs]
    codes = [process.wait() for process in running]
    if any(codes):
        raise Failed(f"gpu_model ended with {codes}")
    (walk.scratch / "prompt.txt").write_text(PROMPT)
    walk.vae = folder / "vae.safetensors"
    walk.encoders = [folder / "clip_l.safetensors", folder / "clip_g.safetensors"]
    walk.small = [folder / "small_vae.safetensors", folder / "small_l.safetensors", folder / "small_g.safetensors"]
    return f"{sum(p.stat().st_size for p in folder.iterdir()) >> 20} MiB"


# ---- conformance


def run_suite(walk, name, seconds, **environment):
    """A cmocka program on the device."""
    prefix = "cuda_test_" if walk.is_card else "emulated_test_"
    return run_cmocka(walk, [walk.programs.path(prefix + name)], seconds, **environment)


def run_cmocka(walk, command, seconds, **environment):
    walk.log(f"$ {' '.join(map(str, command))}")
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                              env=walk.programs.environment(**environment), timeout=max(1, min(seconds, walk.left())))
    except subprocess.TimeoutExpired as error:
        walk.log((error.stdout or b"").decode(errors="replace"))
        raise Failed(f"not within {error.timeout:.0f} s")
    walk.log(done.stdout)
    good = done.stdout.count("[       OK ]")
    bad = [line.split("]")[1].strip() for line in done.stdout.splitlines() if line.startswith("[  FAILED  ]")]
    if done.returncode != 0:
        reason = next((line.strip() for line in done.stdout.splitlines() if "is not" in line or "ERROR" in line), "")
        raise Failed(f"ended with {done.returncode}, {good} passed, failed: {', '.join(bad[1:]) or '?'} {reason[:200]}")
    return f"{good} passed"


def conformance_convolution(walk):
    """Convolution against float64."""
    return run_suite(walk, "conformance_convolution", 150)


def conformance_linear(walk):
    """Linear and layer norm against float64."""
    return run_suite(walk, "conformance_linear", 90)


def conformance_attention(walk):
    """Attention against float64."""
    return run_suite(walk, "conformance_attention", 90)


def need_wgmma(walk):
    """The second kernels, of warpgroups, are for compute capability 9.0 alone; the emulator runs them too."""
    if not walk.has_fast or walk.is_card and walk.card.capability() != (9, 0):
        raise Skip("not of compute capability 9.0")


def conformance_wgmma(walk):
    """Convolution and linear against float64, by the kernels of warpgroups."""
    need_wgmma(walk)
    told = run_suite(walk, "conformance_convolution", 150, LUNA_CUDA_CONVOLUTION="wgmma")
    return f"{told}, {run_suite(walk, 'conformance_linear', 90, LUNA_CUDA_LINEARS='wgmma')}"


def conformance_exact(walk):
    """What must be exact: conversions, gathers, blends."""
    return run_suite(walk, "conformance_exact", 90)


def conformance_edges(walk):
    """NaN and infinity stay where they are."""
    return run_suite(walk, "conformance_edges", 60)


def conformance_finite(walk):
    """NaN and infinity are found where images come and go."""
    return run_suite(walk, "conformance_finite", 60)


def lanes(walk):
    """Arenas, marks, cancel."""
    return run_suite(walk, "lane", 90)


def cublaslt_library():
    """cuBLASLt as Python's packages bring it, or as the toolkit does; None: this machine has none."""
    places = [pathlib.Path(p) for p in sys.path if p.endswith("site-packages")] + [pathlib.Path("/usr/local/cuda")]
    patterns = ("nvidia/*/lib/libcublasLt.so.13", "lib64/libcublasLt.so.13")
    found = [path for place in places for pattern in patterns for path in sorted(place.glob(pattern))]
    return str(found[0]) if found else None


def linears(walk):
    """A row's bytes whatever rows are beside it, by both of our kernels and by cuBLASLt."""
    library = cublaslt_library() if walk.is_card else None
    prefix = "cuda_test_" if walk.is_card else "emulated_test_"
    told = run_cmocka(walk, [walk.programs.path(prefix + "linears")], 240,
                      **({"LUNA_CUBLASLT": library} if library else {}))
    return told if library or not walk.is_card else f"{told}; no libcublasLt.so.13 here, ours alone"


# ---- golden


def golden_distance(found, values, facts, is_image):
    """(largest, root mean square) difference at the places that the reference kept, in units of its deviation but for
    images; NaN is infinitely far."""
    stride = int(facts[0])
    here = found[::stride]
    if len(here) != len(values):
        raise Failed(f"{len(here)} values where the reference has {len(values)}")
    unit = 1.0 if is_image else facts[2]
    apart = [abs(a - b) / unit if a == a else float("inf") for a, b in zip(here, values)]
    return max(apart), (sum(d * d for d in apart) / len(apart)) ** 0.5


def golden_vae(walk):
    """SDXL's VAE at 128 x 192 pixels against the committed float64 references."""
    if walk.is_small:
        raise Skip("real sizes are for cards; ./dev test has them on the CPU")
    cases = read_safetensors(walk.programs.data["cases.safetensors"])
    bars = json.loads(pathlib.Path(walk.programs.data["bars.json"]).read_text())["bf16"]
    modes = ["faithful", "fast"] if walk.has_fast else ["faithful"]
    missed, told = [], []
    for kind, file in (("plain", walk.vae), ("outliers", walk.vae.with_name("outliers.safetensors"))):
        for mode in modes:
            with Device(walk, walk.device, mode, [file]) as device:
                device.ask("load")
                out = walk.scratch / "golden.f32"
                for what, words in (("raw", ("decode", 16, 24, "raw", 1, walk.scratch / "golden_latent.f32", out)),
                                    ("image", ("decode", 16, 24, "f32", 1, walk.scratch / "golden_latent.f32", out)),
                                    ("latent", ("encode", 128, 192, 1, walk.scratch / "golden_image.f32", out))):
                    device.ask(*words)
                    name = f"vae.{kind}.{what}"
                    facts = cases[name + ".facts"][1]
                    worst, rms = golden_distance(read_floats(out), cases[name + ".values"][1], facts, what != "latent")
                    if mode == "faithful":
                        bar = max(1e-4 if what != "latent" else 2e-4, 2 * facts[3])
                        good, limit = worst <= bar, f"worst {bar:.1e}"
                    else:
                        bar = bars[name]["rms"]
                        good, limit = rms <= bar, f"PyTorch's rms {bar:.1e}"
                    told.append(f"{name} {mode}: worst {worst:.1e}, rms {rms:.1e} ({limit})")
                    if not good:
                        missed.append(told[-1])
                    if kind == "plain" and what == "image":
                        walk.row(f"VAE decode 128x192, {mode}, against float64: worst / rms",
                                 f"{worst:.1e} / {rms:.1e}", limit, good)
    walk.log("\n".join(told))
    if missed:
        raise Failed("; ".join(missed))
    return f"{len(told)} outputs within their bars"


def golden_text(walk):
    """CLIP-L and bigG against the committed float64 references."""
    if walk.is_small:
        raise Skip("real sizes are for cards; ./dev test has them on the CPU")
    cases = read_safetensors(walk.programs.data["cases.safetensors"])
    told, missed = [], []
    for mode in ["faithful", "fast"] if walk.has_fast else ["faithful"]:
        with Device(walk, walk.device, mode, walk.encoders) as device:
            device.ask("load")
            out = walk.scratch / "golden.f32"
            device.ask("prompt", 1, walk.scratch / "prompt.txt", out)
            values = read_floats(out)
            largest, at = 0.0, 0
            for name, count in (("prompt.cond", 77 * 2048), ("prompt.pooled", 1280), ("negative.cond", 77 * 2048),
                                ("negative.pooled", 1280)):
                facts = cases[f"sdxl.{name}.facts"][1]
                worst, rms = golden_distance(values[at : at + count], cases[f"sdxl.{name}.values"][1], facts, False)
                at += count
                largest = max(largest, worst)
                told.append(f"{name} {mode}: worst {worst:.1e}, rms {rms:.1e} of its deviation")
                if mode == "faithful" and worst > max(2e-4, 2 * facts[3]):
                    missed.append(told[-1])
            walk.row(f"CLIP-L + G, {mode}, against float64: worst, relative", f"{largest:.1e}",
                     "2e-4" if mode == "faithful" else "-", None if mode == "fast" else not missed)
    walk.log("\n".join(told))
    if missed:
        raise Failed("; ".join(missed))
    return f"{len(told)} outputs"


def reference_of_cpu(walk):
    """The same networks at the measured size on Luna's CPU kernels, fp32: what errors are measured against."""
    with Device(walk, "cpu", "faithful", [walk.vae]) as device:
        device.ask("load")
        half = walk.side // 8
        begun = time.monotonic()
        device.ask("decode", half, half, "f32", 0, walk.scratch / "latent.f32", walk.scratch / "image.cpu", seconds=200)
        device.ask("encode", walk.side, walk.side, 0, walk.scratch / "image.f32", walk.scratch / "latent.cpu",
                   seconds=120)
        return f"{walk.side}², decode and encode in {time.monotonic() - begun:.1f} s on {device.label}"


def golden_large(walk):
    """Decode and encode at the measured size against the CPU; the bar is PyTorch's own bf16 where it is known."""
    found = {}
    half = walk.side // 8
    with Device(walk, walk.device, walk.fast, [walk.vae]) as device:
        device.ask("load")
        device.ask("decode", half, half, "f32", 1, walk.scratch / "latent.f32", walk.scratch / "image.gpu")
        device.ask("encode", walk.side, walk.side, 1, walk.scratch / "image.f32", walk.scratch / "latent.gpu")
        for what in ("image", "latent"):
            found[what] = device.ask("compare", walk.scratch / f"{what}.gpu", walk.scratch / f"{what}.cpu")
    walk.numbers["errors"] = found
    for what, distance in found.items():
        if not distance["worst"] <= 0.25 * max(1.0, distance["largest"]):
            raise Failed(f"{what} is off by {distance['worst']:.3g} of {distance['largest']:.3g}")
    return ", ".join(f"{what} off by {d['worst']:.1e} at most, rms {d['rms']:.1e}" for what, d in found.items())


def beside_torch(walk):
    """What PyTorch's bf16 is off by on this card, as a bar for ours."""
    theirs = walk.numbers.get("torch", {}).get("errors")
    if not theirs or "errors" not in walk.numbers:
        raise Skip("no PyTorch here, or no numbers of ours")
    missed = []
    for what, ours in walk.numbers["errors"].items():
        good = ours["rms"] <= theirs[what]["rms"]
        walk.row(f"{'decode' if what == 'image' else 'encode'} {walk.side}² bf16 against fp32: rms (worst)",
                 f"{ours['rms']:.2e} ({ours['worst']:.1e})",
                 f"PyTorch bf16: {theirs[what]['rms']:.2e} ({theirs[what]['worst']:.1e})", good)
        if not good:
            missed.append(f"{what}: rms {ours['rms']:.2e}, PyTorch's {theirs[what]['rms']:.2e}")
    if missed:
        raise Failed("; ".join(missed))
    return "no larger than PyTorch's"


# ---- measurements


def roofline(walk):
    """What the card can do at best."""
    if not walk.is_card:
        raise Skip("no card")
    command = [walk.programs.path("gpu_peak"), "0", *cublas_libraries()]
    done = subprocess.run(command, capture_output=True, text=True, env=walk.programs.environment(), timeout=60)
    walk.log(done.stdout + done.stderr)
    if done.returncode != 0:
        raise Failed(done.stderr.strip()[-200:])
    peak = walk.numbers["peak"] = json.loads(done.stdout)
    return ", ".join(f"{key} {value}" for key, value in peak.items())


def cublas_libraries():
    """cuBLAS as Python's packages bring it, and as the toolkit does."""
    places = [pathlib.Path(p) for p in sys.path if p.endswith("site-packages")] + [pathlib.Path("/usr/local/cuda")]
    patterns = ("nvidia/*/lib/libcublas.so.1?", "lib64/libcublas.so.1?")
    return [str(path) for place in places for pattern in patterns for path in sorted(place.glob(pattern), reverse=True)]


def torch_side(walk):
    """PyTorch on the same weights and inputs: eager, channels_last, compiled; CLIP as a graph."""
    if not walk.is_card:
        raise Skip("no card")
    probe = ["-c", "import torch, sys; sys.exit(not torch.cuda.is_available())"]
    pythons = [p for p in (sys.executable, shutil.which("python3")) if p]
    python = next((p for p in pythons if subprocess.run([p, *probe], capture_output=True).returncode == 0), None)
    if python is None:
        raise Skip("no Python here has a PyTorch that sees the card")
    out = walk.scratch / "torch.json"
    seconds = int(min(170, walk.left() - 60))
    script = pathlib.Path(__file__).parent / "torch_side.py"
    command = [python, script, walk.scratch, out, str(walk.side), str(seconds)]
    try:
        done = subprocess.run(command, stdout=walk.log_file, stderr=walk.log_file, timeout=seconds + 30)
        code = done.returncode
    except subprocess.TimeoutExpired:
        code = "its limit of time"
    if not out.exists():
        raise Failed(f"ended with {code}: {walk.last_of_log()}")
    theirs = walk.numbers["torch"] = json.loads(out.read_text())
    problems = theirs["problems"] + ([f"ended with {code}"] if code != 0 else [])
    return "; ".join([f"torch {theirs['version']}, {len(theirs['ms'])} rows", *problems])


def beside(walk, what):
    """PyTorch's times of a row, for the table."""
    rows = walk.numbers.get("torch", {}).get("ms", {})
    return ", ".join(f"{name[len(what) + 1:]} {ms:.2f}" for name, ms in rows.items() if name.startswith(what + " "))


def time_row(walk, label, bar, times, torch_name):
    best, middle = min(times), median(times)
    walk.row(label, f"{middle:.2f} (best {best:.2f})", f"≤ {bar:g}", middle <= bar if walk.is_card else None,
             beside(walk, torch_name))
    return middle


def bench_images(walk):
    """Decode and encode: from lane_run to lane_collect, copies from and to the host in it."""
    half, runs = walk.side // 8, walk.runs
    with Device(walk, walk.device, walk.fast, [walk.vae]) as device:
        device.ask("load")
        ms = {}
        for name, bar, words in (
                ("decode", "decode", ("decode", half, half, "u8", runs, walk.scratch / "latent.f32")),
                ("decode to f32", "decode", ("decode", half, half, "f32", runs, walk.scratch / "latent.f32")),
                ("encode", "encode", ("encode", walk.side, walk.side, runs, walk.scratch / "image.f32"))):
            answer = device.ask(*words, walk.scratch / "bench.out")
            ms[name] = time_row(walk, f"{name} {walk.side}², batch 1, ms", BARS_MS[bar], answer["ms"], bar)
            walk.numbers[name] = {"ms": ms[name], "operations": answer["operations"], "arena": answer["arena"]}
    best = walk.numbers.get("peak", {}).get("gemm_tflop_s") or walk.numbers.get("peak", {}).get("mma_tflop_s")
    for name in ("decode", "encode"):
        rate = walk.numbers[name]["operations"] / ms[name] / 1e9
        share = f"{100 * rate / best:.0f} % of {best:.0f}" if best else "-"
        walk.row(f"{name}: TFLOP/s, of the measured peak", f"{rate:.1f}", share, None)
    return ", ".join(f"{name} {value:.2f} ms" for name, value in ms.items())


def bench_convolutions(walk):
    """Decode and encode by both kernels for convolutions: which one should be the default of such cards."""
    need_wgmma(walk)
    half, found, told = walk.side // 8, {}, []
    jobs = {"decode": ("decode", half, half, "f32", walk.runs, walk.scratch / "latent.f32"),
            "encode": ("encode", walk.side, walk.side, walk.runs, walk.scratch / "image.f32")}
    for kernel in ("mma", "wgmma"):
        with Device(walk, walk.device, walk.fast, [walk.vae], LUNA_CUDA_CONVOLUTION=kernel) as device:
            device.ask("load")
            for name, words in jobs.items():
                out = walk.scratch / f"{name}.{kernel}"
                times = device.ask(*words, out)["ms"]
                apart = device.ask("compare", out, walk.scratch / f"{name}.mma")
                found[f"{name} {kernel}"] = {"ms": median(times), "apart": apart}
                told.append(f"{name} {kernel} {median(times):.2f} ms")
                if not apart["worst"] <= 0.25 * max(1.0, apart["largest"]):
                    raise Failed(f"{name}: {kernel} is off mma by {apart['worst']:.3g} of {apart['largest']:.3g}")
    walk.numbers["convolutions"] = found
    for name in jobs:
        mma, wgmma = found[f"{name} mma"], found[f"{name} wgmma"]
        walk.row(f"{name} {walk.side}², convolutions by mma / by wgmma, ms (rms apart)",
                 f"{mma['ms']:.2f} / {wgmma['ms']:.2f} ({wgmma['apart']['rms']:.1e})", "-", None)
    return ", ".join(told)


def bench_text(walk):
    """CLIP-L + G for a prompt and a negative."""
    told = []
    for mode in ["faithful", "fast"] if walk.has_fast else ["faithful"]:
        for what, environment in text_ways(walk):
            with Device(walk, walk.device, mode, walk.encoders, **environment) as device:
                device.ask("load")
                answer = device.ask("prompt", walk.runs, walk.scratch / "prompt.txt", walk.scratch / "bench.out")
                middle = time_row(walk, f"CLIP-L + G, two rows, {mode}{what}, ms", BARS_MS[f"text {mode}"],
                                  answer["ms"], f"text {mode}")
                told.append(f"{mode}{what} {middle:.2f} ms")
    return ", ".join(told)


def text_ways(walk):
    """How a text may run, and by which environment: as it does, launch by launch, by warpgroups, by cuBLASLt."""
    ways = [("", {}), (", no graph", {"LUNA_CUDA_GRAPHS": "0"})]
    if walk.is_card and walk.card.capability() == (9, 0):
        ways += [(", wgmma", {"LUNA_CUDA_LINEARS": "wgmma"})]
    library = cublaslt_library()
    if walk.is_card and library:
        by_library = {"LUNA_CUDA_LINEARS": "cublaslt", "LUNA_CUBLASLT": library}
        ways += [(", cuBLASLt", by_library), (", cuBLASLt, no graph", by_library | {"LUNA_CUDA_GRAPHS": "0"})]
    return ways


def bench_kernels(walk):
    """Where the time of a run goes, by the card's own clock; an event behind each launch is in it."""
    half, found, launches = walk.side // 8, {}, {}
    for kind, mode, files, words in (
            ("decode", walk.fast, [walk.vae], ("decode", half, half, "f32", 1, walk.scratch / "latent.f32")),
            ("encode", walk.fast, [walk.vae], ("encode", walk.side, walk.side, 1, walk.scratch / "image.f32")),
            ("CLIP-L + G, faithful", "faithful", walk.encoders, ("prompt", 1, walk.scratch / "prompt.txt"))):
        with Device(walk, walk.device, mode, files) as device:
            device.ask("load")
            answer = device.try_to("trace", "on")
            if answer.get("error") == "UNIMPLEMENTED":
                raise Skip(answer["message"])
            answer = device.ask(*words, walk.scratch / "bench.out")
            found[kind], launches[kind] = answer["kernels"], answer["launches"]
        if not found[kind] or any(entry["ms"] < 0 for entry in found[kind].values()):
            raise Failed(f"{kind}: the device tells no times: {found[kind]}")
        whole, sum_of_launches = (sum(e["ms"] for e in kinds[kind].values()) for kinds in (found, launches))
        if abs(whole - sum_of_launches) > 0.001 * whole:
            raise Failed(f"{kind}: {whole} ms of operations, but of launches {sum_of_launches} ms")
    walk.numbers["kernels"], walk.numbers["launches"] = found, launches
    return ", ".join(f"{kind} {sum(e['ms'] for e in kernels.values()):.2f} ms in {len(kernels)} kinds of operations"
                     for kind, kernels in found.items())


def bench_memory(walk):
    """How much the device's memory rises over the bare context, as the driver tells it."""
    if not walk.is_card:
        raise Skip("no card whose driver could tell")
    half = walk.side // 8
    empty = walk.card.memory().used
    with Device(walk, walk.device, walk.fast, [walk.vae]) as device:
        bare = walk.card.memory().used
        device.ask("load")
        loaded = walk.card.memory().used
        answer = device.ask("decode", half, half, "f32", 2, walk.scratch / "latent.f32", walk.scratch / "bench.out")
        full = walk.card.memory().used
    good = full - loaded <= BAR_MEMORY
    walk.row(f"device memory, decode {walk.side}²: rise over the bare context, MiB", f"{(full - bare) >> 20}",
             f"≤ weights ({(loaded - bare) >> 20}) + 1126", good)
    note = (f"context {(bare - empty) >> 20} MiB, weights {(loaded - bare) >> 20}, "
            f"run {(full - loaded) >> 20} (arena {answer['arena'] >> 20})")
    if not good:
        raise Failed(note)
    return note


def bench_clients(walk):
    """Eight clients of the daemon against one decode after the other on the bare lane."""
    seconds = 10 if not walk.is_small else 1
    with Daemon(walk, [walk.vae]) as daemon:
        one = daemon.bench(walk.side, 1, seconds)
        eight = daemon.bench(walk.side, 8, seconds)
    rate = eight["all"]["per_second"]
    walk.row(f"one client, decode {walk.side}²: per second, p50 ms",
             f"{one['all']['per_second']:.1f}, {one['all']['p50_ms']:.1f}", "-", None)
    if one["errors"] or eight["errors"]:
        raise Failed(f"{one['errors'] + eight['errors']} errors")
    if "decode to f32" not in walk.numbers:
        return f"{rate:.1f} per second; no decode was measured to stand beside"
    ratio = rate * walk.numbers["decode to f32"]["ms"] / 1000
    walk.row(f"8 clients, decode {walk.side}²: per second, of 1 / (one decode's time)", f"{rate:.1f}, {ratio:.2f}",
             f"≥ {BAR_CLIENTS}", ratio >= BAR_CLIENTS if walk.is_card else None)
    return f"{rate:.1f} per second, {ratio:.2f} of one lane's"


def daemon_trace(walk):
    """What the daemon did for two clients in a second, for Chrome's viewer: beside the results."""
    path = walk.trace_path
    with Daemon(walk, [walk.vae]) as daemon:
        daemon.bench(walk.side, 1, 1)
        daemon.bench(walk.side, 2, 1, "--trace", path)
    document = json.loads(path.read_text())
    events = document["traceEvents"] if isinstance(document, dict) else document
    kernels = [event for event in events if "convolution" in str(event.get("name"))]
    if not kernels:
        raise Failed(f"{len(events)} events and no convolution among them")
    return f"{len(events)} events, {len(kernels)} convolutions"


def same_card(walk):
    """A client with torch on the same card: tensors by CUDA IPC, bytes as in frames; killed, its lease ends."""
    if not walk.is_card:
        raise Skip("no card; tests/system/test_device_memory.py does it on the emulated device")
    probe = ["-c", "import google.protobuf, numpy, torch, zmq, sys; sys.exit(not torch.cuda.is_available())"]
    pythons = [p for p in (sys.executable, shutil.which("python3")) if p]
    python = next((p for p in pythons if subprocess.run([p, *probe], capture_output=True).returncode == 0), None)
    if python is None:
        raise Skip("no Python here has a PyTorch that sees the card, with pyzmq, protobuf and numpy")
    out = walk.scratch / "ipc.json"
    seconds = 9
    script = pathlib.Path(__file__).parent / "ipc_side.py"
    with Daemon(walk, [walk.vae]) as daemon:
        command = [python, script, ROOT / "clients" / "python", daemon.endpoint, out, str(walk.side), str(seconds)]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=walk.log_file)
        try:
            timer = threading.Timer(max(1, min(150, walk.left())), client.kill)
            timer.start()
            is_ready = client.stdout.readline() == b"ready\n"
            timer.cancel()
            if not is_ready:
                raise Failed(f"the client ended: {walk.last_of_log()}")
        finally:
            client.kill()  # with its lease
            client.wait()
        found = json.loads(out.read_text())
        wait_for_lent(daemon, 0)
    for name, ms in found["ms"].items():
        walk.row(f"decode {walk.side}² of a torch CUDA tensor and back, {name}: ms", f"{ms:.2f}", "-", None)
    if found["different"]:
        raise Failed(f"other bytes than in frames: {', '.join(found['different'])}")
    if found["device_bytes"] == 0:
        raise Failed("no byte went by CUDA IPC: the log of luna at debug, or the daemon's, says why")
    return f"{found['device_bytes'] >> 20} MiB by CUDA IPC, the same bytes; the lease ended with its client"


def wait_for_lent(daemon, wanted):
    """Until clients hold so many bytes of the device."""
    deadline = time.monotonic() + 5
    while True:
        (device,) = json.loads(daemon.cli("status", "--json").stdout)["devices"]
        if device["lent_bytes"] == wanted:
            return
        if time.monotonic() > deadline:
            raise Failed(f"{device['lent_bytes']} bytes are lent, not {wanted}")
        time.sleep(0.1)


# ---- faults


def oom(walk):
    """The n-th allocation fails, for every n: RESOURCE_EXHAUSTED, no leak, and the next try has the same bytes."""
    return oom_of_driver(walk) if walk.is_card else oom_of_emulator(walk)


def oom_shim(walk):
    """The shim itself, in front of a driver of no card."""
    return run_cmocka(walk, [walk.programs.path("gpu_oom_test"), walk.programs.path("fake_driver.so")], 30,
                      LD_PRELOAD=str(walk.programs.path("gpu_oom.so")))


def work(walk, device):
    """A load and a decode; None, or the error that came."""
    for words in (("load",), ("decode", 8, 8, "f32", 1, walk.scratch / "small.f32", walk.scratch / "small.out")):
        answer = device.try_to(*words)
        if "error" in answer:
            return answer
    return None


def make_small_latent(walk):
    subprocess.run([walk.programs.path("gpu_model"), "noise", "latent", "256", "2", "0", walk.scratch / "small.f32"],
                   env=walk.programs.environment(), check=True)


def held_at_rest(device, enough=-1):
    """Allocations that are held when no more are given back: a thread of the device's own frees memory."""
    before, now = None, device.ask("count")["held"]
    while now > enough and before != now:
        time.sleep(0.3)
        before, now = now, device.ask("count")["held"]
    return now


def oom_of_driver(walk):
    make_small_latent(walk)
    with Device(walk, walk.device, walk.fast, [walk.small[0]], preload=walk.programs.path("gpu_oom.so")) as device:
        if work(walk, device) is not None:
            raise Failed("a load and a decode fail without a fault")
        want = (walk.scratch / "small.out").read_bytes()
        device.ask("drop")
        held = held_at_rest(device)
        device.ask("arm", 0)
        work(walk, device)
        device.ask("drop")
        calls = device.ask("count")["calls"]
        if calls < 2:
            raise Failed(f"the shim saw {calls} allocations: it does not stand in front of the driver")
        for n in range(1, calls + 1):
            device.ask("arm", n)
            error = work(walk, device)
            if error is not None and error["error"] != "RESOURCE_EXHAUSTED":
                raise Failed(f"allocation {n} of {calls}: {error['error']}: {error['message']}")
            device.ask("drop")
            if device.ask("count")["calls"] < n:
                raise Failed(f"allocation {n} of {calls} was never asked for")
            now = held_at_rest(device, held)
            if now > held:
                raise Failed(f"allocation {n} of {calls}: {now - held} allocations leak")
            if error is None:
                walk.log(f"allocation {n} of {calls} was done without")
        device.ask("arm", 0)
        if work(walk, device) is not None or (walk.scratch / "small.out").read_bytes() != want:
            raise Failed("other bytes after the faults")
    return f"{calls} allocations"


def oom_of_emulator(walk):
    make_small_latent(walk)
    for n in (1, 2, 5, 20, 60, 100000):
        with Device(walk, walk.device, walk.fast, [walk.small[0]], LUNA_EMULATION_FAIL_AT=str(n)) as device:
            error = work(walk, device)
            if error is not None and error["error"] != "RESOURCE_EXHAUSTED":
                raise Failed(f"allocation {n}: {error['error']}: {error['message']}")
            if (error is None) != (n == 100000):
                raise Failed(f"allocation {n}: {error}")
            if error is not None and work(walk, device) is not None:
                raise Failed(f"allocation {n}: no second try")
    return "allocations 1, 2, 5, 20 and 60 of the emulator"


def hog(walk):
    """Another process takes the memory: RESOURCE_EXHAUSTED, and the same bytes when it is gone."""
    half = walk.side // 8
    decode = ("decode", half, half, "f32", 1, walk.scratch / "latent.f32", walk.scratch / "hog.out")
    if not walk.is_card:
        make_small_latent(walk)
        with Device(walk, walk.device, walk.fast, [walk.vae], LUNA_EMULATION_BYTES="200000") as device:
            if work(walk, device) is None:
                raise Failed("a decode in 200 kB")
        return "the emulator with less memory"
    with Device(walk, walk.device, walk.fast, [walk.vae]) as device:
        device.ask("load")
        with Device(walk, walk.device, walk.fast, [walk.small[0]]) as other:
            free = walk.card.memory().free
            answer = {"error": "not tried"}
            for leave in (512 << 20, 768 << 20, 300 << 20):
                answer = other.try_to("reserve", max(1, free - leave))
                if "error" not in answer:
                    break
            if "error" in answer:
                raise Failed(f"the hog gets no {free >> 20} MiB: {answer}")
            left = walk.card.memory().free
            answer = device.try_to(*decode)
            if answer.get("error") != "RESOURCE_EXHAUSTED":
                raise Failed(f"with {left >> 20} MiB left: {answer}")
        device.ask(*decode)
        if "image.gpu" in os.listdir(walk.scratch) and (
                (walk.scratch / "hog.out").read_bytes() != (walk.scratch / "image.gpu").read_bytes()):
            raise Failed("other bytes after the hog")
    return f"RESOURCE_EXHAUSTED with {left >> 20} MiB left, right afterwards"


def hog_daemon(walk):
    """The daemon beside a hog: tiles or a refusal, and it lives."""
    if not walk.is_card:
        raise Skip("the emulator's memory is each process's own")
    latent = walk.scratch / "latent.safetensors"
    write_latent(walk, latent)
    with Daemon(walk, [walk.vae]) as daemon:
        daemon.cli("decode", latent, "-o", walk.scratch / "before.png")
        with Device(walk, walk.device, walk.fast, [walk.small[0]]) as other:
            other.try_to("reserve", max(1, walk.card.memory().free - (400 << 20)))
            done = daemon.cli("decode", latent, "-o", walk.scratch / "beside.png", "--timeout", 30, check=False)
        after = daemon.cli("decode", latent, "-o", walk.scratch / "after.png", "--timeout", 60)
    walk.log(done.stderr + after.stderr)
    refused = done.returncode == 1 and "RESOURCE_EXHAUSTED" in done.stderr
    if done.returncode not in (0, 4) and not refused:
        raise Failed(f"luna decode ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    if (walk.scratch / "before.png").read_bytes() != (walk.scratch / "after.png").read_bytes():
        raise Failed("another picture after the hog")
    return "answered" if done.returncode == 0 else f"refused: {done.stderr.strip()[-120:]}"


def write_latent(walk, path):
    data = (walk.scratch / "latent.f32").read_bytes()
    side = walk.side // 8
    entry = {"dtype": "F32", "shape": [1, 4, side, side], "data_offsets": [0, len(data)]}
    header = json.dumps({"latent": entry}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def kill(walk):
    """The executor is killed while eight clients wait: every request is answered, by another process."""
    with Daemon(walk, [walk.vae]) as daemon:
        daemon.bench(walk.side, 1, 1)
        before = daemon.executor()
        if before == 0:
            raise Failed(f"the status has no executor of {walk.device}")
        result = {}

        def load():
            try:
                result["bench"] = daemon.bench(walk.side, 8, 6 if not walk.is_small else 3)
            except Exception as error:
                result["error"] = error

        thread = threading.Thread(target=load)
        thread.start()
        time.sleep(1.5)
        os.kill(before, signal.SIGKILL)
        thread.join()
        if "error" in result:
            raise Failed(str(result["error"]))
        after = daemon.executor()
    counts = result["bench"]
    if counts["errors"] or counts["all"]["requests"] < 8:
        raise Failed(f"{counts['errors']} errors, {counts['all']['requests']} answers")
    if after in (0, before):
        raise Failed(f"the executor was {before} and is {after}")
    return f"{counts['all']['requests']} answers, 0 errors, slowest {counts['all']['max_ms']:.0f} ms"


# ---- compute-sanitizer


def sanitizer_path():
    found = shutil.which("compute-sanitizer")
    places = ["/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda/compute-sanitizer/compute-sanitizer"]
    found = found or next((p for p in places if os.path.exists(p)), None)
    if found is None:
        raise Skip("no compute-sanitizer here")
    return found


def sanitize_suite(walk):
    """memcheck over what is compared with float64."""
    if not walk.is_card:
        raise Skip("no card: ./dev test has ASan and the race detector")
    command = [sanitizer_path(), "--tool", "memcheck", "--error-exitcode", "9", "--print-limit", "10"]
    return ", ".join(run_cmocka(walk, command + [walk.programs.path(f"cuda_test_conformance_{name}")], 120)
                     for name in ("convolution", "linear", "attention"))


def sanitize(walk, tool, **environment):
    """A small VAE and small encoders under one tool."""
    if not walk.is_card:
        raise Skip("no card: ./dev test has ASan and the race detector")
    make_small_latent(walk)
    wrapper = [sanitizer_path(), "--tool", tool, "--error-exitcode", "9", "--print-limit", "10"]
    with Device(walk, walk.device, walk.fast, walk.small, wrapper=wrapper, **environment) as device:
        device.ask("load", seconds=60)
        device.ask("decode", 8, 8, "f32", 1, walk.scratch / "small.f32", walk.scratch / "small.out", seconds=60)
        device.ask("prompt", 1, walk.scratch / "prompt.txt", walk.scratch / "small.out", seconds=60)
    return "no error"


def sanitize_memory(walk):
    """memcheck."""
    return sanitize(walk, "memcheck")


def sanitize_races(walk):
    """racecheck."""
    return sanitize(walk, "racecheck")


def sanitize_wgmma(walk):
    """memcheck and racecheck over the kernels of warpgroups."""
    need_wgmma(walk)
    wgmma = {"LUNA_CUDA_CONVOLUTION": "wgmma", "LUNA_CUDA_LINEARS": "wgmma"}
    sanitize(walk, "memcheck", **wgmma)
    return sanitize(walk, "racecheck", **wgmma)


def sanitize_barriers(walk):
    """synccheck."""
    return sanitize(walk, "synccheck")


def sanitize_unwritten(walk):
    """initcheck."""
    return sanitize(walk, "initcheck")


# Measurements stand before faults: what breaks a driver must not cost the numbers.
STEPS = [
    ("card", find_card), ("models", make_models),
    ("conformance, convolution", conformance_convolution), ("conformance, wgmma", conformance_wgmma),
    ("conformance, linear", conformance_linear), ("conformance, attention", conformance_attention),
    ("conformance, exact", conformance_exact), ("conformance, edges", conformance_edges),
    ("conformance, finite", conformance_finite), ("lanes", lanes), ("linears", linears),
    ("golden VAE", golden_vae), ("golden CLIP", golden_text), ("CPU reference", reference_of_cpu),
    ("golden, large", golden_large),
    ("roofline", roofline), ("PyTorch", torch_side), ("bf16 beside PyTorch", beside_torch),
    ("decode, encode", bench_images), ("convolutions, mma and wgmma", bench_convolutions),
    ("CLIP-L + G", bench_text), ("time by operation", bench_kernels),
    ("device memory", bench_memory),
    ("8 clients", bench_clients), ("client on the same card", same_card), ("trace of the daemon", daemon_trace),
    ("OOM shim", oom_shim), ("OOM at each allocation", oom), ("memory hog", hog), ("memory hog, daemon", hog_daemon),
    ("executor killed", kill),
    ("sanitizer: memcheck", sanitize_memory), ("sanitizer: racecheck", sanitize_races),
    ("sanitizer: synccheck", sanitize_barriers), ("sanitizer: initcheck", sanitize_unwritten),
    ("sanitizer: wgmma", sanitize_wgmma), ("sanitizer: conformance", sanitize_suite),
]
