"""The daemon on the emulated GPU: the kernels of kernels/cuda behind the real executor, without a card.

Faults are files in a folder that the emulated driver looks into (kernels/cuda/driver_emulated.cpp): what
somebody else holds of the device, an allocation that fails, a launch that breaks the device, a slow device.
"""

import json
import os
import subprocess
import threading
import time

import numpy as np
import pytest

import luna
from conftest import BINARY, PATIENCE, is_alive, latent_request, request, text_request, wait_until
from files import random_latent
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
    daemon = make_daemon(environment={**cards(2), "LUNA_EMULATION_BYTES": str(8192 * MB)})
    wait_until(lambda: len(daemon.status().devices) == 2, 10, "two devices report")
    status = daemon.status()
    assert sorted(d.name for d in status.devices) == ["cuda:0", "cuda:1"]
    assert status.gpus == "2, emulation"
    for described in status.devices:
        assert described.compute_capability == "8.0" and described.driver == "emulation"
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
    with luna.connect(make_emulated().ipc) as client:
        latent = random_latent(1, 2, 3)
        off = np.abs(client.decode_latent(latent) - cpu.decode_latent(latent)).max()
        assert 1e-4 < off <= 5e-2
        text = client.encode_text("a (red:1.2) fox").cond
        want = cpu.encode_text("a (red:1.2) fox").cond
        assert np.abs(text - want).max() <= 2e-4 * np.abs(want).max()
