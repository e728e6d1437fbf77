"""Large tensors of local clients travel through shared memory, and it comes back whatever becomes of them."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from conftest import latent_request, request, wait_until
from files import PICTURE, random_latent, read_picture
from luna import luna_pb2 as pb

CLIENT = """
import sys
sys.path.insert(0, sys.argv[1])
from luna import luna_pb2 as pb, shared
session = shared.Session(sys.argv[2])
leases = [session.acquire(1 << 20) for _ in range(3)]
assert all(leases)
print("leased", flush=True)
sys.stdin.read()
"""


def transport(daemon):
    return daemon.status().transport


def test_python_moves_large_tensors_through_shared_memory_and_small_ones_in_frames(daemon):
    client = daemon.connect()
    picture = read_picture()
    client.encode_image(picture)
    assert transport(daemon).shared_bytes >= picture.nbytes
    assert transport(daemon).frame_bytes < picture.nbytes
    before = transport(daemon)
    client.decode_latent(random_latent(1))  # 4 KiB in, 48 KiB out
    after = transport(daemon)
    assert after.frame_bytes - before.frame_bytes == 4096 + 64 * 64 * 3 * 4
    assert after.shared_bytes == before.shared_bytes
    wait_until(lambda: transport(daemon).leases == 0, 5, "every lease comes back")


def test_the_command_line_does_so_too(daemon, tmp_path):
    assert daemon.cli("encode", PICTURE, "-o", tmp_path / "x.safetensors").returncode == 0
    assert transport(daemon).shared_bytes >= 384 * 256 * 3
    assert daemon.cli("decode", tmp_path / "x.safetensors", "-o", tmp_path / "y.png").returncode == 0
    assert transport(daemon).shared_bytes >= 2 * 384 * 256 * 3
    wait_until(lambda: transport(daemon).leases == 0, 5, "every lease comes back")


def test_the_bytes_are_the_same_either_way(daemon):
    shared, plain, remote = (daemon.connect(), daemon.connect(shared_memory=False), daemon.connect(daemon.tcp))
    latent = shared.encode_image(read_picture())
    image = shared.decode_latent(latent)
    before = transport(daemon).shared_bytes
    for client in (plain, remote):
        assert client.encode_image(read_picture()).tobytes() == latent.tobytes()
        assert client.decode_latent(latent).tobytes() == image.tobytes()
    assert transport(daemon).shared_bytes == before


def test_tcp_clients_get_no_shared_memory(daemon):
    answer, _ = daemon.raw(endpoint=daemon.tcp).ask(request(pb.ATTACH))
    assert answer.code == pb.FAILED_PRECONDITION
    answer, rest = daemon.raw().ask(request(pb.ATTACH))
    attach = pb.AttachReply.FromString(rest[0])
    assert answer.code == pb.OK and attach.bytes_min == 262144 and os.path.exists(attach.path)


def test_leases_of_a_client_that_is_killed_come_back(daemon):
    attach = pb.AttachReply.FromString(daemon.raw().ask(request(pb.ATTACH))[1][0])
    package = os.path.dirname(os.path.dirname(pb.__file__))
    child = subprocess.Popen([sys.executable, "-c", CLIENT, package, attach.path], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"leased\n"
        wait_until(lambda: transport(daemon).leases == 3, 5, "three leases")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()
    wait_until(lambda: transport(daemon).leases == 0, 1, "they come back within a second")


def test_a_lease_that_was_given_back_cannot_be_used(daemon):
    from luna import shared

    attach = pb.AttachReply.FromString(daemon.raw().ask(request(pb.ATTACH))[1][0])
    session = shared.Session(attach.path)
    lease = session.acquire(1 << 20)
    ref = pb.SharedRef(pool=lease.pool, slot=lease.slot, generation=lease.generation)
    latent = random_latent(1)
    lease.memory[: latent.nbytes] = latent.tobytes()
    header, _ = latent_request(latent)
    header.tensors[0].where = pb.SHARED
    header.tensors[0].shared.CopyFrom(ref)
    client = daemon.raw()
    answer, rest = client.ask(header)
    assert answer.code == pb.OK, answer
    whole, payload = latent_request(latent)
    assert client.ask(whole, b"", payload)[1][1] == rest[1]
    session.release(lease)
    header.id = os.urandom(16)
    answer, _ = client.ask(header)
    assert answer.code != pb.OK
    session.close()


@pytest.mark.parametrize("change", [{"offset": 1 << 40}, {"generation": 77}, {"slot": 9999}, {"pool": 99}])
def test_references_that_lie_are_refused(daemon, change):
    from luna import shared

    attach = pb.AttachReply.FromString(daemon.raw().ask(request(pb.ATTACH))[1][0])
    session = shared.Session(attach.path)
    lease = session.acquire(1 << 20)
    fields = {"pool": lease.pool, "slot": lease.slot, "generation": lease.generation, **change}
    header, _ = latent_request(random_latent(1))
    header.tensors[0].where = pb.SHARED
    header.tensors[0].shared.CopyFrom(pb.SharedRef(**fields))
    answer, _ = daemon.raw().ask(header)
    assert answer.code not in (pb.OK, pb.INTERNAL), answer
    session.close()
    assert daemon.is_serving()


def test_leases_stop_at_a_limit_and_are_refused_not_crashed(daemon):
    from luna import shared

    attach = pb.AttachReply.FromString(daemon.raw().ask(request(pb.ATTACH))[1][0])
    session = shared.Session(attach.path)
    assert session.acquire(1 << 60) is None
    leases = []
    while (lease := session.acquire(64 << 20)) is not None and len(leases) < 200:
        leases.append(lease)
    assert leases and len(leases) < 200
    session.close()
    wait_until(lambda: transport(daemon).leases == 0, 5, "every lease comes back")
    image = np.zeros((1, 256, 256, 3), np.float32)
    assert daemon.connect().encode_image(image).shape == (1, 16, 32, 32)
