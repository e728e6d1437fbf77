"""luna.conf: checked, dumped, overridden, read again while the daemon runs."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from conftest import BINARY, CONFIG, PATIENCE, latent_request, request, wait_until
from files import random_latent
from luna import luna_pb2 as pb


def serve(*words, environment=()):
    """`luna serve` with words that make it end by itself."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LUNA_")}
    return subprocess.run([BINARY, "serve", *map(str, words)], capture_output=True, text=True,
                          timeout=20 * PATIENCE, env={**clean, **dict(environment)})


@pytest.fixture
def conf(tmp_path):
    def write(text):
        path = tmp_path / "luna.conf"
        path.write_text(text)
        return path

    return write


def test_the_example_of_the_contract_is_valid(conf):
    path = conf("""
[service]
type = full                 ; full | vae | clip
threads = auto              ; compute threads of the CPU executor
devices = auto
precision = auto
[listen]
requests = tcp://127.0.0.1:19283, ipc://@runtime@/luna.sock
page = 127.0.0.1:19284
events = tcp://127.0.0.1:19285
[models]
directories = ./models      ; register by path only below these
default_vae = sdxl
[model sdxl]
files = sdxl_vae.safetensors, clip_l.safetensors, clip_g.safetensors      ; or one checkpoint
embeddings = ./embeddings
[lora]
directories = ./loras
memory_limit_mb = 4096
cleanup_threshold = 0.8
entries_max = 100
time_to_live_s = 0
stack_max = 8
execution = functional
merged_limit_mb = 1536
[scaling]
vae_workers = 0-2
clip_workers = 0-2
queue_threshold = 2
scale_up_delay_ms = 1000
idle_timeout_s = 30
memory_margin_mb = auto
[cache]
conditioning_mb = 256
[limits]
queue_requests_max = 256
queue_bytes_max = 2147483648
message_bytes_max = 1073741824
image_pixels_max = 67108864
text_bytes_max = 65536
restarts_max = 5
restarts_period_s = 60
[security]
curve = off
loopback_role = user
[cluster]
peers =
""")
    done = serve("-c", path, "--check-config")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_dump_reads_back_to_the_same_dump(conf):
    path = conf("[scaling]\nvae_workers = 1-3\n[limits]\ntext_bytes_max = 1000\n[model x]\nfiles = a.safetensors\n")
    first = serve("-c", path, "--dump-config")
    assert first.returncode == 0 and "vae_workers = 1-3" in first.stdout and "[model x]" in first.stdout
    second = serve("-c", conf(first.stdout), "--dump-config")
    assert (second.returncode, second.stdout) == (0, first.stdout)


@pytest.mark.parametrize("text, words", [
    ("[service]\nthreads = 2\ntreads = 3\n", [":3", "treads"]), ("[servce]\ntype = full\n", [":1", "servce"]),
    ("[service]\ntype = half\n", [":2", "half"]), ("[scaling]\n\n\nvae_workers = 2-1\n", [":4", "2-1"]),
    ("[limits]\ntext_bytes_max = -1\n", [":2", "-1"]), ("[limits]\ntext_bytes_max = 12x\n", [":2", "12x"]),
    ("[service]\nnonsense\n", [":2"]), ("[lora]\ncleanup_threshold = 1.5\n", [":2", "1.5"]), ("[scaling]\nvae_workers = 0-0\n", [":2", "0-0"]),
])
def test_what_is_wrong_is_told_with_file_and_line(conf, text, words):
    path = conf(text)
    done = serve("-c", path, "--check-config")
    assert done.returncode == 1, done
    assert done.stderr.startswith("luna: INVALID_ARGUMENT: ") and len(done.stderr.splitlines()) == 1
    for word in [*words, str(path)]:
        assert word in done.stderr, done.stderr


def test_a_model_must_have_a_name_that_messages_can_carry(conf):
    done = serve("-c", conf("[model a/b]\nfiles = x\n"), "--check-config")
    assert done.returncode == 1 and "[model a/b]" in done.stderr


def test_a_file_that_is_missing_is_named():
    done = serve("-c", "/nowhere/luna.conf", "--check-config")
    assert done.returncode == 1 and done.stderr.startswith("luna: NOT_FOUND: ")
    assert "/nowhere/luna.conf" in done.stderr


