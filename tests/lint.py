#!/usr/bin/env python3
"""What can be checked mechanically: format, includes between folders, contracts, leftovers, clang-tidy.

    python3 tests/lint.py --build build [--no-tidy]
"""
import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["base", "kernels", "messages", "runtime", "models", "actors", "clients"]

# Who may include whom, beside itself and base.
ALLOWED = {
    "base": set(),
    "kernels": set(),
    "messages": set(),
    "runtime": set(),
    "models": {"kernels"},
    "actors": {"models", "kernels", "messages", "runtime"},
    "clients": {"messages", "models/files"},
}
# Single files that may do more, each for the reason DESIGN gives.
EXCEPTIONS = {("clients/cli/luna.c", "actors/serve.h")}

BANNED = {
    r"\bstrcpy\(": "text_set or memcpy with a checked length",
    r"\bsprintf\(": "snprintf",
    r"\bstrcat\(": "snprintf",
    r"\bgets\(": "fgets",
    r"\balloca\(": "a bounded array",
    r"\b(TODO|FIXME|XXX|HACK)\b": "an issue",
    r"^\s*#if 0": "git's history",
    r"/wor[k]/|/tmp/[a-z]": "no machine's paths in the tree",
}


def sources(*suffixes):
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True,
                            text=True, check=True).stdout.split()
    return [Path(p) for p in listed
            if p.endswith(suffixes) and p.split("/")[0] in FOLDERS + ["tests"] and (ROOT / p).is_file()]


def check_format(files):
    if not files:
        return []
    tool = next((t for t in ("clang-format-14", "clang-format") if subprocess.run(
        ["which", t], capture_output=True).returncode == 0), None)
    if tool is None:
        return ["clang-format is missing"]
    bad = []
    for path in files:
        done = subprocess.run([tool, "--dry-run", "-Werror", str(path)], cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            bad.append(f"{path}: not as clang-format writes it")
    return bad


def check_includes(files):
    bad = []
    for path in files:
        folder = path.parts[0]
        if folder == "tests":
            continue
        for number, line in enumerate((ROOT / path).read_text().split("\n"), 1):
            match = re.match(r'#include "([^"]+)"', line)
            if not match:
                continue
            target = match[1]
            other = target.split("/")[0]
            if other in (folder, "base") or (str(path), target) in EXCEPTIONS:
                continue
            if other == "generated" or other not in FOLDERS:
                bad.append(f"{path}:{number}: include of {target}: name the folder")
            elif other not in ALLOWED[folder] and "/".join(target.split("/")[:2]) not in ALLOWED[folder]:
                bad.append(f"{path}:{number}: {folder} may not use {other} ({target})")
    return bad


def check_contracts(files):
    """Every prototype of a public header has a comment above it or above the group it stands in, and what the
    comment says of errors, threads and ownership begins a line."""
    bad = []
    for path in files:
        if path.suffix != ".h" or path.parts[0] == "tests":
            continue
        lines = (ROOT / path).read_text().split("\n")
        for i, line in enumerate(lines):
            if re.match(r"// .*\S (Errors|Thread|Ownership): ", line):
                bad.append(f"{path}:{i + 1}: runs together: {line.strip()}")
            if not re.match(r"[A-Za-z_].*\w\s*\(", line) or line.startswith(
                    ("static", "typedef", "#", "struct {", "_Static_assert", "extern")):
                continue
            end = next((j for j in range(i, min(i + 12, len(lines))) if ";" in lines[j] or "{" in lines[j]), None)
            if end is None or "{" in lines[end]:
                continue
            j = i - 1
            while j >= 0 and lines[j].strip() and not lines[j].lstrip().startswith("//"):
                j -= 1
            if j < 0 or not lines[j].lstrip().startswith("//"):
                bad.append(f"{path}:{i + 1}: no contract above {line.strip()}")
    return bad


def check_banned(files):
    bad = []
    for path in files:
        if path == Path("tests/lint.py"):
            continue
        for number, line in enumerate((ROOT / path).read_text(errors="replace").split("\n"), 1):
            for pattern, instead in BANNED.items():
                if path.parts[0] == "tests" and pattern.startswith(r"\bs"):
                    continue
                if re.search(pattern, line):
                    bad.append(f"{path}:{number}: {line.strip()[:60]}: {instead}")
    return bad


def check_tidy(build):
    database = ROOT / build / "compile_commands.json"
    if not database.exists():
        return ["no compile_commands.json: build first"]
    ours = {entry["file"]: entry for entry in reversed(json.loads(database.read_text()))
            if re.match(rf"{re.escape(str(ROOT))}/({'|'.join(FOLDERS)})/", entry["file"])}
    # A file that several libraries compile is read once: it takes the time of one, and the analyzer's
    # checks of va_list are wrong in the second.
    once = ROOT / build / "tidy"
    once.mkdir(exist_ok=True)
    (once / "compile_commands.json").write_text(json.dumps(list(ours.values())))
    checks = ("-*,bugprone-*,clang-analyzer-*,cert-*,-bugprone-easily-swappable-parameters,"
              "-bugprone-reserved-identifier,-cert-dcl37-c,-cert-dcl51-cpp,-cert-err33-c,"
              "-bugprone-narrowing-conversions,-bugprone-assignment-in-if-condition,-cert-msc30-c,-cert-msc32-c,"
              "-cert-msc50-cpp,-cert-msc51-cpp,-clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling,"
              "-bugprone-suspicious-include,-cert-int09-c,-bugprone-not-null-terminated-result,"
              # An array of pointers is sized by sizeof of a pointer, which this one takes for a slip.
              "-bugprone-sizeof-expression,"
              # Products of small unsigned numbers are everywhere; -Wconversion already guards narrowing.
              "-bugprone-implicit-widening-of-multiplication-result,"
              # Fields stand in the order in which they are read, not in that of their sizes.
              "-clang-analyzer-optin.performance.Padding")
    bad = []
    runs = []
    for file in sorted(ours):
        runs.append((file, subprocess.Popen(
            ["clang-tidy-14", "--quiet", f"-checks={checks}", "-p", str(once), file],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)))
        if len(runs) == (os.cpu_count() or 1):
            bad += finish(runs.pop(0))
    while runs:
        bad += finish(runs.pop(0))
    return bad


def finish(run):
    """The findings of one run; a file that clang-tidy could not read is one too."""
    output, _ = run[1].communicate()
    lines = {line.replace(str(ROOT) + "/", "") for line in output.split("\n")
             if " warning: " in line or " error: " in line}
    if run[1].returncode != 0 and not lines:
        lines = {f"{run[0]}: clang-tidy ended with {run[1].returncode}"}
    return sorted(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build")
    parser.add_argument("--no-tidy", action="store_true")
    options = parser.parse_args()
    code = sources(".c", ".h", ".cpp", ".cu")
    found = {
        "format": check_format(code),
        "includes": check_includes(code),
        "contracts": check_contracts(code),
        "leftovers": check_banned(code + sources(".py", ".proto")),
    }
    if not options.no_tidy:
        found["clang-tidy"] = check_tidy(options.build)
    for name, rows in found.items():
        print(f"{name}: {len(rows)} found")
        for row in rows:
            print("  " + row)
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
