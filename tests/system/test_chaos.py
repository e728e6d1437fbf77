"""Mixed load while processes die: every request one answer, OK, with the right bytes, and nothing left behind."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import luna
from conftest import PATIENCE, is_alive, latent_request, wait_until
from files import random_latent
from luna import luna_pb2 as pb

SETTINGS = {"limits.restarts_max": 1000}
LATENT = random_latent(1, 12, 12)
IMAGE = np.random.default_rng(2).random((1, 64, 96, 3), np.float32)
LARGE = np.random.default_rng(3).random((1, 160, 144, 3), np.float32)  # goes through shared memory

JOBS = {
    "decode": lambda client: client.decode_latent(LATENT).tobytes(),
    "encode": lambda client: client.encode_image(IMAGE).tobytes(),
    "shared": lambda client: client.encode_image(LARGE).tobytes(),
    "text": lambda client: client.encode_text("a (red:1.2) fox", negative="blurry").cond.tobytes(),
    "tokenize": lambda client: repr(client.tokenize("a fox in the snow")).encode(),
}


class Worker(threading.Thread):
    """A client that asks for everything in turn and compares bytes, until stopped."""

    def __init__(self, endpoint, index, wanted, stop):
        super().__init__()
        self.endpoint, self.index, self.wanted, self.stop = endpoint, index, wanted, stop
        self.done = 0
        self.slowest = 0.0
        self.problems = []

    def run(self):
        try:
            with luna.connect(self.endpoint, connect_timeout=30 * PATIENCE, timeout=60 * PATIENCE) as client:
                names = list(JOBS)
                while not self.stop.is_set():
                    name = names[(self.index + self.done) % len(names)]
                    begun = time.monotonic()
                    try:
                        right = JOBS[name](client) == self.wanted[name]
                        if not right:
                            self.problems.append(f"{name}: other bytes")
                    except luna.Error as error:
                        self.problems.append(f"{name}: {type(error).__name__}: {error}")
                    self.slowest = max(self.slowest, time.monotonic() - begun)
                    self.done += 1
        except Exception as error:
            self.problems.append(f"connect: {error!r}")


def run_chaos(daemon, seconds, every, deeds):
    """Eight clients for so long; every so often the next deed is done to the daemon."""
    with luna.connect(daemon.ipc) as client:
        wanted = {name: job(client) for name, job in JOBS.items()}
    stop = threading.Event()
    workers = [Worker(daemon.ipc if i % 2 else daemon.tcp, i, wanted, stop) for i in range(8)]
    for worker in workers:
        worker.start()
    end = time.monotonic() + seconds
    turn = 0
    try:
        while time.monotonic() < end - every / 2:
            time.sleep(every)  # the beat of the deaths
            deeds[turn % len(deeds)](daemon)
            turn += 1
    finally:
        time.sleep(max(0.0, end - time.monotonic()))
        stop.set()
        for worker in workers:
            worker.join()
    problems = [problem for worker in workers for problem in worker.problems]
    done = sum(worker.done for worker in workers)
    slowest = max(worker.slowest for worker in workers)
    print(f"{done} requests, slowest {slowest:.1f} s, {len(problems)} problems, {turn} deeds")
    assert not problems, (len(problems), done, sorted(set(problems))[:8])
    assert done >= 8 and all(worker.done for worker in workers)
    wait_until(lambda: (lambda r: r.running == r.queued == 0)(daemon.status().requests), 10, "nothing runs")
    wait_until(lambda: daemon.status().transport.leases == 0, 10, "every lease comes back")


def kill_executor(daemon):
    daemon.kill_child("executor-process")


def kill_core(daemon):
    daemon.kill_child("core-process")


def stop_executor(daemon):
    """SIGSTOP: it neither dies nor works; the daemon has to find out."""
    pid = daemon.kill_child("executor-process", signal.SIGSTOP)
    wait_until(lambda: not is_alive(pid), 30, "the stopped executor was replaced")


@pytest.mark.slow
def test_60_seconds_of_deaths(make_daemon):
    daemon = make_daemon(settings=SETTINGS)
    deeds = [kill_executor, kill_core, kill_executor, stop_executor, kill_core, kill_executor, kill_core]
    run_chaos(daemon, 60, 5, deeds)


def test_10_seconds_of_deaths_of_the_executor(make_daemon):
    run_chaos(make_daemon(settings=SETTINGS), 10, 3, [kill_executor])


def test_10_seconds_of_deaths_of_the_core(make_daemon):
    run_chaos(make_daemon(settings=SETTINGS), 10, 3, [kill_core])


def test_an_executor_that_stands_still_is_replaced(make_daemon):
    daemon = make_daemon(settings=SETTINGS)
    client = daemon.raw()
    header, payload = latent_request(random_latent(1))
    assert client.ask(header, b"", payload)[0].code == pb.OK
    stopped = daemon.kill_child("executor-process", signal.SIGSTOP)
    header, payload = latent_request(random_latent(2))
    answer, _ = client.ask(header, b"", payload, seconds=40)
    assert answer.code == pb.OK, answer
    assert not is_alive(stopped) and daemon.executor_pid != stopped


def test_an_executor_that_stands_still_when_the_core_dies_is_replaced(make_daemon):
    """The new core knows of it by the supervisor's word only."""
    daemon = make_daemon(settings=SETTINGS)
    with luna.connect(daemon.ipc, connect_timeout=30 * PATIENCE, timeout=40 * PATIENCE) as client:
        client.decode_latent(random_latent(1))
        stopped = daemon.kill_child("executor-process", signal.SIGSTOP)
        kill_core(daemon)
        client.decode_latent(random_latent(2))
    assert not is_alive(stopped) and daemon.executor_pid != stopped