def test_later_sources_win(conf):
    path = conf("[scaling]\nqueue_threshold = 3\nidle_timeout_s = 3\nscale_up_delay_ms = 3\n")
    dump = serve("-c", path, "--set", "scaling.idle_timeout_s=5", "--dump-config",
                 environment={"LUNA_SCALING_IDLE_TIMEOUT_S": "4", "LUNA_SCALING_QUEUE_THRESHOLD": "4"}).stdout
    # The file, then the environment, then the command line (runtime/config.h).
    assert "scale_up_delay_ms = 3" in dump and "queue_threshold = 4" in dump and "idle_timeout_s = 5" in dump


@pytest.mark.parametrize("words, environment, named", [
    (["--set", "scaling.nothing=1"], {}, "nothing"), (["--set", "nonsense"], {}, "nonsense"),
    ([], {"LUNA_LIMITS_TEXT_BYTES_MAX": "many"}, "LUNA_LIMITS_TEXT_BYTES_MAX"),
])
def test_wrong_overrides_are_named(words, environment, named):
    done = serve(*words, "--check-config", environment=environment)
    assert done.returncode == 1 and named in done.stderr, done


def test_a_service_type_offers_what_it_says(make_daemon):
    daemon = make_daemon(settings={"service.type": "clip"})
    client = daemon.connect()
    assert client.tokenize("a cat")
    assert daemon.status().service_type == "clip"
    done = daemon.cli("bench", "--mix", "decode", "--duration", "0.1")
    assert done.returncode == 1 and b"clip" in done.stderr


def test_sighup_takes_a_new_configuration_into_force(daemon):
    text = daemon.config_path.read_text()
    assert daemon.service("vae") is None or daemon.service("vae").workers_max == 2
    client = daemon.connect()
    before = client.decode_latent(random_latent(1))
    daemon.config_path.write_text(text + "[model second]\nfiles = vae.safetensors\n[limits]\ntext_bytes_max = 1000\n")
    daemon.process.send_signal(signal.SIGHUP)

    # A client of the package: it asks again when a core ends with its question unread.
    def limit():
        return client.ping()["text_bytes_max"]

    wait_until(lambda: limit() == 1000, 10, "the new limit")
    wait_until(lambda: len(daemon.status().models) == 2, 10, "the new model")
    assert client.decode_latent(random_latent(1), model="second").tobytes() == before.tobytes()
    assert client.decode_latent(random_latent(1), model="demo").tobytes() == before.tobytes()


def test_sighup_with_a_broken_file_keeps_the_old_configuration(daemon):
    daemon.config_path.write_text(daemon.config_path.read_text() + "[limits]\ntext_bytes_mux = 5\n")
    core = daemon.core_pid
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "text_bytes_mux" in daemon.read_log(), 10, "the complaint")
    assert daemon.is_serving()
    assert daemon.core_pid == core
    answer, rest = daemon.raw().ask(request(pb.PING))
    assert pb.PingReply.FromString(rest[0]).text_bytes_max == 65536


def test_sighup_answers_what_runs(daemon):
    client = daemon.raw()
    header, payload = latent_request(random_latent(1, 64, 64))
    client.send(header, b"", payload)
    wait_until(lambda: daemon.status().requests.running == 1, 20, "the decode runs")
    daemon.config_path.write_text(daemon.config_path.read_text() + "[limits]\ntext_bytes_max = 1000\n")
    daemon.process.send_signal(signal.SIGHUP)
    answer, _ = client.receive(30)
    assert answer.code == pb.OK, answer
    assert daemon.connect().tokenize("a cat")  # asks again where it is told that the daemon drains


def test_the_default_model_answers_for_those_that_name_none(make_daemon):
    daemon = make_daemon(config=CONFIG.replace("[models]\n", "[models]\ndefault_vae = second\n"),
                         extra="[model second]\nfiles = vae.safetensors\n")
    assert daemon.connect().decode_latent(random_latent(1)).shape == (1, 64, 64, 3)
    assert daemon.service("vae", "second").requests_total == 1


def test_the_configuration_that_ships_is_the_defaults():
    shipped = Path(__file__).resolve().parents[2] / "conf" / "luna.conf"
    dumped = serve("-c", shipped, "--dump-config")
    assert dumped.returncode == 0, dumped.stderr
    assert dumped.stdout == serve("--dump-config").stdout
