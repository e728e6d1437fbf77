"""A client on the daemon's card: torch tensors that stay there, beside the same through frames.

    ipc_side.py PACKAGE ENDPOINT OUT.json SIDE SECONDS      as gpu.py calls it

Writes {"device_bytes", "lent_bytes", "different": [names], "ms": {name: median}}. Ends without closing anything when
its standard input ends, so that the caller can see what becomes of its lease.
"""

import json
import pathlib
import statistics
import sys
import time

import torch

sys.path.insert(0, sys.argv[1])
import luna  # noqa: E402


def median_ms(function, seconds):
    """Of as many calls as fit, at least three; each ends when its result is there."""
    times, end = [], time.monotonic() + seconds
    while len(times) < 3 or time.monotonic() < end:
        begun = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def main():
    _, _, endpoint, out, side, seconds = sys.argv
    side = int(side) // 8
    torch.manual_seed(1)
    found = {"different": [], "ms": {}}
    client = luna.connect(endpoint, timeout=60)
    frames = luna.connect(endpoint, timeout=60, shared_memory=False)
    host = luna.connect(endpoint, timeout=60)
    latent = torch.randn(1, 4, side, side, device="cuda")
    for name in ("float32", "float16", "bfloat16"):
        given = latent.to(getattr(torch, name))
        for dtype, kind in (("f32", torch.float32), ("bf16", torch.bfloat16), ("u8", torch.uint8)):
            image = client.decode_latent(given, dtype=dtype)
            wanted = frames.decode_latent(given.cpu(), dtype=dtype)
            good = image.is_cuda and image.dtype == kind and image.device == latent.device
            if not good or not torch.equal(image.cpu(), wanted):
                found["different"].append(f"decode {name} to {dtype}")
    # What a stream has not done yet has to be waited for, whichever stream it is.
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = latent
        for _ in range(200):
            late = (late @ torch.eye(side, device="cuda")).contiguous()
        image = client.decode_latent(late)
    if not torch.equal(image.cpu(), frames.decode_latent(late.cpu())):
        found["different"].append("decode behind a stream")
    again = client.encode_image(image)
    if not again.is_cuda or not torch.equal(again.cpu(), frames.encode_image(image.cpu())):
        found["different"].append("encode")
    status = client.status()
    found["device_bytes"] = status["transport"]["device_bytes"]
    found["lent_bytes"] = status["devices"][0]["lent_bytes"]
    each = float(seconds) / 3
    found["ms"]["on the card"] = median_ms(lambda: client.decode_latent(latent), each)
    found["ms"]["shared memory"] = median_ms(lambda: host.decode_latent(latent.cpu()).to("cuda"), each)
    found["ms"]["frames"] = median_ms(lambda: frames.decode_latent(latent.cpu()).to("cuda"), each)
    pathlib.Path(out).write_text(json.dumps(found))
    print("ready", flush=True)
    sys.stdin.read()


main()
