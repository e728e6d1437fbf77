#!/usr/bin/env python3
"""Fails when ptxas spilled a register of any kernel in the logs that it is given, or says that it waits for each
wgmma at once (C7510 and its kind) or leaves setmaxnreg out (C7508).

    python3 tests/emulation/spills.py build/cuda/convolution_mma.log ...
"""
import re
import sys
from pathlib import Path


def spills(text):
    """(entry, spill line) of every kernel that spills, and how many kernels there were."""
    entry, count, found = "?", 0, []
    for line in text.split("\n"):
        match = re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line)
        if match:
            entry = f"{match[1]} for {match[2]}"
        match = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if "serialized" in line or re.search(r"\(C75\d\d\)", line):
            found.append(("ptxas", line.strip()))
        if match:
            count += 1
            if match[1] != "0" or match[2] != "0":
                found.append((entry, line.strip()))
    return found, count


def main():
    failed = 0
    for name in sys.argv[1:]:
        found, count = spills(Path(name).read_text())
        if count == 0:
            print(f"{name}: tells of no kernel")
            failed = 1
        for entry, line in found:
            print(f"{name}: {entry}: {line}")
            failed = 1
    print(f"spills: {'found' if failed else '0 found'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
