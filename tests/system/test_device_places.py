"""Tensors on one of several cards: who gets a worker there, and what happens where that cannot be."""

import numpy as np
import pytest

import luna
from conftest import wait_until
from device_arrays import LIBRARY, OTHER, SERVED, Array, library, to_numpy
from files import random_latent
from luna import luna_pb2 as pb
from test_device_memory import lease, session_of, transport
from test_emulated import EMULATED, MB, cards, faults  # noqa: F401

pytestmark = pytest.mark.skipif(not EMULATED.exists() or not LIBRARY.exists(),
                                reason="this build has no emulated device")
LATENT = random_latent(1, 1, 2)
CARDS = {"cuda:0": SERVED, "cuda:1": OTHER}  # as their client counts


@pytest.fixture(autouse=True)
def driver():
    return library()


@pytest.fixture
def make_two(make_daemon, cards, faults):  # noqa: F811
    """Starts daemons with two cards of so many MB that lend."""
    def make(settings=(), total=256):
        environment = {**cards(2), "LUNA_EMULATION_FAULTS": str(faults.folder),
                       "LUNA_EMULATION_BYTES": str(int(total * MB))}
        daemon = make_daemon(settings={"scaling.memory_margin_mb": 16, "scaling.scale_up_delay_ms": 200, **dict(settings)},
                             environment=environment)
        wait_until(lambda: len(daemon.status().devices) == 2, 10, "two devices report")
        wait_until(lambda: all(lease(session_of(daemon), acquire_bytes=1 << 60, device=card.uuid).code
                               == pb.INVALID_ARGUMENT for card in daemon.status().devices), 20, "both cards lend")
        return daemon
    return make


def card(daemon, name):
    return next(d for d in daemon.status().devices if d.name == name)


def other_card(daemon):
    """The card without the service's worker."""
    return next(name for name in CARDS if name != daemon.service("vae").device)


def until_on_the_device(daemon, client, name, wanted):
    """Decodes until a call's tensors stay on that card."""
    def stays():
        before = transport(daemon).device_bytes
        assert np.array_equal(to_numpy(client.decode_latent(Array(LATENT, CARDS[name]))), wanted)
        return transport(daemon).device_bytes - before == LATENT.nbytes + wanted.nbytes

    wait_until(stays, 20, f"a call by {name}")


@pytest.mark.parametrize("name", CARDS)
def test_the_first_worker_comes_where_the_tensors_lie(make_two, name):
    daemon = make_two()
    with luna.connect(daemon.ipc) as client:
        image = to_numpy(client.decode_latent(Array(LATENT, CARDS[name])))
        assert daemon.service("vae").device == name
        assert transport(daemon).device_bytes == LATENT.nbytes + image.nbytes
        assert np.array_equal(image, daemon.connect(shared_memory=False).decode_latent(LATENT))
    assert daemon.status().requests.failed == 0


def test_a_card_that_clients_keep_coming_from_gets_a_worker_beside_the_one_elsewhere(make_two):
    daemon = make_two()
    events = daemon.events
    wanted = daemon.connect(shared_memory=False).decode_latent(LATENT)
    name = other_card(daemon)
    with luna.connect(daemon.ipc) as client:
        until_on_the_device(daemon, client, name, wanted)
        up = events.wait_topic("scaling.up", signal="device_wanted_s")
        assert (up.device, up.workers, up.threshold) == (name, 2, 0.2) and up.value >= 0.2
        failed = daemon.status().requests.failed
        assert failed > 0  # that is how the client learned to bring them by the host
        for _ in range(4):
            client.decode_latent(Array(LATENT, CARDS[name]))
        assert daemon.status().requests.failed == failed
        assert len(events.of("scaling.up", operation="vae")) == 2


def test_a_full_card_gets_no_worker_until_there_is_room_and_its_clients_are_served(make_two):
    daemon = make_two(total=64)
    events = daemon.events
    wanted = daemon.connect(shared_memory=False).decode_latent(LATENT)
    name = other_card(daemon)
    session = session_of(daemon)
    taken = lease(session, acquire_bytes=44 * MB, device=card(daemon, name).uuid)
    assert taken.code == pb.OK
    with luna.connect(daemon.ipc) as client:
        def is_refused():
            assert np.array_equal(to_numpy(client.decode_latent(Array(LATENT, CARDS[name]))), wanted)
            return events.of("scaling.refused", device=name)

        wait_until(is_refused, 20, "the scaler says no")
        (refused, *_) = is_refused()
        assert refused.signal == "memory_free_bytes" and refused.value < refused.threshold
        assert daemon.service("vae").workers == 1 and transport(daemon).device_bytes == 0
        session.close()
        until_on_the_device(daemon, client, name, wanted)


def test_where_no_more_workers_are_allowed_its_clients_are_served_by_the_host(make_two):
    daemon = make_two({"scaling.vae_workers": "0-1"})
    plain = daemon.connect(shared_memory=False)
    wanted = plain.decode_latent(LATENT)
    name = other_card(daemon)
    with luna.connect(daemon.ipc) as client:
        for _ in range(3):
            assert np.array_equal(to_numpy(client.decode_latent(Array(LATENT, CARDS[name]))), wanted)
            assert np.array_equal(plain.decode_latent(LATENT), wanted)
    assert daemon.service("vae").workers == 1 and transport(daemon).device_bytes == 0
