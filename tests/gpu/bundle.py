"""build/gpu-bundle: what a bare machine with a card and its driver needs to walk gpu.py.

    bin/            our programs, stripped
    lib/            our libraries, and those of Debian that they need beside the C library
    lib/cpp/        the C++ library, for machines without one: theirs goes first, tools of CUDA may need a newer one
    data/           listings and references of tests/golden
    manifest.json   commit, date, files, the newest C library that is asked for

libcudart is linked into libluna_cuda.so. cuBLAS is not used by our kernels; the roofline opens it where it is.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time

from kit import BUNDLE, ROOT, Programs, commit_of_tree

LIMIT = 40 << 20
PROGRAMS = ["luna", "gpu_model", "gpu_run", "gpu_oom_test", "gpu_peak"] + [
    f"{kind}_test_{name}" for kind in ("cuda", "emulated")
    for name in ("conformance_attention", "conformance_convolution", "conformance_edges", "conformance_exact",
                 "conformance_finite", "conformance_linear", "lane", "linears")]
LIBRARIES = ["libluna_cuda.so", "libluna_emulated.so", "gpu_oom.so", "fake_driver.so"]
CARDS = {"80", "86", "89", "90a", "120"}
# The C library and its loader come with every system, and have to fit each other.
SYSTEMS_OWN = re.compile(r"^(ld-linux|linux-vdso|lib(c|m|dl|pthread|rt|resolv|util|cuda)\.)")


def say(text):
    print(f"== {text}", file=sys.stderr, flush=True)


def build(folder):
    """Everything that is packed; minutes where the kernels have to be compiled for every card."""
    if not (folder / "build.ninja").exists():
        subprocess.run(["cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release"], check=True,
                       stdout=subprocess.DEVNULL)
    jobs = os.environ.get("LUNA_JOBS", str(os.cpu_count()))
    done = subprocess.run(["ninja", "--quiet", "-C", folder, "-j", jobs, "gpu_programs"])
    return done.returncode == 0


def needed_libraries(paths):
    """{name: path} of the shared libraries that these need, but the system's own."""
    found = {}
    for path in paths:
        done = subprocess.run(["ldd", path], capture_output=True, text=True, check=True)
        for name, where in re.findall(r"^\s*(\S+) => (\S+)", done.stdout, re.M):
            if where == "not":
                raise SystemExit(f"dev gpu: {path.name} needs {name}, which is not here")
            if not SYSTEMS_OWN.match(name):
                found[name] = where
    return found


def newest_c_library(paths):
    """The highest GLIBC version that any of these asks for."""
    versions = set()
    for path in paths:
        done = subprocess.run(["objdump", "-T", path], capture_output=True, text=True)
        versions |= {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_(\d+(?:\.\d+)+)", done.stdout)}
    return ".".join(map(str, max(versions)))


def cards_of(folder):
    """The cards for which every kernel file was compiled, as ptxas told its logs; those of warpgroups are 90a's."""
    found = set(CARDS)
    for path in folder.glob("cuda/*.log"):
        cards = set(re.findall(r"for 'sm_(\w+)'", path.read_text()))
        found &= cards | CARDS - {"90a"} if path.stem.endswith("wgmma") else cards
    return found


def copy(programs):
    """Fills the folder; returns the paths of everything that can be executed or loaded."""
    shutil.rmtree(BUNDLE, ignore_errors=True)
    for name in ("bin", "lib", "lib/cpp", "data"):
        (BUNDLE / name).mkdir(parents=True)
    for folder, names in (("bin", PROGRAMS), ("lib", LIBRARIES)):
        for name in names:
            subprocess.run(["strip", "-o", BUNDLE / folder / name, programs.path(name)], check=True)
    for name, path in programs.data.items():
        shutil.copy(path, BUNDLE / "data" / name)
    ours = [BUNDLE / "bin" / name for name in PROGRAMS] + [BUNDLE / "lib" / name for name in LIBRARIES]
    for name, path in sorted(needed_libraries(ours).items()):
        shutil.copy(path, BUNDLE / ("lib/cpp" if re.match(r"lib(stdc\+\+|gcc_s)\.", name) else "lib") / name)
    return [path for path in BUNDLE.rglob("*") if path.is_file() and path.parent.name != "data"]


def make(folder):
    say(f"building into {folder}")
    if not build(folder):
        print("dev gpu: the build failed, or has no libluna_cuda.so: is nvcc installed?", file=sys.stderr)
        return 1
    programs = Programs(folder)
    missing = [name for name in PROGRAMS + LIBRARIES if not programs.has(name)]
    if missing:
        print(f"dev gpu: not built: {', '.join(missing)}", file=sys.stderr)
        return 1
    cards = cards_of(folder)
    if not CARDS <= cards:
        print(f"dev gpu: libluna_cuda.so has no code for {', '.join(sorted(CARDS - cards))}", file=sys.stderr)
        return 1
    files = copy(programs)
    total = sum(path.stat().st_size for path in BUNDLE.rglob("*") if path.is_file())
    manifest = {"commit": commit_of_tree(), "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "bytes": total,
                "glibc": newest_c_library(files), "cards": sorted(cards),
                "files": sorted(str(p.relative_to(BUNDLE)) for p in BUNDLE.rglob("*") if p.is_file())}
    (BUNDLE / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    say(f"{BUNDLE}: {total / (1 << 20):.1f} MiB, {len(files)} programs and libraries, glibc {manifest['glibc']} or "
        f"newer, cards {' '.join(manifest['cards'])}")
    if total > LIMIT:
        print(f"dev gpu: the bundle has {total} bytes, more than {LIMIT}", file=sys.stderr)
        return 1
    return 0
