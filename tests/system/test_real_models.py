"""SDXL's VAE and text encoders at their real size: memory, start, cancel, and what happens when memory lacks.

All bars on time and memory are for the release build on two cores; the numbers are printed.
"""

import ctypes
import mmap
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import real_models
from conftest import ROOT, children_of, latent_request, request, wait_until
from luna import luna_pb2 as pb

pytestmark = pytest.mark.release

MIB = 1 << 20
READ_AHEAD = 32 * MIB  # above what kernels do
TEXT = "a (red:1.2) fox in the snow, oil on canvas"
CONFIG = """[listen]
requests = tcp://127.0.0.1:0, ipc://{folder}/luna.sock
page =
events = tcp://127.0.0.1:{port}
[models]
directories = {models}
[cache]
conditioning_mb = 0
"""
SDXL = "[model sdxl]\nfiles = sdxl_vae.safetensors, clip_l.safetensors, clip_g.safetensors\n"


@pytest.fixture(scope="session")
def real():
    """The folder with SDXL's VAE, CLIP-L and bigG in fp16."""
    return real_models.make_parts(ROOT / "build" / "models" / "real")


@pytest.fixture
def start(make_daemon, real):
    """Starts a daemon that may use the real models: start(extra=SDXL, settings={...})."""
    return lambda extra=SDXL, **options: make_daemon(models=real, config=CONFIG, extra=extra, **options)


@pytest.fixture
def say(capsys):
    """Prints a line that pytest does not keep to itself."""
    def write(line):
        with capsys.disabled():
            print(f"\n    {line}", end="", flush=True)

    return write


def latent(pixels, seed=1, channels=4):
    side = pixels // 8
    return np.random.default_rng(seed).standard_normal((1, channels, side, side)).astype(np.float32)


def seconds_of(call):
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


# ---- what the system says of processes and files


def processes_of(daemon):
    """Every process of the daemon, their children included."""
    found, left = [], [daemon.pid]
    while left:
        found.append(left.pop())
        left += children_of(found[-1])
    return found


def proc_bytes(pid, file, field):
    for line in pathlib.Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/{pid}/{file} has no {field}")


def pss_bytes(daemon):
    return sum(proc_bytes(pid, "smaps_rollup", "Pss") for pid in processes_of(daemon))


def peak_bytes(daemon):
    return sum(proc_bytes(pid, "status", "VmHWM") for pid in processes_of(daemon))


