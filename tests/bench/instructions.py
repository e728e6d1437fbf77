"""Instructions of each hot kernel in a small fixed case, against tests/bench/instructions.txt.

    instructions.py PROGRAM [--write]

PROGRAM is a release build of bench_instructions; callgrind counts. Fails (1) when a count grew by
more than 3 %: make it smaller, or say with --write, in the commit that makes it grow, that it is
worth it. Ends with 77 and a line when nothing can be said: no valgrind, or another compiler than
the one whose code was counted.
"""
import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

KEPT = pathlib.Path(__file__).resolve().parent / "instructions.txt"
GROWTH_MAX = 0.03
SKIPPED = 77


def compiler_of(program):
    found = re.search(rb"GCC: \([^)]*\) ([\d.]+)", program.read_bytes())
    return f"gcc {found.group(1).decode()}" if found else "another compiler"


def count(program):
    names = subprocess.run([program, "names"], check=True, capture_output=True, text=True).stdout.split()
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "callgrind"
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}",
             "--toggle-collect=run_case", "--dump-after=run_case", str(program)],
            capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"instructions: valgrind failed:\n{done.stderr}")
        counts = {}
        for i, name in enumerate(names):
            text = out.with_name(f"callgrind.{i + 1}").read_text()
            counts[name] = int(re.search(r"^totals: (\d+)", text, re.MULTILINE).group(1))
    return counts


def read_kept():
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    compiler = next((line[2:] for line in lines if line.startswith("# gcc")), "")
    counts = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, number = line.split()
            counts[name] = int(number)
    return compiler, counts


def write(compiler, counts):
    lines = ["# Instructions of bench_instructions.c's cases, by instructions.py --write; release build of",
             f"# {compiler}"]
    lines += [f"{name} {number}" for name, number in counts.items()]
    KEPT.write_text("\n".join(lines) + "\n")


def compare(kept, counts):
    bad = 0
    for name in sorted(set(kept) | set(counts)):
        if name not in kept or name not in counts:
            print(f"instructions: {name}: only {'counted' if name in counts else 'kept'}, use --write")
            bad += 1
            continue
        growth = counts[name] / kept[name] - 1
        word = "ok"
        if growth > GROWTH_MAX:
            word = "GREW"
            bad += 1
        elif growth < -GROWTH_MAX:
            word = "shrank, use --write"
        print(f"{name:20} {kept[name]:12} {counts[name]:12} {100 * growth:+6.1f} %  {word}")
    return bad


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    program = arguments.program.resolve()
    if shutil.which("valgrind") is None:
        print("instructions: skipped: there is no valgrind")
        return SKIPPED
    compiler = compiler_of(program)
    kept_compiler, kept = read_kept()
    if not arguments.write and compiler != kept_compiler:
        print(f"instructions: skipped: counted with {kept_compiler or 'nothing'}, this is {compiler}")
        return SKIPPED
    counts = count(program)
    if arguments.write:
        write(compiler, counts)
        return 0
    return 1 if compare(kept, counts) else 0


if __name__ == "__main__":
    sys.exit(main())
