#!/usr/bin/env python3
"""./dev gpu: everything that only a card can tell, in one command, ten minutes and no network.

    gpu.py [--out RESULTS.md] [--seconds 570] [--only WORD] [--skip WORDS]   on the machine with the card
    gpu.py --bundle                                           before: build/gpu-bundle, for such a machine
    gpu.py --dry-run                                          the same walk on the emulated device, small
    gpu.py --device cpu                                       real sizes on another device, to test the walk

Programs come from build/gpu-bundle if it is there, else from the build folder (--build). Every step is a line: ok,
failed or skipped, its seconds, and a note; a step that fails stops nothing, and the exit status is 1 at the end. What
a step printed is in the log beside the results, all numbers are in the JSON. `--out` is the table for RESULTS.md.

References: pixels and hidden states at small size against float64 (tests/golden/real, committed), at the measured
size against Luna's own CPU kernels in fp32, computed on that machine; PyTorch's bf16 against the same.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import bundle  # noqa: E402
import report  # noqa: E402
from kit import BUNDLE, ROOT, Failed, Programs, Skip, commit_of_tree  # noqa: E402
from steps import STEPS  # noqa: E402


class Walk:
    """What the steps share."""

    def __init__(self, options, programs):
        self.programs = programs
        self.device = "emulated" if options.dry_run else options.device
        self.is_small = options.dry_run
        self.is_card = self.device.startswith("cuda")
        self.has_fast = self.device != "cpu"
        self.fast = "fast" if self.has_fast else "faithful"
        self.side = options.side or (32 if self.is_small else 1024)
        self.runs = 30 if self.is_card else 1
        self.end = time.monotonic() + options.seconds
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="luna-gpu-"))
        self.log_path = options.out.with_suffix(".log")
        self.trace_path = options.out.with_suffix(".trace.json")
        self.log_file = open(self.log_path, "w", buffering=1)
        self.facts = {"commit": programs.manifest.get("commit") or commit_of_tree(), "device": self.device,
                      "programs": programs.what, "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
        self.numbers, self.rows, self.results = {}, [], []
        self.card = None

    def left(self):
        return self.end - time.monotonic()

    def log(self, text):
        self.log_file.write(text + "\n")

    def last_of_log(self):
        lines = [line.strip() for line in self.log_path.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][-300:] if lines else ""

    def row(self, what, value, bar, good, peer=""):
        """A row of the table; good is None where there is no bar."""
        self.rows.append((what, value, bar, good, peer))

    def take(self, name, step):
        begun = time.monotonic()
        self.log(f"\n==== {name}")
        try:
            if self.left() < 5:
                raise Skip("no time is left")
            state, note = "ok", step(self)
        except Skip as why:
            state, note = "skipped", str(why)
        except Failed as why:
            state, note = "failed", str(why)
        except subprocess.TimeoutExpired as why:
            words = [pathlib.Path(str(why.cmd[0])).name, *map(str, why.cmd[1:2])]
            state, note = "failed", f"{' '.join(words)}: not within {why.timeout:.0f} s"
        except Exception as why:  # a step that breaks is a step that failed: the next ones still count
            self.log(traceback.format_exc())
            state, note = "failed", f"{type(why).__name__}: {why}"
        seconds = time.monotonic() - begun
        self.log(f"==== {state}, {seconds:.1f} s: {note}")
        self.results.append((name, state, seconds, note))
        print(f"{state:8}{seconds:7.1f} s  {name}: {note}", flush=True)


def read_options():
    parser = argparse.ArgumentParser(prog="dev gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", action="store_true", help="build what a machine with a card needs")
    parser.add_argument("--dry-run", action="store_true", help="on the emulated device, with small shapes")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--side", type=int, help="pixels of the square image that is measured: 1024")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--out", type=pathlib.Path, help="where the table goes; the log beside it")
    parser.add_argument("--seconds", type=float, default=570, help="for the whole walk")
    parser.add_argument("--only", default="", help="steps whose names contain this, and those that make models")
    parser.add_argument("--skip", default="", help="words, by commas: not the steps whose names contain one")
    return parser.parse_args()


def is_wanted(options, name, step):
    if step.__name__ in ("find_card", "make_models"):
        return True
    return options.only in name and not any(word in name for word in options.skip.split(",") if word)


def find_programs(options):
    """The bundle's if there is one; a dry run where Luna was built is about what was built."""
    built = Programs(options.build.resolve())
    if not (BUNDLE / "manifest.json").exists() or (built.has("gpu_run") and options.dry_run):
        return built
    return built if options.build != ROOT / "build" else Programs.of_bundle(BUNDLE)


def main():
    options = read_options()
    if options.bundle:
        return bundle.make(options.build.resolve())
    options.out = (options.out or options.build / "gpu" / "RESULTS.md").resolve()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    programs = find_programs(options)
    if not programs.has("gpu_run"):
        print(f"dev gpu: no programs in {options.build}, and no bundle: ./dev gpu --bundle makes one", file=sys.stderr)
        return 2
    walk = Walk(options, programs)
    print(f"{walk.device}: programs of the {programs.what}", flush=True)
    try:
        for name, step in STEPS:
            if is_wanted(options, name, step):
                walk.take(name, step)
            if name == "card" and walk.is_card and walk.card is None:
                break
        options.out.write_text(report.write(walk))
        options.out.with_suffix(".json").write_text(json.dumps(walk.facts | walk.numbers, indent=1) + "\n")
    finally:
        shutil.rmtree(walk.scratch, ignore_errors=True)
    print(f"\n{options.out.read_text()}\n{options.out}, .json and .log beside it")
    missed = [what for what, _, _, good, _ in walk.rows if good is False]
    failed = [name for name, state, _, _ in walk.results if state == "failed"]
    no_card = walk.is_card and walk.card is None
    print(f"{len(failed)} steps failed, {len(missed)} bars missed" + (", no card" if no_card else ""))
    return 1 if failed or missed or no_card else 0


if __name__ == "__main__":
    os.environ.pop("LUNA_EMULATION_SEED", None)
    sys.exit(main())
