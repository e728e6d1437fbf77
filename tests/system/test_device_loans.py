"""Device memory that clients hold: how long it is kept, whoever of the daemon ends meanwhile, and how it is made.

See test_device_memory.py, whose daemons and whose client's driver these are.
"""

import os
import select
import signal

import numpy as np
import pytest

import luna
from conftest import wait_until
from device_arrays import LIBRARY, Array
from luna import cuda, luna_pb2 as pb
from test_device_memory import (LATENT, UUID, child, decode, device, driver, lease, make_emulated,  # noqa: F401
                                mapped, session_of, transport, wait_lends)
from test_emulated import EMULATED, MB, faults  # noqa: F401
from test_emulated import make_emulated as start_emulated  # noqa: F401

pytestmark = pytest.mark.skipif(not EMULATED.exists() or not LIBRARY.exists(),
                                reason="this build has no emulated device")


def lent(daemon):
    """Bytes that are lent; None while the core that there is knows no device."""
    devices = daemon.status().devices
    return devices[0].lent_bytes if devices else None


def take_buffer(session):
    """A DeviceBuffer of a session: 2 MB, mapped."""
    array = Array(LATENT)
    buffer = session.take_buffer(cuda.memory(array.pointer, 1).card, MB)
    assert buffer is not None
    return buffer


def test_what_a_client_has_open_outlives_the_core_until_the_client_closes_it(make_emulated):  # noqa: F811
    daemon = make_emulated()
    session = session_of(daemon)
    buffer = take_buffer(session)
    card = buffer.card
    content = os.urandom(2 * MB)
    card.write(buffer.pointer, content)
    executor = daemon.executor_pid
    daemon.kill_child("core-process")
    wait_lends(daemon)  # whoever asks then is answered by an executor that knows of the core's end
    assert not session.alive

    def is_kept():
        if not daemon.status().devices:
            return False
        now = device(daemon)
        held = now.weights_bytes + now.reserved_bytes
        return now.lent_bytes == 2 * MB and now.memory_free_bytes + held == now.memory_total_bytes

    wait_until(is_kept, 5, "the new core hears of it")
    assert (transport(daemon).leases, daemon.executor_pid) == (0, executor)
    assert bytes(card.read(buffer.pointer, 2 * MB, None)) == content
    with luna.connect(daemon.ipc) as client:  # another lease beside it
        decode(client)
        wait_until(lambda: device(daemon).lent_bytes == 4 * MB, 5, "both")
        assert bytes(card.read(buffer.pointer, 2 * MB, None)) == content
    buffer.close()
    wait_until(lambda: device(daemon).lent_bytes == 0, 5, "it comes back")
    assert mapped() == 0


def test_what_a_client_has_open_outlives_the_core_until_the_client_dies(make_emulated, child):  # noqa: F811
    daemon = make_emulated()
    process = child(daemon)
    daemon.kill_child("core-process")
    wait_lends(daemon)
    wait_until(lambda: lent(daemon) == 2 * MB, 5, "the new core hears of it")
    assert transport(daemon).leases == 0
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: device(daemon).lent_bytes == 0, 5, "it comes back")


def test_what_nobody_says_he_has_open_ends_with_the_core(make_emulated):  # noqa: F811
    daemon = make_emulated()
    session = session_of(daemon)
    assert lease(session).code == pb.OK
    wait_until(lambda: lent(daemon) == 2 * MB, 5, "a lease keeps it")
    daemon.kill_child("core-process")
    wait_lends(daemon)
    wait_until(lambda: lent(daemon) == 0, 5, "it comes back")


def test_a_session_that_ends_first_takes_nothing_from_under_what_is_open(make_emulated):  # noqa: F811
    daemon = make_emulated()
    session = session_of(daemon)
    buffer = take_buffer(session)
    buffer.card.write(buffer.pointer, b"still here")
    of_a_fork = os.dup(buffer._hold._descriptor)
    session.close()
    wait_until(lambda: transport(daemon).leases == 0, 5, "the lease ends")
    other = session_of(daemon)
    assert lease(other).code == pb.OK  # the executor has read what the core said before
    other.close()
    wait_until(lambda: lent(daemon) == 2 * MB, 5, "the memory stays")
    assert bytes(buffer.card.read(buffer.pointer, 10, None)) == b"still here"
    buffer.close()
    wait_until(lambda: device(daemon).lent_bytes == 0, 5, "it comes back, whatever a fork holds")
    os.close(of_a_fork)


def test_who_gives_back_and_closes_nothing_gets_no_more_after_a_while(make_emulated):  # noqa: F811
    daemon = make_emulated()
    buffers = []
    for _ in range(16):
        session = session_of(daemon)
        buffers.append(take_buffer(session))
        session.close()
        wait_until(lambda: transport(daemon).leases == 0, 5, "the lease ends")
    session = session_of(daemon)
    reply = lease(session)
    assert reply.code == pb.RESOURCE_EXHAUSTED, reply
    assert "16 allocations of device emulated are open by you, of 32 MB: 2 MB more" in reply.message
    buffers.pop().close()
    wait_until(lambda: lease(session).code == pb.OK, 5, "room")
    for buffer in buffers:
        buffer.close()
    wait_until(lambda: device(daemon).lent_bytes == 2 * MB, 5, "only what is leased")


def ask_slowly(session):
    """Asks for 64 MB, which takes until a stall is over; the answer is to be read."""
    session._socket.settimeout(20)
    session._socket.send(pb.LeaseRequest(acquire_bytes=64 * MB, device=UUID).SerializeToString())


def test_a_driver_that_is_long_about_a_loan_stops_nobody(make_emulated, faults):  # noqa: F811
    daemon = make_emulated()
    session = session_of(daemon)
    with luna.connect(daemon.ipc) as client:
        wanted = decode(client)
        before = transport(daemon).device_bytes
        faults.set("stall", 64 * MB)
        ask_slowly(session)
        wait_until(lambda: device(daemon).lent_bytes == 66 * MB, 5, "it counts while it is made")
        client.encode_text("a cat")  # the executor starts a worker
        assert np.array_equal(decode(client), wanted)  # and lends what it has to a job
        assert transport(daemon).device_bytes == before + LATENT.nbytes + wanted.nbytes
        assert not select.select([session._socket], [], [], 0.1)[0]
        faults.clear("stall")
        packet, _ = session._socket.recv(4096), session.close()
        reply = pb.LeaseReply.FromString(packet)
        assert (reply.code, reply.bytes, len(reply.handle)) == (pb.OK, 64 * MB, 64)
        wait_until(lambda: device(daemon).lent_bytes == 2 * MB, 5, "it comes back")


def test_a_loan_whose_core_ends_while_it_is_made_is_taken_back_when_it_is(make_emulated, faults):  # noqa: F811
    daemon = make_emulated()
    session = session_of(daemon)
    faults.set("stall", 64 * MB)
    ask_slowly(session)
    wait_until(lambda: lent(daemon) == 64 * MB, 5, "it is being made")
    executor = daemon.executor_pid
    daemon.kill_child("core-process")
    wait_lends(daemon)
    with luna.connect(daemon.ipc) as client:
        client.decode_latent(LATENT)
    wait_until(lambda: lent(daemon) == 64 * MB, 5, "it is still being made")
    faults.clear("stall")
    wait_until(lambda: device(daemon).lent_bytes == 0, 5, "it comes back")
    assert daemon.executor_pid == executor
