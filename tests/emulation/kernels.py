#!/usr/bin/env python3
"""Fails when a kernel of kernels/cuda was never executed, in any of the element types and forms that its library
has; the library names in the file $LUNA_EMULATION_SEEN what it executes.

    python3 tests/emulation/kernels.py build/emulated/seen build/libluna_emulated.so
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DECLARATION = re.compile(r"GPU_KERNEL\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(")


def declared():
    """The names of all kernels."""
    names = set()
    for path in sorted((ROOT / "kernels/cuda").glob("*.cu")):
        text = path.read_text()
        found = DECLARATION.findall(text)
        if len(found) != text.count("GPU_KERNEL"):
            raise SystemExit(f"{path}: {text.count('GPU_KERNEL')} kernels, {len(found)} of them have a name")
        names.update(found)
    return names


def instances(library, names):
    """Offset to the instances of kernels that have their code there."""
    listing = subprocess.run(["nm", "-C", "--defined-only", library], capture_output=True, text=True, check=True)
    found = {}
    for line in listing.stdout.split("\n"):
        match = re.match(r"([0-9a-f]+) [tT] (?:void )?\(anonymous namespace\)::(\w+)(<.*>)?\(", line)
        if match and match[2] in names and "[clone" not in line:
            found.setdefault(int(match[1], 16), set()).add(match[2] + (match[3] or ""))
    return found


def executed(seen, library):
    """The offsets of this library that the file names."""
    offsets = set()
    for line in Path(seen).read_text().splitlines():
        path, offset = line.rsplit(" ", 1)
        if Path(path).resolve() == Path(library).resolve():
            offsets.add(int(offset, 16))
    return offsets


def main():
    seen, library = sys.argv[1:]
    names = declared()
    code = instances(library, names)
    ran = executed(seen, library)
    present = {re.sub("<.*", "", name) for both in code.values() for name in both}
    missing = sorted(names - present) + sorted(min(both) for at, both in code.items() if at not in ran)
    for name in missing:
        print(f"never executed: {name.replace('(anonymous namespace)::', '')}")
    print(f"{len(names)} kernels in {len(code)} forms, {len(missing)} never executed")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
