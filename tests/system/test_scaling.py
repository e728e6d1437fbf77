"""Workers come when work waits and go when they idle; memory is planned; every decision says why."""

import threading

import numpy as np
import pytest

import luna
from conftest import latent_request, request, text_request, wait_until
from files import pack_safetensors, random_latent, read_safetensors
from luna import luna_pb2 as pb

QUICK = {"scaling.scale_up_delay_ms": 100, "scaling.idle_timeout_s": 1}


class Load:
    """Clients that decode until told to stop."""

    def __init__(self, daemon, count, side=16):
        self.stop = threading.Event()
        self.answered = 0
        self.problems = []
        self.threads = [threading.Thread(target=self._run, args=(daemon.ipc, i, side)) for i in range(count)]
        for thread in self.threads:
            thread.start()

    def _run(self, endpoint, seed, side):
        try:
            with luna.connect(endpoint, connect_timeout=20) as client:
                latent = random_latent(seed, side, side)
                while not self.stop.is_set():
                    client.decode_latent(latent)
                    self.answered += 1
        except Exception as error:
            self.problems.append(error)

    def close(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert not self.problems, self.problems


def test_nothing_is_loaded_until_somebody_asks(daemon):
    events = daemon.events
    status = daemon.status()
    assert status.devices[0].weights_bytes == 0 and not status.models[0].loaded_on
    assert all(service.workers == 0 and service.state == "idle" for service in status.services)
    daemon.connect().decode_latent(random_latent(1))
    up = events.wait_topic("scaling.up", operation="vae")
    assert (up.model, up.device, up.signal, up.value, up.threshold, up.workers) == \
        ("demo", "cpu", "queue_depth", 1, 1, 1)
    events.wait_topic("worker.up", operation="vae")
    events.wait_topic("model.loaded", model="demo")
    wait_until(lambda: daemon.status().devices[0].weights_bytes > 0, 5, "weights are counted")
    assert daemon.service("vae").workers == 1 and daemon.service("vae").state == "serving"
    text = daemon.service("text")
    assert text is None or text.workers == 0


def test_a_second_worker_comes_under_load_and_both_retire(make_daemon):
    daemon = make_daemon(settings=QUICK)
    events = daemon.events
    load = Load(daemon, 6)
    try:
        second = events.wait(lambda t, m: t == "scaling.up" and m.workers == 2, 20, "a second worker")
        assert second.signal in ("queue_depth", "queue_age_ms") and second.value >= second.threshold > 0
        assert second.free_bytes >= second.plan_bytes + second.margin_bytes > 0
        daemon.wait_workers("vae", 2)
    finally:
        load.close()
    assert load.answered > 0
    down = events.wait_topic("scaling.down", 20, operation="vae", workers=0)
    assert (down.signal, down.threshold) == ("idle_s", 1) and down.value >= 1
    daemon.wait_workers("vae", 0)
    events.wait(lambda t, m: t == "worker.down" and m.operation == "vae", 10, "workers go")
    # More workers than the maximum never came.
    assert max(m.workers for m in events.of("scaling.up")) == 2
    assert daemon.connect().decode_latent(random_latent(1)).shape == (1, 64, 64, 3)


def test_a_worker_that_works_is_never_retired(make_daemon):
    daemon = make_daemon(settings={**QUICK, "scaling.vae_workers": "0-1"})
    load = Load(daemon, 1, side=40)
    try:
        wait_until(lambda: load.answered >= 3, 60, "some answers")
        assert not daemon.events.of("scaling.down", operation="vae")
    finally:
        load.close()


def test_the_minimum_is_there_without_work_and_stays(make_daemon):
    daemon = make_daemon(settings={**QUICK, "scaling.vae_workers": "1-2", "scaling.clip_workers": "2-2"})
    events = daemon.events
    daemon.wait_workers("vae", 1)
    daemon.wait_workers("text", 2)
    assert daemon.service("vae").workers_min == 1
    load = Load(daemon, 6)
    try:
        daemon.wait_workers("vae", 2, 20)
    finally:
        load.close()
    events.wait_topic("scaling.down", 20, operation="vae", workers=1)
    daemon.wait_workers("vae", 1)
    assert daemon.service("text").workers == 2


def test_limits_change_the_bounds_while_it_runs(make_daemon):
    daemon = make_daemon(settings=QUICK)
    client = daemon.connect()
    assert client.limits(vae_workers_min=2)["vae_workers_min"] == 2
    daemon.wait_workers("vae", 2)
    client.limits(vae_workers_min=0, vae_workers_max=1)
    daemon.wait_workers("vae", 0, 20)
    assert daemon.service("vae").workers_max == 1
    with pytest.raises(luna.InvalidArgument):
        client.limits(vae_workers_min=3)


def test_events_are_numbered_without_gaps(daemon):
    events = daemon.events
    client = daemon.connect()
    for seed in range(5):
        client.decode_latent(random_latent(seed))
    events.wait(lambda t, m: t == "request.done" and m.sequence >= 5, 10, "five answers")
    numbers = [m.sequence for t, m in events.seen if t != "status"]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    done = events.of("request.done")[0]
    assert done.operation == "DECODE_LATENT" and done.model == "demo" and len(done.id) == 16
    assert done.time_unix_ms > 1_600_000_000_000


def test_failed_requests_are_events(daemon):
    events = daemon.events
    header, payload = latent_request(np.zeros((1, 5, 8, 8), np.float32))
    assert daemon.raw().ask(header, b"", payload)[0].code == pb.INVALID_ARGUMENT
    failed = events.wait_topic("request.failed")
    assert failed.code == pb.INVALID_ARGUMENT and "5 channels" in failed.message and failed.id == header.id


def test_status_comes_each_second_and_to_late_subscribers_at_once(daemon):
    from conftest import Events

    daemon.events.wait(lambda t, m: t == "status" and m.uptime_seconds > 2, 10, "a later status")
    late = Events(daemon.events_endpoint)
    try:
        first = late.wait(lambda t, m: t == "status", 0.8, "the last status, at once")
        assert first.pid == daemon.pid
    finally:
        late.close()


def two_large_models(models):
    """Models whose weights are 48 MiB each: the text encoders' kind, since their size is free."""
    folder = models / "large"
    folder.mkdir(exist_ok=True)
    path = models / "clip_l.safetensors"
    for name in ("one", "two"):
        if (folder / f"{name}.safetensors").exists():
            continue
        tensors, metadata = read_safetensors(path.read_bytes())
        tensors = dict(tensors)
        table = "text_model.embeddings.token_embedding.weight"
        random = np.random.default_rng(len(name))
        tensors[table] = random.standard_normal((400_000, 64)).astype(np.float16)
        (folder / f"{name}.safetensors").write_bytes(pack_safetensors(tensors, metadata))
    return "[model one]\nfiles = large/one.safetensors\n[model two]\nfiles = large/two.safetensors\n"


def test_two_models_that_do_not_fit_together_evict_each_other(make_daemon, models):
    extra = two_large_models(models)
    daemon = make_daemon(settings={"service.memory_limit_mb": 96, "scaling.memory_margin_mb": 8}, extra=extra)
    events = daemon.events
    client = daemon.connect(timeout=60)
    first = {name: client.encode_text("a cat", model=name).cond.tobytes() for name in ("one", "two")}
    for name in ("one", "two", "one", "two"):
        assert client.encode_text("a cat", model=name).cond.tobytes() == first[name]
    assert daemon.status().devices[0].weights_bytes <= 96 << 20
    down = events.wait(lambda t, m: t == "scaling.down" and m.signal == "memory_free_bytes", 10, "an eviction")
    assert down.plan_bytes > 0 and down.margin_bytes == 8 << 20
    assert down.free_bytes < down.plan_bytes + down.margin_bytes
    events.wait_topic("model.unloaded")


def test_a_model_larger_than_the_memory_is_refused_with_the_numbers(make_daemon, models):
    daemon = make_daemon(settings={"service.memory_limit_mb": 64, "scaling.memory_margin_mb": 30},
                         extra=two_large_models(models))
    header, data = text_request(pb.ENCODE_TEXT, "a cat", model="one")
    answer, _ = daemon.raw().ask(header, b"", data, seconds=30)
    assert answer.code == pb.RESOURCE_EXHAUSTED and answer.retry_after_ms > 0, answer
    assert daemon.connect().decode_latent(random_latent(1), model="demo").shape == (1, 64, 64, 3)


def test_too_little_memory_tiles_what_may_be_tiled_and_refuses_what_may_not(make_daemon):
    daemon = make_daemon(settings={"service.memory_limit_mb": 80, "scaling.memory_margin_mb": 0})
    client = daemon.connect()
    latent = random_latent(1, 48, 48)
    image, details = client.decode_latent(latent, details=True, timeout=110)
    assert details["tiled"] and "MiB" in details["tiled_why"], details
    assert image.shape == (1, 384, 384, 3)
    header, payload = latent_request(latent)
    answer, _ = daemon.raw().ask(header, pb.DecodeLatent(tiling=pb.TILING_NEVER), payload, seconds=30)
    assert answer.code == pb.RESOURCE_EXHAUSTED, answer
    assert daemon.is_serving()


def test_no_second_worker_where_memory_is_short(make_daemon):
    daemon = make_daemon(settings={**QUICK, "service.memory_limit_mb": 610, "scaling.memory_margin_mb": 600})
    events = daemon.events
    load = Load(daemon, 6, side=24)
    try:
        refusal = events.wait(lambda t, m: t.startswith("scaling.") and m.operation == "vae"
                              and m.signal == "memory_free_bytes", 20, "a refusal that names the memory")
        assert refusal.free_bytes < refusal.plan_bytes + refusal.margin_bytes
        assert refusal.margin_bytes == 600 << 20
        assert daemon.service("vae").workers <= 1
    finally:
        load.close()
    assert load.answered > 0
