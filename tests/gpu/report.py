"""The table of a walk, ready for tests/gpu/RESULTS.md."""


def cell(text):
    return str(text).replace("|", "/").replace("\n", " ")


def kernel_table(kind, what, kernels):
    """The operations or launches of one run that take longest."""
    total = sum(entry["ms"] for entry in kernels.values())
    lines = ["", f"| {kind}: {what} | times | ms | % | TFLOP/s |", "|---|---|---|---|---|"]
    for name, entry in sorted(kernels.items(), key=lambda item: -item[1]["ms"])[:12]:
        rate = entry["operations"] / entry["ms"] / 1e9 if entry["ms"] > 0 else 0
        share = 100 * entry["ms"] / max(total, 1e-9)
        speed = f"{rate:.1f}" if entry["operations"] else ""
        lines.append(f"| {cell(name)} | {entry['count']} | {entry['ms']:.3f} | {share:.0f} | {speed} |")
    return lines


def write(walk):
    facts = walk.facts
    title = facts.get("card", f"device {facts['device']}, no card")
    lines = [f"## {title}, {facts['date']}", "",
             f"Commit {facts['commit']}, driver {facts.get('driver', '-')}, {facts['programs']}."]
    peak = walk.numbers.get("peak")
    if peak:
        gemm = f"cuBLAS bf16 GEMM {peak['gemm_tflop_s']:.0f} TFLOP/s" if "gemm_tflop_s" in peak else "no cuBLAS"
        lines.append(f"Measured on that card: copy {peak['copy_gb_s']:.0f} GB/s (read and written), {gemm}, mma.sync "
                     f"out of registers {peak['mma_tflop_s']:.0f} TFLOP/s; {peak['multiprocessors']} multiprocessors, "
                     f"{peak['l2_mib']} MiB L2.")
    theirs = walk.numbers.get("torch")
    if theirs:
        lines.append(f"PyTorch {theirs['version']}, same weights and inputs, on the device: copies from and to the "
                     f"host are not in its times, they are in ours. Its copy: {theirs.get('copy_gb_s', 0):.0f} GB/s, "
                     f"its GEMM: {theirs.get('gemm_tflop_s', 0):.0f} TFLOP/s.")
    if walk.rows:
        lines += ["", "| what | luna | bar | | PyTorch, ms |", "|---|---|---|---|---|"]
        words = {True: "met", False: "**missed**", None: ""}
        lines += [f"| {cell(what)} | {cell(value)} | {cell(bar)} | {words[good]} | {cell(peer)} |"
                  for what, value, bar, good, peer in walk.rows]
    for kind, kernels in walk.numbers.get("kernels", {}).items():
        lines += kernel_table(kind, "operation", kernels)
        lines += kernel_table(kind, "launch", walk.numbers["launches"][kind])
    lines += ["", "| step | | s | |", "|---|---|---|---|"]
    lines += [f"| {cell(name)} | {state} | {seconds:.1f} | {cell(note)} |"
              for name, state, seconds, note in walk.results]
    return "\n".join(lines) + "\n"