def drop_cache(paths):
    """Takes files out of the page cache; nobody may have them mapped."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_seconds(paths):
    """How long a plain read of the files takes."""
    buffer = bytearray(4 * MIB)

    def read():
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    return seconds_of(read)


def resident_bytes(path, begin, end):
    """How much of a range of a file is in the page cache, to whole pages inside of it."""
    page = mmap.PAGESIZE
    begin, end = -(-begin // page) * page, end // page * page
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with open(path, "rb") as file:
        at = libc.mmap(None, end - begin, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), begin)
        assert at not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())
        states = ctypes.create_string_buffer((end - begin) // page)
        assert libc.mincore(at, end - begin, states) == 0, os.strerror(ctypes.get_errno())
        libc.munmap(at, end - begin)
    return page * int(np.count_nonzero(np.frombuffer(states.raw[: (end - begin) // page], np.uint8) & 1))


def at_once(daemon, count, work):
    """Runs work(client, index) on so many connections together; returns what each gave."""
    results = [None] * count

    def run(index):
        import luna

        try:
            with luna.connect(daemon.ipc) as client:
                results[index] = work(client, index)
        except Exception as error:  # for the thread that waits
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


# ---- memory


def test_a_second_vae_worker_costs_one_arena(start, say):
    daemon = start(settings={"scaling.vae_workers": "0-1"})
    client = daemon.connect()
    text = client.encode_text(TEXT, negative="blurry")
    assert text.cond.shape == (1, 77, 2048) and text.pooled.shape == (1, 1280)
    assert np.isfinite(text.cond).all() and text.cond.std() > 0.1
    wait_until(lambda: daemon.status().devices[0].reserved_bytes == 0, 15, "the arena of the text goes back")
    image = client.decode_latent(latent(512), tiling="never")
    assert image.shape == (1, 512, 512, 3) and np.isfinite(image).all() and image.std() > 0.05
    one_arena = daemon.status().devices[0].reserved_bytes
    one = pss_bytes(daemon)
    client.limits(vae_workers_min=2, vae_workers_max=2)
    daemon.wait_workers("vae", 2, model="sdxl")

    def both_hold_arenas():
        at_once(daemon, 2, lambda each, index: each.decode_latent(latent(512, index), tiling="never"))
        return daemon.status().devices[0].reserved_bytes == 2 * one_arena

    wait_until(both_hold_arenas, 60, "both workers hold an arena")
    two = pss_bytes(daemon)
    say(f"SDXL 512²: proportional set {one / MIB:.0f} MiB with one VAE worker, {two / MIB:.0f} with two; "
        f"arena {one_arena / MIB:.0f} MiB; peak of all processes {peak_bytes(daemon) / MIB:.0f} MiB")
    assert 0 < two - one <= one_arena + 32 * MIB


def test_the_unet_of_a_checkpoint_is_never_read(start, real, say):
    path = real_models.make_checkpoint(real)
    begin, end = real_models.unet_range(path)
    assert end - begin == 2 * 2_567_463_684 and path.stat().st_size > 6.5e9
    drop_cache([path])
    assert resident_bytes(path, 0, end) < MIB, "the page cache could be emptied"
    daemon = start(extra="")
    client = daemon.connect()
    model = client.register_model("sdxl", [path.name])
    assert model["offers"] == ["vae", "text"]
    assert model["kind"] == "sdxl"
    image = client.decode_latent(latent(256), model="sdxl")
    assert np.isfinite(image).all() and image.std() > 0.05
    assert np.isfinite(client.encode_text(TEXT, model="sdxl").cond).all()
    begun = time.monotonic()
    hashed = wait_until(lambda: next((m for m in daemon.status().models if m.hash_vae and m.hash_text), None), 120,
                        "the model's hashes are known")
    assert len(hashed.hash_vae) == len(hashed.hash_text) == 64
    # Behind the VAE's last tensor the kernel reads ahead; nobody asked for it.
    ahead = resident_bytes(path, begin, begin + READ_AHEAD)
    read = resident_bytes(path, begin + READ_AHEAD, end)
    say(f"checkpoint of {path.stat().st_size / 1e9:.1f} GB: {read} bytes of the UNet's {(end - begin) >> 20} MiB read, "
        f"{ahead >> 10} KiB at its edge read ahead; hashed {time.monotonic() - begun:.1f} s after the answers")
    # The system may have taken a page back meanwhile.
    assert resident_bytes(path, 0, begin) > 0.9 * begin, "what the networks and the hash needed was read"
    assert read == 0


# ---- time


def test_the_daemon_is_ready_within_300_ms_with_real_models_configured(make_daemon, real, say):
    seconds = []
    for _ in range(5):
        daemon = make_daemon(models=real, config=CONFIG, extra=SDXL)
        seconds.append(daemon.ready_seconds)
        daemon.stop()
    say("ready after " + ", ".join(f"{value:.3f}" for value in seconds) + " s")
    assert statistics.median(seconds) <= 0.3


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "cold"])
@pytest.mark.parametrize("what", ["vae", "text"])
def test_the_first_request_takes_the_reading_and_half_a_second_more(start, real, say, what, cached):
    names = ["sdxl_vae"] if what == "vae" else ["clip_l", "clip_g"]
    paths = [real / f"{name}.safetensors" for name in names]

    def forget():
        if not cached:
            drop_cache(paths)

    def measure():
        """(seconds of reading the files, of the first request, of the same one warm)"""
        forget()
        reading = read_seconds(paths)
        forget()
        daemon = start()
        client = daemon.connect()

        def ask():
            if what == "vae":
                client.decode_latent(latent(256), tiling="never")
            else:
                client.encode_text(TEXT)

        first = seconds_of(ask)
        warm = statistics.median(seconds_of(ask) for _ in range(3))
        daemon.stop()
        return reading, first, warm

    read_seconds(paths)
    excess = []
    for _ in range(3):  # a difference of seconds, on a machine where others work too: one good try is enough
        reading, first, warm = measure()
        say(f"{what}, {'cached' if cached else 'cold'}: first {first:.2f} s, warm {warm:.2f} s, "
            f"more {first - warm:.2f} s; the files read in {reading:.2f} s")
        excess.append(first - warm - reading)
        if excess[-1] <= 0.5:
            break
    assert min(excess) <= 0.5


def test_a_cancelled_decode_of_2048_pixels_frees_its_lane_within_half_a_second(make_daemon, say):
    daemon = make_daemon(settings={"scaling.vae_workers": "0-1"})
    client = daemon.raw()

    def small():
        header, payload = latent_request(latent(128, channels=16))
        assert client.ask(header, pb.DecodeLatent(tiling=pb.TILING_NEVER), payload)[0].code == pb.OK

    small()
    warm = statistics.median(seconds_of(small) for _ in range(3))
    header, payload = latent_request(latent(2048, channels=16))
    client.send(header, pb.DecodeLatent(tiling=pb.TILING_NEVER), payload)
    wait_until(lambda: daemon.service("vae").workers_busy == 1, 20, "the large decode runs")
    assert client.is_silent(1000)
    begun = time.perf_counter()
    client.send(request(pb.CANCEL), pb.Cancel(id=header.id))
    next_header, next_payload = latent_request(latent(128, channels=16))
    client.send(next_header, pb.DecodeLatent(tiling=pb.TILING_NEVER), next_payload)
    codes, took = {}, None
    while len(codes) < 3:
        answer, _ = client.receive()
        codes[answer.id] = answer.code
        if answer.id == next_header.id:
            took = time.perf_counter() - begun
    say(f"cancel of a 2048² decode: the next small one was answered after {took:.3f} s, warm {warm:.3f} s")
    assert codes[header.id] == pb.CANCELLED and codes[next_header.id] == pb.OK
    assert took <= 0.5 + warm


def test_pings_are_answered_within_20_ms_under_full_load(start, say):
    daemon = start(settings={"scaling.vae_workers": "0-1", "scaling.clip_workers": "0-1"})
    stop = threading.Event()
    done = []

    def load(client, index):
        while not stop.is_set():
            if index % 2:
                client.encode_text(TEXT, negative="blurry", timeout=120)
            else:
                client.decode_latent(latent(256), tiling="never", timeout=120)
            done.append(index % 2)

    background = threading.Thread(target=at_once, args=(daemon, 4, load))
    background.start()
    try:
        wait_until(lambda: {0, 1} <= set(done), 60, "both services work")
        client = daemon.raw()
        took = []
        for _ in range(500):
            begun = time.perf_counter()
            assert client.ask(request(pb.PING))[0].code == pb.OK
            took.append((time.perf_counter() - begun) * 1000)
            time.sleep(0.005)  # so that the load goes on for longer than one of its requests
    finally:
        stop.set()
        background.join()
    took.sort()
    say(f"500 pings under load: median {took[250]:.2f} ms, p99 {took[494]:.2f}, most {took[-1]:.2f}")
    assert took[494] <= 20


# ---- too little memory

NEIGHBOUR = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, len(memory), 4096):
    memory[at] = 1
print("full", flush=True)
sys.stdin.read()
"""


