"""Tensors on one of several cards: who gets a worker there, and what happens where that cannot be."""

import logging

import numpy as np
import pytest

import luna
from conftest import latent_request, wait_until
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


def test_the_first_job_of_a_full_card_goes_by_the_host_to_the_other(make_two):
    daemon = make_two(total=64)
    events = daemon.events
    session = session_of(daemon)
    assert lease(session, acquire_bytes=44 * MB, device=card(daemon, "cuda:1").uuid).code == pb.OK
    with luna.connect(daemon.ipc) as client:
        image = to_numpy(client.decode_latent(Array(LATENT, OTHER)))
        assert daemon.service("vae").device == "cuda:0" and transport(daemon).device_bytes == 0
        assert "device lease of cuda:1: no worker" in events.wait_topic("request.failed", code=pb.NOT_FOUND).message
        assert np.array_equal(image, daemon.connect(shared_memory=False).decode_latent(LATENT))
    session.close()


def test_where_no_more_workers_are_allowed_its_clients_are_served_by_the_host(make_two):
    daemon = make_two({"scaling.vae_workers": "0-1"})
    plain = daemon.connect(shared_memory=False)
    wanted = plain.decode_latent(LATENT)
    name = other_card(daemon)
    with luna.connect(daemon.ipc) as client:
        for _ in range(2):
            assert np.array_equal(to_numpy(client.decode_latent(Array(LATENT, CARDS[name]))), wanted)
            assert np.array_equal(plain.decode_latent(LATENT), wanted)
    assert daemon.service("vae").workers == 1 and transport(daemon).device_bytes == 0


# ---- memory lacks on the card


def start_on_both(make_two, settings=(), **options):
    """A daemon with a worker on each card."""
    daemon = make_two({"scaling.vae_workers": "2-2", **dict(settings)}, **options)
    wait_until(lambda: daemon.service("vae").workers == 2, 20, "a worker on each card")
    return daemon


def test_a_job_that_its_card_has_no_memory_for_just_now_runs_elsewhere(make_two, faults, caplog):  # noqa: F811
    daemon = start_on_both(make_two)
    events = daemon.events
    wanted = daemon.connect(shared_memory=False).decode_latent(LATENT)
    with caplog.at_level(logging.DEBUG, "luna"), luna.connect(daemon.ipc) as client:
        faults.set("lack")
        assert np.array_equal(to_numpy(client.decode_latent(Array(LATENT, OTHER))), wanted)
        assert not faults.is_set("lack")
        assert transport(daemon).device_bytes == 0
        assert "device lease of cuda:1: it lacks memory" in events.wait_topic("request.failed").message
        until_on_the_device(daemon, client, "cuda:1", wanted)


def fill(daemon, session):
    """Takes what can be had of cuda:1; the lease."""
    free = card(daemon, "cuda:1").memory_free_bytes
    taken = lease(session, acquire_bytes=free // (2 * MB) * 2 * MB, device=card(daemon, "cuda:1").uuid)
    assert taken.code == pb.OK
    return taken


# Of so many MB, half an MB and less is left beside the weights and leases of 2 MB each.
NARROW = {"settings": {"scaling.memory_margin_mb": 0}, "total": 30.4}
LARGE = random_latent(1, 4, 4)  # wants more than that


def test_a_job_that_its_card_can_never_hold_runs_elsewhere(make_two):
    daemon = start_on_both(make_two, **NARROW)
    events = daemon.events
    with luna.connect(daemon.ipc) as client:
        client.decode_latent(Array(LATENT, OTHER))  # it has its buffer
        before = transport(daemon).device_bytes
        assert before > 0
        session = session_of(daemon)
        fill(daemon, session)
        image = to_numpy(client.decode_latent(Array(LARGE, OTHER), tiling="never"))
        assert transport(daemon).device_bytes == before
        assert np.array_equal(daemon.connect(shared_memory=False).decode_latent(LARGE), image)
        session.close()
    assert "cuda:1: it lacks memory" in events.wait_topic("request.failed", code=pb.NOT_FOUND).message
    assert len(events.of("request.failed")) == 1


def test_without_another_card_the_answer_stays_that_memory_lacks(make_two):
    daemon = make_two({"scaling.vae_workers": "0-1", **NARROW["settings"]}, NARROW["total"])
    with luna.connect(daemon.ipc) as client:
        client.decode_latent(Array(LATENT, OTHER))
        assert daemon.service("vae").device == "cuda:1"
        session = session_of(daemon)
        taken = fill(daemon, session)
        header, _ = latent_request(LARGE)
        header.tensors[0].where = pb.DEVICE
        header.tensors[0].shared.CopyFrom(pb.SharedRef(pool=taken.pool, slot=taken.slot, generation=taken.generation))
        answer, _ = daemon.raw().ask(header, pb.DecodeLatent(tiling=pb.TILING_NEVER))
        session.close()
    assert (answer.code, answer.retry_after_ms) == (pb.RESOURCE_EXHAUSTED, 1000), answer
    assert "device cuda:1 can give" in answer.message