def test_a_running_job_survives_the_death_of_its_executor(make_daemon):
    daemon = make_daemon(settings=SETTINGS)
    client = daemon.raw()
    header, payload = latent_request(random_latent(1, 48, 48))
    client.send(header, b"", payload)
    wait_until(lambda: daemon.status().requests.running == 1, 20, "the decode runs")
    daemon.kill_child("executor-process")
    answer, rest = client.receive(40)
    assert answer.code == pb.OK and answer.id == header.id, answer
    assert client.is_silent(300)
    again, payload = latent_request(random_latent(1, 48, 48))
    assert client.ask(again, b"", payload, seconds=40)[1][1] == rest[1]


def test_a_job_that_kills_its_executor_twice_is_answered(make_daemon):
    daemon = make_daemon(settings=SETTINGS)
    client = daemon.raw()
    header, payload = latent_request(random_latent(1, 160, 160))
    client.send(header, b"", payload)
    deaths = 0
    while client.is_silent(50) and deaths < 6:
        wait_until(lambda: daemon.status().requests.running == 1 or not client.is_silent(0), 20, "it runs")
        if client.is_silent(0):
            daemon.kill_child("executor-process")
            deaths += 1
    answer, _ = client.receive()
    assert (answer.code, answer.id) == (pb.INTERNAL, header.id), answer
    assert deaths <= 3
    assert daemon.is_serving()


def test_an_executor_that_dies_too_often_is_given_up_and_its_services_say_so(make_daemon):
    daemon = make_daemon(settings={"limits.restarts_max": 2, "limits.restarts_period_s": 60})
    daemon.connect().decode_latent(random_latent(1))
    for _ in range(3):
        daemon.kill_child("executor-process")
    wait_until(lambda: "child.given_up" in daemon.read_log(), 10, "it is given up")
    header, payload = latent_request(random_latent(2))
    answer, _ = daemon.raw().ask(header, b"", payload, seconds=20)
    assert answer.code == pb.UNAVAILABLE and "too often" in answer.message, answer
    wait_until(lambda: daemon.service("vae").state == "failed", 10, "the service is failed")
    assert daemon.status().state == "ready"


def test_an_idle_daemon_survives_the_death_of_either(daemon):
    for word in ("executor-process", "core-process") * 2:
        daemon.kill_child(word)
        assert daemon.connect().decode_latent(random_latent(1), timeout=30).shape == (1, 64, 64, 3)
    assert daemon.status().pid == daemon.pid


def test_children_end_with_their_supervisor(daemon):
    daemon.connect().decode_latent(random_latent(1))
    pids = [daemon.core_pid, daemon.executor_pid]
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.process.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in pids), 5, "they end")
    (daemon.folder / "luna.sock").unlink()
    daemon.stop = daemon.close_clients