def test_a_process_beside_us_that_eats_the_memory_stops_the_second_worker(make_daemon, say):
    daemon = make_daemon(settings={"scaling.queue_threshold": 1, "scaling.scale_up_delay_ms": 100})
    client = daemon.connect()
    client.limits(vae_workers_max=1)
    client.decode_latent(latent(512, channels=16), tiling="never")
    plan = daemon.status().devices[0].reserved_bytes
    assert plan > 0

    # Without the neighbour a second worker would fit with 1 GiB to spare, with it 1 GiB lacks.
    free = daemon.status().devices[0].memory_free_bytes
    margin = free - plan - 1024 * MIB
    assert margin > 0, "the test needs 1 GiB of free memory and one arena"
    neighbour = subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(2048 * MIB)], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE)
    try:
        assert neighbour.stdout.readline() == b"full\n"
        wait_until(lambda: daemon.status().devices[0].memory_free_bytes < free - 1536 * MIB, 10, "it is seen")
        daemon.events
        client.limits(vae_workers_max=2, memory_margin_mb=margin // MIB)
        decode = lambda each, index: each.decode_latent(latent(512, index, 16), tiling="never").shape
        assert at_once(daemon, 8, decode) == [(1, 512, 512, 3)] * 8
        refusal = daemon.events.wait_topic("scaling.refused")
        assert (refusal.operation, refusal.model, refusal.signal) == ("vae", "demo", "memory_free_bytes")
        assert refusal.margin_bytes == margin // MIB * MIB
        assert plan <= refusal.plan_bytes < 2 * plan
        assert refusal.free_bytes < refusal.plan_bytes + refusal.margin_bytes
        assert refusal.threshold == refusal.plan_bytes + refusal.margin_bytes
        assert refusal.value == refusal.free_bytes
        for amount in (refusal.free_bytes, refusal.plan_bytes, refusal.margin_bytes):
            assert f"{amount >> 20} MB" in refusal.message
        assert not daemon.events.of("scaling.up")
        assert daemon.service("vae").workers == 1
    finally:
        neighbour.kill()
        neighbour.wait()
        neighbour.stdin.close()
        neighbour.stdout.close()
    wait_until(lambda: daemon.status().devices[0].memory_free_bytes > free - 512 * MIB, 10, "its memory is free")
    at_once(daemon, 8, decode)
    risen = daemon.events.wait_topic("scaling.up")
    say(f"beside a process that eats 2 GiB: \"{refusal.message}\"; without it: \"{risen.message}\"")
    assert risen.workers == 2


def test_two_models_that_fit_one_at_a_time_evict_each_other(start, real, say):
    both = ("[model first]\nfiles = clip_l.safetensors, clip_g.safetensors\n"
            "[model second]\nfiles = clip_g.safetensors\n")
    weights = (real / "clip_g.safetensors").stat().st_size
    # The larger of the two, the margin, and room for an arena.
    limit = (weights + (real / "clip_l.safetensors").stat().st_size) // MIB + 512 + 256
    daemon = start(extra=both, settings={"service.memory_limit_mb": limit})
    events = daemon.events
    client = daemon.connect()
    answers, took = {}, []

    def loaded():
        return {model.name: list(model.loaded_on) for model in daemon.status().models}

    for name in ("first", "second", "first", "second"):
        begun = time.monotonic()
        text = client.encode_text(TEXT, model=name)
        took.append(time.monotonic() - begun)
        wait_until(lambda: loaded() == {"first": [], "second": [], name: ["cpu"]}, 2, f"only {name} is loaded")
        answers.setdefault(name, text.cond.tobytes())
        assert text.cond.tobytes() == answers[name], "evicting changes no answer"
        assert daemon.status().devices[0].weights_bytes < weights * 1.5
    downs = events.of("scaling.down")
    assert [event.model for event in downs] == ["first", "second", "first"]
    for event in downs:
        assert event.signal == "memory_free_bytes"
        assert event.free_bytes < event.plan_bytes + event.margin_bytes
        assert event.plan_bytes > weights * 0.9 and event.margin_bytes == 512 * MIB
        assert (event.value, event.threshold) == (event.free_bytes, event.plan_bytes + event.margin_bytes)
    say(f"two models in {limit} MiB: " + ", ".join(f"{value:.2f}" for value in took) + f" s; \"{downs[0].message}\"")
