"""The daemon on the emulated GPU: the kernels of kernels/cuda behind the real executor, without a card.

Faults are files in a folder that the emulated driver looks into (kernels/cuda/driver_emulated.cpp): what
somebody else holds of the device, an allocation that fails, a launch that breaks the device, a slow device.
"""

import json
import os
import random
import subprocess
import threading
import time

import numpy as np
import pytest

import luna
from conftest import BINARY, PATIENCE, is_alive, latent_request, request, text_request, wait_until
from files import pack_safetensors, random_latent, read_safetensors
from luna import luna_pb2 as pb

EMULATED = BINARY.parent / "libluna_emulated.so"
pytestmark = pytest.mark.skipif(not EMULATED.exists(), reason="this build has no emulated device")
MB = 1 << 20


class Faults:
    """The folder of faults of one daemon."""

    def __init__(self, folder):
        self.folder = folder

    def set(self, name, number=0):
        """At once for who looks: a file is there whole or not at all."""
        new = self.folder / f".{name}"
        new.write_text(str(int(number)))
        os.replace(new, self.folder / name)

    def clear(self, name):
        (self.folder / name).unlink(missing_ok=True)

    def is_set(self, name):
        return (self.folder / name).exists()


@pytest.fixture
def faults(tmp_path):
    folder = tmp_path / "faults"
    folder.mkdir()
    return Faults(folder)


@pytest.fixture
def make_emulated(make_daemon, faults):
    """Starts daemons on the emulated device; total: of its memory in MB."""
    def make(settings=(), total=256, environment=(), **options):
        return make_daemon(
            settings={"service.devices": "emulated", "scaling.memory_margin_mb": 16, **dict(settings)},
            environment={"LD_LIBRARY_PATH": str(BINARY.parent), "LUNA_EMULATION_FAULTS": str(faults.folder),
                         "LUNA_EMULATION_BYTES": str(total * MB), **dict(environment)}, **options)
    return make


@pytest.fixture(scope="module")
def cpu(shared):
    with luna.connect(shared.ipc) as client:
        yield client


def device(daemon):
    return daemon.status().devices[0]


# ---- which devices there are


def serve(*settings, environment=()):
    """`luna serve` that has to end by itself."""
    words = [word for setting in settings for word in ("--set", setting)]
    return subprocess.run([BINARY, "serve", *words], capture_output=True, text=True, timeout=30 * PATIENCE,
                          env={**os.environ, **dict(environment)})


@pytest.fixture
def cards(tmp_path):
    """The environment of a machine with so many cards: the emulation under the name of the CUDA library."""
    def make(count):
        folder = tmp_path / "cards"
        folder.mkdir()
        (folder / "libluna_cuda.so").symlink_to(EMULATED)
        return {"LD_LIBRARY_PATH": str(folder), "LUNA_EMULATION_CARDS": str(count)}
    return make


