"""Starting, ending, and being there only once."""

import os
import signal
import socket
import subprocess
import threading
import time

import pytest

import luna
from conftest import BINARY, PATIENCE, children_of, is_alive, latent_request, request, wait_until
from files import random_latent
from luna import luna_pb2 as pb


@pytest.mark.release
def test_is_ready_within_300_ms_of_exec(make_daemon):
    seconds = [make_daemon().ready_seconds for _ in range(3)]
    assert min(seconds) <= 0.3, seconds


def test_the_first_line_names_every_address_and_each_answers(daemon):
    assert daemon.ipc == f"ipc://{daemon.folder}/luna.sock"
    assert daemon.tcp.startswith("tcp://127.0.0.1:") and not daemon.tcp.endswith(":0")
    for endpoint in daemon.endpoints:
        answer, _ = daemon.raw(endpoint=endpoint).ask(request(pb.PING))
        assert answer.code == pb.OK


def test_status_tells_the_pid_that_was_started(daemon):
    assert daemon.status().pid == daemon.pid
    assert daemon.status().devices[0].executor_pid == daemon.executor_pid


def test_sockets_are_for_this_user_alone(daemon):
    assert (daemon.folder / "luna.sock").stat().st_mode & 0o077 == 0


def test_a_second_instance_on_the_same_socket_is_refused_and_the_first_untouched(daemon):
    done = daemon.cli("serve", "-c", daemon.config_path)
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert len([line for line in lines if line.startswith("luna: FAILED_PRECONDITION: ")]) == 1, lines
    assert "luna.sock" in done.stderr.decode()
    assert daemon.is_serving()


def test_a_port_that_is_taken_is_named(make_daemon, models):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run([BINARY, "serve", "--set", f"listen.requests=tcp://127.0.0.1:{port}"],
                              capture_output=True, timeout=20 * PATIENCE)
    assert done.returncode == 1
    assert str(port) in done.stderr.decode() and "FAILED_PRECONDITION" in done.stderr.decode()


def test_a_socket_that_a_dead_daemon_left_is_taken_over(make_daemon):
    daemon = make_daemon()
    children = children_of(daemon.pid)
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.process.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in children), 5, "children end with their supervisor")
    assert (daemon.folder / "luna.sock").is_socket()
    again = subprocess.Popen([BINARY, "serve", "-c", daemon.config_path], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, env=daemon.environment)
    try:
        assert again.stdout.readline().startswith(b"luna: ready ")
    finally:
        again.terminate()
        assert again.wait(20 * PATIENCE) == 0
        again.stdout.close()
    daemon.stop = daemon.check_nothing_left  # its own end was not a good one, on purpose


def test_sigterm_answers_what_runs(daemon):
    busy = daemon.raw()
    header, payload = latent_request(random_latent(1, 64, 64))
    busy.send(header, b"", payload)
    wait_until(lambda: daemon.status().requests.running == 1, 20, "the decode runs")
    daemon.process.send_signal(signal.SIGTERM)
    answer, rest = busy.receive(30)
    assert (answer.id, answer.code) == (header.id, pb.OK)
    assert len(rest[1]) == 512 * 512 * 3 * 4
    assert daemon.wait_end() == 0


def test_sigint_ends_with_0(daemon):
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.wait_end(10) == 0


def test_a_second_signal_ends_at_once(daemon):
    busy = daemon.raw()
    header, payload = latent_request(random_latent(1, 128, 128))
    busy.send(header, b"", payload)
    wait_until(lambda: daemon.status().requests.running == 1, 20, "the decode runs")
    daemon.process.send_signal(signal.SIGTERM)
    wait_until(lambda: daemon.status().state == "draining", 5, "draining")
    begun = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.wait_end(5) == 1
    assert time.monotonic() - begun < 2 * PATIENCE
    daemon.stop = daemon.check_nothing_left


def test_drain_finishes_what_runs_and_takes_nothing_new(daemon):
    busy, other = daemon.raw(), daemon.raw()
    header, payload = latent_request(random_latent(1, 64, 64))
    busy.send(header, b"", payload)
    wait_until(lambda: daemon.status().requests.running == 1, 20, "the decode runs")
    assert daemon.cli("drain").returncode == 0
    fresh, payload = latent_request(random_latent(2))
    answer, _ = other.ask(fresh, b"", payload)
    assert answer.code == pb.UNAVAILABLE, answer
    assert busy.receive(30)[0].code == pb.OK
    assert daemon.status().state == "draining"
    assert pb.PingReply.FromString(other.ask(request(pb.PING))[1][0]).state == "draining"


def test_shutdown_drains_and_ends_with_0(daemon):
    answers = []

    def work():
        with luna.connect(daemon.ipc) as client:
            answers.append(client.decode_latent(random_latent(3, 64, 64)).shape)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: daemon.status().requests.running == 1, 20, "the decode runs")
    assert daemon.cli("shutdown").returncode == 0
    assert daemon.wait_end() == 0
    thread.join()
    assert answers == [(1, 512, 512, 3)]


def test_only_admins_drain_shut_down_register_and_set_limits(daemon):
    user = daemon.raw(endpoint=daemon.tcp)
    for operation, body in ((pb.DRAIN, b""), (pb.SHUTDOWN, b""), (pb.LIMITS, pb.Limits(vae_workers_max=1)),
                            (pb.MODEL_UNLOAD, pb.ModelName(name="demo")),
                            (pb.MODEL_REGISTER, pb.ModelRegister(name="x", files=["vae.safetensors"]))):
        answer, _ = user.ask(request(operation), body)
        assert answer.code == pb.PERMISSION_DENIED, (operation, answer)
    assert daemon.status().state == "ready"


def test_loopback_may_be_admin_by_configuration(make_daemon):
    daemon = make_daemon(settings={"security.loopback_role": "admin"})
    answer, rest = daemon.raw(endpoint=daemon.tcp).ask(request(pb.LIMITS), pb.Limits(vae_workers_max=1))
    assert answer.code == pb.OK, answer
    assert pb.Limits.FromString(rest[0]).vae_workers_max == 1


@pytest.mark.parametrize("setting", ["security.curve=on", "cluster.peers=tcp://127.0.0.1:1",
                                     "cluster.etcd=http://127.0.0.1:2379"])
def test_what_does_not_exist_yet_is_unimplemented_at_the_start(setting):
    done = subprocess.run([BINARY, "serve", "--set", setting], capture_output=True, timeout=20 * PATIENCE)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("luna: UNIMPLEMENTED: ")


def test_an_address_for_everybody_needs_curve():
    done = subprocess.run([BINARY, "serve", "--set", "listen.requests=tcp://0.0.0.0:0"], capture_output=True,
                          timeout=20 * PATIENCE)
    assert done.returncode == 1
    assert "0.0.0.0" in done.stderr.decode()
