"""./dev demo: a daemon with the small model that ships, a picture there and back, prompts with LoRAs from two
clients at once, load, and a table.

Everything it makes lies in build/demo; before-after.png is the picture before and after encode and decode.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

import luna

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "build" / "demo"
BINARY = ROOT / os.environ.get("LUNA_BINARY", "build/luna")
PICTURE = ROOT / "conf" / "demo" / "picture.png"
PROMPT = "a photo of a (red:1.2) fox in the snow"


def say(text):
    print(f"\033[1m-- {text}\033[0m", flush=True)


def make_models():
    """The VAE ships; the text encoders are random, made from a seed: their numbers mean nothing."""
    models = OUT / "models"
    models.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "conf" / "demo" / "vae.safetensors", models / "vae.safetensors")
    if not (models / "clip_l.safetensors").exists():
        say("making two small text encoders with random weights (untrained: they only show the way)")
        subprocess.run([sys.executable, ROOT / "conf" / "demo" / "make_clip.py", models], check=True)
    return models


def make_loras():
    """Two adapters of different families: one in the daemon's folder, one that a client will put."""
    made, known = OUT / "adapters", OUT / "loras"
    for folder in (made, known):
        folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, ROOT / "conf" / "demo" / "make_loras.py", made], check=True)
    (made / "ink.safetensors").replace(known / "ink.safetensors")
    return known, made / "grain.safetensors"


def write_config(folder, models, loras):
    path = folder / "luna.conf"
    path.write_text(f"""[listen]
requests = tcp://127.0.0.1:0, ipc://@runtime@/luna.sock
page =
events = tcp://127.0.0.1:{free_port()}
[models]
directories = {models}
[model demo]
files = vae.safetensors, clip_l.safetensors, clip_g.safetensors
[lora]
directories = {loras}
[scaling]
scale_up_delay_ms = 300
idle_timeout_s = 2
""")
    return path


def free_port():
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Events(threading.Thread):
    """Prints decisions as they come, and remembers them."""

    def __init__(self, endpoint):
        super().__init__(daemon=True)
        self.endpoint = endpoint
        self.seen = []
        self.changed = threading.Condition()

    def run(self):
        for event in luna.events(self.endpoint):
            if event.topic == "status":
                continue
            body = event.data
            with self.changed:
                self.seen.append((event.topic, body))
                self.changed.notify_all()
            if event.topic.startswith(("scaling.", "worker.", "model.")):
                cause = "  [{signal} {value:g}, threshold {threshold:g}]".format(**body) if body["signal"] else ""
                print(f"   {event.topic:14} {body['operation']:5} {body['message']}{cause}", flush=True)

    def wait_for(self, topic, count, seconds):
        deadline = time.monotonic() + seconds
        with self.changed:
            while sum(t == topic for t, _ in self.seen) < count:
                left = deadline - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    return False
        return True


def run_cli(*words, environment):
    started = time.monotonic()
    subprocess.run([BINARY, *map(str, words)], check=True, env=environment)
    return time.monotonic() - started


def psnr(a, b):
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 10 * np.log10(1.0 / error)


def load(endpoint, latent, seconds, clients):
    """Decodes from several clients at once; returns how many were answered."""
    counts = [0] * clients
    end = time.monotonic() + seconds

    def client(index):
        with luna.connect(endpoint) as daemon:
            while time.monotonic() < end:
                daemon.decode_latent(latent)
                counts[index] += 1

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def encode_shell(environment, *words):
    """The prompt's conditioning by the command line, with its stack."""
    path = OUT / "shell.safetensors"
    run_cli("text", PROMPT, "--lora", "ink:0.8", "--lora", "grain:0.5", "-o", path, *words, environment=environment)
    return luna.state_dict(path.read_bytes())["cond"]


def encode_python(daemon, **options):
    """The same by Python, with the same adapters at other strengths."""
    return daemon.encode_text(PROMPT, loras=[("ink", -0.4), ("grain", 1.0)], **options)


def with_loras(endpoint, environment):
    """Encodes the prompt from two clients at once, and compares; returns rows of the table."""
    answers = {}
    shell = threading.Thread(target=lambda: answers.update(shell=encode_shell(environment)))
    with luna.connect(endpoint) as daemon:
        plain = daemon.encode_text(PROMPT)
        shell.start()
        python = encode_python(daemon)
        shell.join()
        # Another negative prompt is another question, which no cache knows the answer of; this one's is the same.
        alone = (encode_shell(environment, "--negative", ""), encode_python(daemon, negative="").cond)
        same = np.array_equal(alone[0], answers["shell"]) and np.array_equal(alone[1], python.cond)
        after = daemon.encode_text(PROMPT, negative="").cond
        begun = time.monotonic()
        again = encode_python(daemon)
        cached_ms = (time.monotonic() - begun) * 1000
        stats = daemon.lora_stats()
    distances = [np.linalg.norm(cond - plain.cond) / np.linalg.norm(plain.cond)
                 for cond in (answers["shell"], python.cond)]
    changed = ", ".join(f"{name} {use['modules']} tensors" for name, use in zip(("ink", "grain"), python.loras))
    leaves = np.array_equal(after, plain.cond)
    return same and leaves, [
        ("two LoRAs, shell", f"ink (LoRA) 0.8 + grain (LoHa) 0.5: {100 * distances[0]:.0f} % away from none"),
        ("two LoRAs, Python", f"ink -0.4 + grain 1.0: {100 * distances[1]:.0f} % away; changed: {changed}"),
        ("both at once", f"{'byte-equal to' if same else 'NOT the bytes of'} each alone; "
                         f"the model {'is as it was' if leaves else 'IS NOT AS IT WAS'}"),
        ("asked again", f"{'from the cache' if again.cached else 'computed'}, {cached_ms:.1f} ms"),
        ("adapters", f"{stats['entries']} resident, hits {stats['hits']}, misses {stats['misses']}, "
                     f"loads {stats['loads']} (p50 {stats['load_ms_p50']:.1f} ms), "
                     f"merged stacks {stats['merged_entries']}"),
    ]