@pytest.fixture
def no_cards(tmp_path):
    """The environment of a machine where the CUDA library finds none."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "libluna_cuda.so").write_bytes(b"no library")
    return {"LD_LIBRARY_PATH": str(broken)}


def test_without_a_gpu_auto_is_the_processor_and_the_status_says_why(make_daemon, no_cards):
    daemon = make_daemon(environment=no_cards)
    status = daemon.status()
    assert [d.name for d in status.devices] == ["cpu"]
    assert status.devices[0].uuid == status.devices[0].driver == ""
    wait_until(lambda: daemon.status().gpus, 5, "the status tells of GPUs")
    assert daemon.status().gpus.startswith("none: ") and "libluna_cuda.so" in daemon.status().gpus
    assert daemon.cli_json("status")["gpus"] == daemon.status().gpus
    maps = [open(f"/proc/{pid}/maps").read() for pid in (daemon.pid, daemon.core_pid, daemon.executor_pid)]
    assert not any("libcuda" in text for text in maps)


def test_a_gpu_that_is_named_and_not_there_is_a_start_error(no_cards):
    done = serve("service.devices=cuda:1", environment=no_cards)
    assert done.returncode == 1 and done.stdout == ""
    assert 'luna: UNAVAILABLE: device "cuda:1" cannot be used: ' in done.stderr


def test_a_card_number_that_is_none_is_a_start_error(cards):
    done = serve("service.devices=cuda:2", environment=cards(2))
    assert done.returncode == 1
    assert 'luna: NOT_FOUND: there is no device "cuda:2": the last CUDA device is cuda:1' in done.stderr


def test_who_names_no_gpu_is_asked_nothing(make_daemon, cards):
    daemon = make_daemon(settings={"service.devices": "cpu"}, environment=cards(2))
    wait_until(lambda: daemon.status().gpus, 5, "the status tells of GPUs")
    assert daemon.status().gpus == "not looked for, the configuration names none"
    assert [d.name for d in daemon.status().devices] == ["cpu"]


def test_a_processor_has_no_bf16():
    done = serve("service.devices=cpu", "service.precision=bf16")
    assert done.returncode == 1 and 'device "cpu" has no bf16 for vae' in done.stderr


def test_auto_serves_from_every_card(make_daemon, cards):
    daemon = make_daemon(environment=cards(2))
    wait_until(lambda: len(daemon.status().devices) == 2, 10, "two devices report")
    status = daemon.status()
    assert sorted(d.name for d in status.devices) == ["cuda:0", "cuda:1"]
    assert status.gpus == "2, emulation"
    for described in status.devices:
        assert described.compute_capability == "9.0" and described.driver == "emulation"
        assert described.uuid == f"GPU-00000000-0000-0000-0000-00000000000{described.name[-1]}"
        assert described.memory_total_bytes == described.memory_free_bytes == 8192 * MB
    with luna.connect(daemon.ipc) as client:
        assert np.isfinite(client.decode_latent(random_latent(1, 2, 2))).all()
    assert wait_until(lambda: daemon.service("vae"), 5, "the service").device in ("cuda:0", "cuda:1")


# ---- numbers


def test_the_emulated_device_answers_with_the_numbers_of_the_cpu(make_emulated, cpu):
    daemon = make_emulated({"service.precision": "f32"})
    with luna.connect(daemon.ipc) as client:
        latent = random_latent(1, 2, 3)
        image = client.decode_latent(latent)
        assert np.abs(image - cpu.decode_latent(latent)).max() <= 1e-4
        assert np.array_equal(image, client.decode_latent(latent))
        again = client.encode_image(image)
        want = cpu.encode_image(image)
        assert np.abs(again - want).max() <= 2e-4 * np.abs(want).max()
        text = client.encode_text("a (red:1.2) fox").cond
        want = cpu.encode_text("a (red:1.2) fox").cond
        assert np.abs(text - want).max() <= 2e-4 * np.abs(want).max()
        assert "emulated on the processor" in str(client.status())


def test_a_gpu_decodes_in_bf16_and_encodes_texts_faithfully(make_emulated, cpu):
    daemon = make_emulated()
    with luna.connect(daemon.ipc) as client:
        latent = random_latent(1, 2, 3)
        off = np.abs(client.decode_latent(latent) - cpu.decode_latent(latent)).max()
        assert 1e-4 < off <= 5e-2
        text = client.encode_text("a (red:1.2) fox").cond
        want = cpu.encode_text("a (red:1.2) fox").cond
        assert np.abs(text - want).max() <= 2e-4 * np.abs(want).max()


# ---- memory


def test_the_ledger_and_the_driver_agree_to_the_byte(make_emulated):
    daemon = make_emulated()
    client = daemon.connect()
    client.decode_latent(random_latent(1, 1, 2))
    client.encode_text("a fox")

    def agree():
        now = device(daemon)
        held = now.weights_bytes + now.reserved_bytes
        return held > 10 * MB and now.reserved_bytes > 0 and now.memory_free_bytes + held == now.memory_total_bytes

    wait_until(agree, 4, "what is held and what is free make the whole")
    # Arenas go back when nothing has run for a while.
    wait_until(lambda: device(daemon).reserved_bytes == 0, 10, "the arenas are gone")
    wait_until(lambda: device(daemon).memory_free_bytes + device(daemon).weights_bytes == 256 * MB, 3, "they are free")


def decode_request(latent, **fields):
    """(header, body, payload) of a decode in tiles of the smallest size, where it is tiled."""
    body = pb.DecodeLatent(tile=64, overlap=0, passes=1)
    header, payload = latent_request(latent, **fields)
    return header, body, payload


def leave_free(daemon, faults, free_bytes):
    """Lets somebody else take all of the device but so much, and waits until the daemon has seen it."""
    memory = device(daemon).memory_free_bytes
    faults.set("hog", memory - free_bytes)
    wait_until(lambda: device(daemon).memory_free_bytes <= free_bytes, 5, "the executor sees the hog")


def test_a_hog_beside_us_keeps_a_second_worker_away_until_it_goes(make_emulated, faults):
    daemon = make_emulated({"scaling.scale_up_delay_ms": 100})
    events = daemon.events
    client = daemon.raw()
    header, body, payload = decode_request(random_latent(1, 1, 2))
    assert client.ask(header, body, payload)[0].code == pb.OK
    faults.set("pace", 500)
    leave_free(daemon, faults, 8 * MB)

    def flood():
        for seed in range(5):
            client.send(*decode_request(random_latent(seed, 1, 1)))

    flood()
    refused = events.wait_topic("scaling.refused", 10, operation="vae")
    assert (refused.device, refused.signal, refused.margin_bytes) == ("emulated", "memory_free_bytes", 16 * MB)
    assert refused.free_bytes <= 8 * MB < refused.plan_bytes + refused.margin_bytes
    assert "MB free" in refused.message and "16 MB margin" in refused.message
    assert all(client.receive()[0].code == pb.OK for _ in range(5))
    assert max(m.workers for m in events.of("scaling.up", operation="vae")) == 1
    faults.clear("hog")
    wait_until(lambda: device(daemon).memory_free_bytes > 100 * MB, 5, "the hog has gone")
    flood()
    second = events.wait(lambda t, m: t == "scaling.up" and m.workers == 2, 10, "a second worker")
    assert second.free_bytes >= second.plan_bytes + second.margin_bytes
    assert all(client.receive()[0].code == pb.OK for _ in range(5))


def test_what_others_take_is_known_before_the_second_is_over(make_emulated, faults):
    daemon = make_emulated()
    taken = []
    for _ in range(3):
        for hog in (100 * MB, 0):
            faults.set("hog", hog)
            begun = time.monotonic()
            wait_until(lambda: device(daemon).memory_free_bytes == 256 * MB - hog, 5, "the executor sees it")
            taken.append(time.monotonic() - begun)
    assert sorted(taken)[len(taken) // 2] <= 0.6 * PATIENCE, taken


def test_an_idle_model_makes_room_for_another(make_emulated, faults):
    daemon = make_emulated(extra="[model other]\nfiles = vae.safetensors\n")
    events = daemon.events
    client = daemon.connect()
    latent = random_latent(1, 1, 2)
    wanted = client.decode_latent(latent, model="demo")
    plan = next(m.bytes for m in daemon.status().models if m.name == "other")
    leave_free(daemon, faults, 16 * MB + plan // 2)
    assert np.array_equal(client.decode_latent(latent, model="other"), wanted)
    loaded = {m.name: list(m.loaded_on) for m in daemon.status().models}
    assert loaded == {"demo": [], "other": ["emulated"]}
    events.wait_topic("model.unloaded", model="demo")
    assert np.array_equal(client.decode_latent(latent, model="demo"), wanted)


def test_a_file_of_full_precision_needs_the_half_on_a_device_of_half(make_emulated, faults, models, tmp_path):
    tensors, metadata = read_safetensors((models / "vae.safetensors").read_bytes())
    wide = {name: array.astype(np.float32) for name, array in tensors.items()}
    (tmp_path / "wide.safetensors").write_bytes(pack_safetensors(wide, metadata))
    daemon = make_emulated({"models.directories": f"{models}, {tmp_path}"}, extra="[model wide]\nfiles = wide.safetensors\n")
    events = daemon.events
    client = daemon.connect()
    file_bytes = next(m.bytes for m in daemon.status().models if m.name == "wide")
    leave_free(daemon, faults, 16 * MB + file_bytes * 3 // 4)
    image = client.decode_latent(random_latent(1, 1, 2), model="wide")
    assert not events.of("scaling.refused")
    wait_until(lambda: 0.4 * file_bytes < device(daemon).weights_bytes < 0.6 * file_bytes, 5, "what it takes")
    faults.clear("hog")
    assert np.array_equal(client.decode_latent(random_latent(1, 1, 2), model="demo"), image)


def test_idle_models_go_for_a_job_only_where_that_suffices(make_emulated, faults):
    daemon = make_emulated({"scaling.idle_timeout_s": 2}, extra="[model other]\nfiles = vae.safetensors\n")
    events = daemon.events
    client = daemon.raw()
    sizes = ((1, 2), (2, 8), (24, 40))
    small, middle, large = (decode_request(random_latent(1, *size), model="demo") for size in sizes)
    assert client.ask(*decode_request(random_latent(1, 1, 2), model="other"))[0].code == pb.OK
    events.wait_topic("worker.down", 20, model="other")
    assert client.ask(*small)[0].code == pb.OK
    leave_free(daemon, faults, 64 << 10)
    answer, _ = client.ask(*large)
    assert answer.code == pb.RESOURCE_EXHAUSTED and "device emulated can give" in answer.message
    assert not events.of("model.unloaded")
    answer, _ = client.ask(*middle, seconds=60)
    assert answer.code == pb.OK, answer
    assert [m.model for m in events.of("model.unloaded")] == ["other"]


def test_without_memory_waiting_has_an_end_and_says_when_to_come_back(make_emulated, faults):
    daemon = make_emulated()
    client = daemon.raw()
    faults.set("hog", 250 * MB)
    wait_until(lambda: device(daemon).memory_free_bytes <= 6 * MB, 5, "the executor sees the hog")
    request = decode_request(random_latent(1, 1, 2))
    answer, _ = client.ask(*request)
    assert (answer.code, answer.retry_after_ms) == (pb.RESOURCE_EXHAUSTED, 5000), answer
    assert "6 MB free" in answer.message and "16 MB margin" in answer.message
    faults.clear("hog")
    wait_until(lambda: device(daemon).memory_free_bytes > 100 * MB, 5, "the hog has gone")
    assert client.ask(*decode_request(random_latent(1, 1, 2)))[0].code == pb.OK


def test_what_the_device_can_never_hold_is_refused_at_once(make_emulated):
    daemon = make_emulated({"scaling.memory_margin_mb": 1}, total=16)
    client = daemon.raw()
    assert client.ask(*decode_request(random_latent(1, 1, 2)))[0].code == pb.OK
    answer, _ = client.ask(*decode_request(random_latent(1, 40, 40)))
    assert (answer.code, answer.retry_after_ms) == (pb.RESOURCE_EXHAUSTED, 1000), answer
    assert "device emulated can give" in answer.message


def test_smaller_tiles_where_the_whole_does_not_fit(make_emulated, faults):
    daemon = make_emulated()
    client = daemon.raw()
    latent = random_latent(1, 4, 14)
    assert client.ask(*decode_request(random_latent(1, 1, 2)))[0].code == pb.OK
    leave_free(daemon, faults, 700_000)
    answer, rest = client.ask(*decode_request(latent, may_tile=True))
    reply = pb.ImageReply.FromString(rest[0])
    assert answer.code == pb.OK and reply.tiled and reply.tiles == 2, (answer, reply)
    assert "whole needs" in reply.tiled_why


# ---- faults


def image_of(answer):
    header, rest = answer
    assert header.code == pb.OK, header
    return rest[1]


def test_memory_that_lacks_in_spite_of_the_plan_is_an_answer_in_tiles(make_emulated, faults):
    daemon = make_emulated()
    client = daemon.raw()
    latent = random_latent(1, 4, 14)
    image_of(client.ask(*decode_request(random_latent(1, 1, 2))))
    faults.set("refuse", 500_000)
    header, rest = client.ask(*decode_request(latent, may_tile=True))
    assert header.code == pb.OK and pb.ImageReply.FromString(rest[0]).tiled, header
    assert not faults.is_set("refuse") and "promise.broken" in daemon.read_log()
    _, body, payload = decode_request(latent)
    body.tiling = pb.TILING_ALWAYS
    assert image_of(client.ask(latent_request(latent)[0], body, payload)) == rest[1]


def test_what_may_not_be_tiled_is_tried_again(make_emulated, faults):
    daemon = make_emulated()
    client = daemon.raw()
    latent = random_latent(1, 2, 3)
    wanted = image_of(client.ask(*decode_request(latent)))
    daemon.kill_child("executor-process")
    faults.set("refuse", 100_000)
    image_of(client.ask(*decode_request(random_latent(1, 1, 1))))
    faults.set("refuse", 100_000)
    assert image_of(client.ask(*decode_request(latent))) == wanted
    assert not faults.is_set("refuse")
    text, data = text_request(pb.ENCODE_TEXT, "a cat")
    wanted = image_of(client.ask(text, pb.EncodeText(), data))
    daemon.kill_child("executor-process")
    again, data = text_request(pb.ENCODE_TEXT, "a cat")
    faults.set("refuse", 300_000)
    assert image_of(client.ask(again, pb.EncodeText(), data, seconds=30)) == wanted
    assert not faults.is_set("refuse")


def test_memory_that_lacks_within_a_run_costs_no_request(make_emulated, faults):
    daemon = make_emulated()
    client = daemon.raw()
    latent = random_latent(1, 4, 14)
    whole = image_of(client.ask(*decode_request(latent)))
    executor = daemon.child("executor-process")
    faults.set("lack", 1)
    header, rest = client.ask(*decode_request(latent + 1, may_tile=True), seconds=60)
    assert header.code == pb.OK and pb.ImageReply.FromString(rest[0]).tiled, header
    assert not faults.is_set("lack") and "promise.broken" in daemon.read_log()
    faults.set("lack", 1)
    header, rest = client.ask(*decode_request(latent), seconds=60)
    assert header.code == pb.OK and rest[1] == whole
    for prompt in ("a cat", "a dog"):
        faults.set("lack", 1)
        text, data = text_request(pb.ENCODE_TEXT, prompt)
        image_of(client.ask(text, pb.EncodeText(), data, seconds=60))
        assert not faults.is_set("lack")
    assert daemon.child("executor-process") == executor and "device.broken" not in daemon.read_log()


def test_a_driver_that_is_long_about_memory_stops_nobody(make_emulated, faults):
    daemon = make_emulated()
    client = daemon.raw()
    latent = random_latent(1, 4, 14)
    wanted = image_of(client.ask(*decode_request(random_latent(1, 1, 2))))
    text, data = text_request(pb.ENCODE_TEXT, "a cat")
    image_of(client.ask(text, pb.EncodeText(), data))
    faults.set("stall", 1_000_000)
    header, body, payload = decode_request(latent)
    client.send(header, body, payload)
    wait_running(daemon)
    text, data = text_request(pb.ENCODE_TEXT, "a dog")
    image_of(client.ask(text, pb.EncodeText(), data))  # a lane beside it
    cancel = request(pb.CANCEL)
    client.send(cancel, pb.Cancel(id=header.id))
    codes = {answer.id: answer.code for answer, _ in (client.receive(), client.receive())}
    assert codes == {header.id: pb.CANCELLED, cancel.id: pb.OK}
    again = decode_request(random_latent(1, 1, 2))
    client.send(*again)
    assert client.is_silent(300)  # its lane waits
    faults.clear("stall")
    answer, rest = client.receive()
    assert (answer.id, answer.code) == (again[0].id, pb.OK) and rest[1] == wanted
    assert image_of(client.ask(*decode_request(latent)))


@pytest.mark.parametrize("number", [1, 60, 200])
def test_any_allocation_may_fail(make_emulated, number):
    daemon = make_emulated(environment={"LUNA_EMULATION_FAIL_AT": str(number)})
    client = daemon.raw()
    latent = random_latent(1, 1, 2)
    image = image_of(client.ask(*decode_request(latent)))
    assert image_of(client.ask(*decode_request(latent))) == image
    text, data = text_request(pb.ENCODE_TEXT, "a cat")
    image_of(client.ask(text, pb.EncodeText(), data))


def wait_running(daemon):
    wait_until(lambda: daemon.status().requests.running == 1, 20, "it runs")


def start_slow_decode(daemon, client, faults):
    """The image that a decode is to give which runs now, and takes its time."""
    latent = random_latent(1, 2, 3)
    wanted = image_of(client.ask(*decode_request(latent)))
    faults.set("pace", 5000)
    client.send(*decode_request(latent))
    wait_running(daemon)
    return wanted


def test_a_device_that_breaks_costs_no_request(make_emulated, faults):
    daemon = make_emulated()
    client = daemon.raw()
    wanted = start_slow_decode(daemon, client, faults)
    before = daemon.executor_pid
    faults.set("break")
    header, rest = client.receive()
    assert header.code == pb.OK and rest[1] == wanted
    assert not faults.is_set("break") and client.is_silent(300)
    assert not is_alive(before) and daemon.executor_pid != before
    assert "device.broken" in daemon.read_log()


def test_an_executor_that_is_killed_costs_no_request(make_emulated, faults):
    daemon = make_emulated()
    client = daemon.raw()
    wanted = start_slow_decode(daemon, client, faults)
    daemon.kill_child("executor-process")
    header, rest = client.receive()
    assert header.code == pb.OK and rest[1] == wanted
    assert client.is_silent(300)


def cancel_and_decode(client, header, latent):
    """Cancels a request that the daemon has; seconds to the image of the latent, asked for behind it."""
    cancel = request(pb.CANCEL)
    begun = time.monotonic()
    client.send(cancel, pb.Cancel(id=header.id))
    client.send(*decode_request(latent))
    answers = {}
    while len(answers) < 3:
        answer, _ = client.receive()
        answers[answer.id] = (answer.code, time.monotonic() - begun)
    assert answers.pop(header.id)[0] == pb.CANCELLED
    assert answers.pop(cancel.id)[0] == pb.OK
    (code, took), = answers.values()
    assert code == pb.OK
    return took


def decode_alone(client, latent):
    """Seconds of a decode while nothing else runs."""
    image_of(client.ask(*decode_request(latent)))
    begun = time.monotonic()
    image_of(client.ask(*decode_request(latent)))
    return time.monotonic() - begun


def test_a_cancelled_run_leaves_its_lane_within_half_a_second(make_emulated, faults):
    daemon = make_emulated({"scaling.vae_workers": "1-1"})
    client = daemon.raw()
    small = random_latent(1, 1, 1)
    alone = decode_alone(client, small)
    faults.set("pace", 100_000)
    header, body, payload = decode_request(random_latent(2, 2, 3))
    client.send(header, body, payload)
    wait_running(daemon)
    assert client.is_silent(300)  # it has begun, and has seconds to go
    faults.clear("pace")
    took = cancel_and_decode(client, header, small)
    assert took - alone <= 0.5 * PATIENCE, (took, alone)


def test_a_cancel_that_overtakes_its_request_on_the_way_to_the_executor_ends_it(make_emulated):
    daemon = make_emulated({"scaling.vae_workers": "1-1"})
    client = daemon.raw()
    small, large = random_latent(1, 1, 1), random_latent(2, 2, 3)
    alone = decode_alone(client, small)
    for _ in range(4):
        header, body, payload = decode_request(large)
        client.send(header, body, payload)
        wait_running(daemon)  # the router has just sent it
        took = cancel_and_decode(client, header, small)
        assert took - alone <= 0.5 * PATIENCE, (took, alone)


@pytest.mark.slow
def test_40_seconds_of_everything_at_random(make_emulated, faults):
    """Allocations that fail, a hog that comes and goes, devices that break: every answer OK, with the right
    bytes, and in the end the ledger says what the driver says."""
    daemon = make_emulated({"scaling.scale_up_delay_ms": 200, "scaling.idle_timeout_s": 2, "limits.restarts_max": 1000},
                           total=128, extra="[model other]\nfiles = vae.safetensors\n")
    latent = random_latent(1, 1, 2)
    with luna.connect(daemon.ipc) as client:
        wanted = [client.decode_latent(latent, model="demo"), client.encode_text("a fox", model="demo").cond]
    stop = threading.Event()
    problems = []
    answered = [0] * 6

    def run(index):
        with luna.connect(daemon.ipc, connect_timeout=60, timeout=60 * PATIENCE) as client:
            while not stop.is_set():
                turn = index + answered[index]
                try:
                    if turn % 3 == 0:
                        right = np.array_equal(client.encode_text("a fox", model="demo").cond, wanted[1])
                    else:
                        right = np.array_equal(client.decode_latent(latent, model=("demo", "other")[turn % 2]), wanted[0])
                    if not right:
                        problems.append("other bytes")
                except luna.Error as error:
                    problems.append(f"{type(error).__name__}: {error}")
                answered[index] += 1

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(answered))]
    for thread in threads:
        thread.start()
    rng = random.Random(5)
    end = time.monotonic() + 40
    broken = 0.0
    while time.monotonic() < end:
        time.sleep(0.7)  # the beat of the faults
        kind = rng.random()
        if kind < 0.35:
            faults.set("refuse", rng.choice([1, 1000, 50_000, 200_000]))
        elif kind < 0.6:
            faults.set("hog", rng.choice([0, 40, 70, 90]) * MB)
        elif kind < 0.8 and time.monotonic() - broken > 4:
            faults.set("break")
            broken = time.monotonic()
        else:
            faults.clear("hog")
    for name in ("hog", "refuse", "break"):
        faults.clear(name)
    time.sleep(2)  # what is left of them passes
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems, problems
    assert all(answered), answered

    def agree():
        now = device(daemon)
        return now.memory_free_bytes + now.weights_bytes + now.reserved_bytes == now.memory_total_bytes

    wait_until(agree, 12, "the ledger says what the driver says")


# ---- traces


def traced(daemon, path, mix):
    """The events of a short bench, by category."""
    done = daemon.cli("bench", "--trace", path, "--clients", "2", "--mix", mix, "--size", "8x16",
                      "--duration", "0.5", "--model", "demo")
    assert done.returncode == 0, done.stderr.decode()
    document = json.loads(path.read_text())
    assert document["displayTimeUnit"] == "ms"
    events = {}
    for event in document["traceEvents"]:
        events.setdefault(event.get("cat", event["ph"]), []).append(event)
    return events


def check_kernels(events):
    """Every launch lies within the operation that it is listed behind, after the one before it."""
    for run in events["run"]:
        first, last = run["ts"] - 0.002, run["ts"] + run["dur"] + 0.002
        mine = [e for e in events["operation"] + events["kernel"]
                if e["tid"] == run["tid"] and first <= e["ts"] <= last]
        operations = [e for e in mine if e["cat"] == "operation"]
        kernels = [e for e in mine if e["cat"] == "kernel"]
        assert kernels and operations
        for kernel in kernels:
            around = operations[kernel["args"]["operation"]]
            assert around["ts"] - 0.002 <= kernel["ts"]
            assert kernel["ts"] + kernel["dur"] <= around["ts"] + around["dur"] + 0.002
        for one, next_one in zip(kernels, kernels[1:]):
            assert one["ts"] + one["dur"] <= next_one["ts"] + 0.002


def test_a_bench_leaves_a_trace_of_every_operation_on_the_device(make_emulated, tmp_path):
    daemon = make_emulated()
    events = traced(daemon, tmp_path / "trace.json", "decode,text")
    pid = daemon.executor_pid
    assert {e["args"]["name"] for e in events["M"]} >= {"luna executor emulated", "vae_worker demo",
                                                       "clip_worker demo"}
    names = {e["name"].split()[0] for e in events["operation"]}
    assert names >= {"convolution", "attention", "pixels_store", "latent_load", "linear", "layer_norm", "embedding"}
    assert any(e["name"].startswith("convolution 3x3 ") and e["args"]["flop"] > 0 for e in events["operation"])
    for run in events["run"]:
        mine = [e for e in events["operation"] if e["tid"] == run["tid"] and e["pid"] == run["pid"] == pid
                and run["ts"] <= e["ts"] <= run["ts"] + run["dur"]]
        assert mine and sum(e["dur"] for e in mine) <= run["dur"]
        peak = max(e["args"]["live_bytes"] for e in mine)
        assert 0 < peak <= run["args"]["peak_bytes"] <= run["args"]["arena_bytes"]
        assert any(r["ts"] <= run["ts"] and run["ts"] + run["dur"] <= r["ts"] + r["dur"] for r in events["request"])
    check_kernels(events)
    assert {e["name"] for e in events["kernel"]} >= {"products_mma", "convolution_mma", "copy in", "copy out"}
    memory = [e["args"] for e in events["C"] if e["name"] == "device memory"]
    # Images and texts have a device each, of one card.
    assert memory and all(0 < m["used_bytes"] <= 256 * MB - m["free_bytes"] for m in memory)
    # Who asks for no trace gets none.
    header, rest = daemon.raw().ask(*decode_request(random_latent(1, 1, 2)))
    assert [t.name for t in header.tensors] == ["image"] and len(rest) == 2


def test_texts_that_come_again_run_as_one_graph_with_the_same_bytes(make_emulated, faults):
    daemon = make_emulated({"cache.conditioning_mb": 0})
    client = daemon.raw()
    answers = []
    for text, fault in (("a cat", 0), ("a dog", 0), ("a cat", 0), ("a cat", 1), ("a cat", 0)):
        if fault:
            faults.set("graph", fault)
        header, data = text_request(pb.ENCODE_TEXT, text)
        answer, rest = client.ask(header, pb.EncodeText(), data)
        assert answer.code == pb.OK and not faults.is_set("graph"), answer
        answers.append(rest[1:])
    assert answers[0] == answers[2] == answers[3] == answers[4] != answers[1]
    header, data = text_request(pb.ENCODE_TEXT, "a cat", want_trace=True)
    answer, rest = client.ask(header, pb.EncodeText(), data)
    assert rest[1:3] == answers[0]
    run, = (event for event in json.loads(rest[3]) if event.get("cat") == "run")
    # Plain; recorded and run; run; failed, so it went and the launches were plain; recorded anew.
    assert (run["args"]["graphs_recorded"], run["args"]["graphs_replayed"]) == (2, 3)


@pytest.mark.parametrize("path, note", [(None, "linears by our own products in the place of cuBLASLt"),
                                        ("/nowhere/libcublasLt.so", "linears by our own kernels: ")])
def test_the_log_says_who_makes_linears_and_a_library_that_lacks_stops_nothing(make_emulated, path, note):
    own, other = [], []
    for environment, answers in (({}, own), (
            {"LUNA_CUDA_LINEARS": "cublaslt", **({"LUNA_CUBLASLT": path} if path else {})}, other)):
        daemon = make_emulated({"cache.conditioning_mb": 0}, environment=environment)
        client = daemon.raw()
        for _ in range(2):  # launch by launch, then as a graph
            header, data = text_request(pb.ENCODE_TEXT, "a cat")
            answer, rest = client.ask(header, pb.EncodeText(), data)
            assert answer.code == pb.OK, answer
            answers.append(b"".join(rest[1:]))
        log = daemon.read_log()
        assert ("device.note" in log) == bool(environment)
        assert not environment or note in log
        assert answers[0] == answers[1]
    # A library adds up the parts of split operands each for itself.
    mine, its = (np.frombuffer(answers[0], np.float32) for answers in (own, other))
    assert np.abs(mine - its).max() <= (1e-5 * np.abs(mine).max() if path is None else 0)


def test_a_processor_traces_runs(shared, tmp_path):
    events = traced(shared, tmp_path / "trace.json", "encode")
    assert events["run"] and events["request"] and not {"operation", "kernel"} & events.keys()


def test_an_answer_with_a_trace_is_not_kept_for_others(make_emulated):
    daemon = make_emulated({"cache.conditioning_mb": 64})
    client = daemon.raw()
    tensors = []
    for wants in (True, False, False):
        header, data = text_request(pb.ENCODE_TEXT, "a cat", want_trace=wants)
        answer, rest = client.ask(header, pb.EncodeText(), data)
        assert answer.code == pb.OK, answer
        tensors.append([t.name for t in answer.tensors])
        cached = pb.TextReply.FromString(rest[0]).cached
    assert tensors == [["cond", "pooled", "trace"], ["cond", "pooled"], ["cond", "pooled"]] and cached
