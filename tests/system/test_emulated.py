"""The daemon on the emulated GPU: the kernels of kernels/cuda behind the real executor, without a card."""

import numpy as np
import pytest

import luna
from conftest import BINARY
from files import random_latent

pytestmark = pytest.mark.skipif(not (BINARY.parent / "libluna_emulated.so").exists(),
                                reason="this build has no emulated device")


@pytest.fixture(scope="module")
def cpu(shared):
    with luna.connect(shared.ipc) as client:
        yield client


def test_the_emulated_device_answers_with_the_numbers_of_the_cpu(make_daemon, cpu):
    emulated = make_daemon(settings={"service.devices": "emulated"},
                           environment={"LD_LIBRARY_PATH": str(BINARY.parent)})
    with luna.connect(emulated.ipc) as client:
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