def show(rows):
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"   {name:{width}}  {value}")
    print()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    models = make_models()
    runtime = Path(tempfile.mkdtemp(prefix="luna-demo-"))
    environment = dict(os.environ, XDG_RUNTIME_DIR=str(runtime))
    known, grain = make_loras()
    config = write_config(OUT, models, known)
    started = time.monotonic()
    daemon_process = subprocess.Popen([BINARY, "serve", "-c", config], env=environment, stdout=subprocess.PIPE,
                                      stderr=open(OUT / "luna.log", "w"), text=True)
    rows = []
    try:
        ready = daemon_process.stdout.readline().split()
        if ready[:2] != ["luna:", "ready"]:
            sys.exit(f"the daemon did not start; see {OUT / 'luna.log'}")
        rows.append(("daemon ready", f"{(time.monotonic() - started) * 1000:.0f} ms after exec"))
        ipc = next(word for word in ready if word.startswith("ipc://"))
        environment["LUNA_ENDPOINT"] = ipc
        say(f"the daemon listens: {' '.join(ready[2:])}")
        port = next(line.split("=")[1].strip() for line in config.read_text().split("\n") if line.startswith("events"))
        events = Events(port)
        events.start()

        say("the command line: encode and decode the picture (the first request loads the model)")
        latent_file, again = OUT / "latent.safetensors", OUT / "again.png"
        rows.append(("luna encode, first", f"{run_cli('encode', PICTURE, '-o', latent_file, environment=environment) * 1000:.0f} ms"))
        rows.append(("luna encode, warm", f"{run_cli('encode', PICTURE, '-o', latent_file, environment=environment) * 1000:.0f} ms"))
        rows.append(("luna decode", f"{run_cli('decode', latent_file, '-o', again, environment=environment) * 1000:.0f} ms"))
        before = np.asarray(Image.open(PICTURE).convert("RGB"), dtype=np.float32) / 255
        after = np.asarray(Image.open(again), dtype=np.float32) / 255
        rows.append(("picture there and back", f"{before.shape[1]} x {before.shape[0]}, PSNR {psnr(before, after):.1f} dB"))
        side = np.concatenate([before, np.ones((before.shape[0], 8, 3), np.float32), after], axis=1)
        Image.fromarray((side * 255 + 0.5).astype(np.uint8)).save(OUT / "before-after.png")

        say("Python: the same, and a prompt with a negative one")
        with luna.connect(ipc) as daemon:
            latent = daemon.encode_image(before[None])
            image = daemon.decode_latent(latent)
            same = np.abs(image[0] - after).max()
            rows.append(("Python against command line", f"max difference {same:.4f} (8 bit rounding: 0.0020)"))
            begun = time.monotonic()
            result = daemon.encode_text(PROMPT, negative="blurry")
            rows.append(("a prompt", f"cond {list(result.cond.shape)}, pooled {list(result.pooled.shape)}, "
                                     f"{(time.monotonic() - begun) * 1000:.0f} ms with loading"))

        say("LoRAs: the prompt with two of different families, from the shell and from Python at once")
        put_ms = run_cli("loras", "put", grain, "--name", "grain", environment=environment) * 1000
        rows.append(("luna loras put", f"{grain.stat().st_size / 1024:.0f} KiB, {put_ms:.0f} ms"))
        print(flush=True)
        untouched, lines = with_loras(ipc, environment)
        rows += lines
        subprocess.run([BINARY, "loras", "list"], env=environment, check=True)
        print(flush=True)
        subprocess.run([BINARY, "loras", "stats"], env=environment, check=True)

        say("load: 6 clients decode for 4 s; a second worker comes when the queue stays long")
        answered = load(ipc, latent, 4.0, 6)
        megapixels = before.shape[0] * before.shape[1] / 1e6
        rows.append(("6 clients for 4 s", f"{answered} decodes, {answered / 4:.1f} a second, "
                                          f"{answered / 4 * megapixels:.2f} megapixels a second"))
        second = sum(t == "worker.up" and b["operation"] == "vae" for t, b in events.seen) >= 2
        rows.append(("second VAE worker", "came" if second else "did not come"))

        say("idle: the workers retire after 2 s")
        ups = sum(t == "worker.up" for t, _ in events.seen)
        retired = events.wait_for("worker.down", ups, 15)
        rows.append(("workers retired", "all" if retired else "not all within 15 s"))
        status = json.loads(subprocess.run([BINARY, "status", "--json"], env=environment, check=True,
                                           capture_output=True, text=True).stdout)
        rows.append(("requests", f"{status['requests']['total']}, failed {status['requests']['failed']}"))
        transport = status["transport"]
        rows.append(("tensors", f"{transport['shared_bytes'] / 2**20:.1f} MiB in shared memory, "
                                f"{transport['frame_bytes'] / 2**20:.1f} MiB in frames"))
    finally:
        daemon_process.send_signal(signal.SIGTERM)
        rows.append(("daemon ended", f"with {daemon_process.wait(timeout=30)}"))
        shutil.rmtree(runtime, ignore_errors=True)
    show(rows)
    print(f"   {(OUT / 'before-after.png').relative_to(ROOT)}: before (left) and after (right)\n")
    return 0 if second and retired and untouched and status["requests"]["failed"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
