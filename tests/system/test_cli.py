"""The command as people type it: every subcommand, every exit status, what goes to which stream."""

import io
import json
import re
import signal
import subprocess
import time

import numpy as np
import pytest

from conftest import BINARY, PATIENCE, free_port, wait_until
from files import PICTURE, pack_safetensors, psnr, random_latent, read_picture, read_safetensors, safetensors_dtypes

DONE, ERROR, USAGE, NOBODY, DEADLINE = range(5)


@pytest.fixture
def latent(tmp_path):
    path = tmp_path / "latent.safetensors"
    path.write_bytes(pack_safetensors({"latent": random_latent(1)}))
    return path


def error_of(done):
    """The one line on stderr that an error is."""
    lines = [line for line in done.stderr.decode().splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


# ---- help and usage


def test_help_and_version_need_no_daemon():
    for words in (["--help"], ["--version"], ["encode", "--help"], ["serve", "--help"]):
        done = subprocess.run([BINARY, *words], capture_output=True)
        assert (done.returncode, done.stderr) == (DONE, b""), words
        assert b"luna" in done.stdout


@pytest.mark.parametrize("words", [
    [], ["nothing"], ["encode"], ["encode", "a", "b"], ["decode"], ["text"], ["tokenize"], ["ping", "word"],
    ["status", "word"], ["status", "--nothing"], ["encode", "x.png", "--tiling", "sometimes"],
    ["encode", "x.png", "--passes", "2"], ["encode", "x.png", "--dtype", "f64"], ["text", "a", "--size", "12"],
    ["decode", "x", "--timeout"], ["decode", "x", "--timeout", "soon"], ["decode", "x", "--priority", "101"],
    ["ping", "--tile", "64"], ["models", "explode"], ["models", "register", "x"], ["models", "load"],
    ["encode", "x.png", "--json", "-o", "-"], ["bench", "--mix", "nothing"], ["serve", "--nothing"],
    ["serve", "word"], ["bench", "--size", "4x4"],
])
def test_wrong_usage_ends_with_2(words):
    done = subprocess.run([BINARY, *words], capture_output=True)
    assert done.returncode == USAGE, (words, done)
    assert done.stdout == b"" and done.stderr.startswith((b"luna: ", b"usage: "))


def test_nobody_at_the_endpoint_ends_with_3():
    for endpoint in (f"tcp://127.0.0.1:{free_port()}", "ipc:///nowhere/luna.sock"):
        begun = time.monotonic()
        done = subprocess.run([BINARY, "ping", "--connect", endpoint, "--timeout", "5"], capture_output=True)
        assert done.returncode == NOBODY, done
        assert error_of(done).startswith("luna: UNAVAILABLE: ") and endpoint in error_of(done)
        assert time.monotonic() - begun < 8 * PATIENCE


def test_the_deadline_ends_with_4(shared, tmp_path):
    path = tmp_path / "large.safetensors"
    path.write_bytes(pack_safetensors({"latent": random_latent(1, 128, 128)}))
    done = shared.cli("decode", path, "-o", tmp_path / "x.png", "--timeout", "0.2")
    assert done.returncode == DEADLINE, done
    assert error_of(done).startswith("luna: DEADLINE_EXCEEDED: ")
    assert not (tmp_path / "x.png").exists()


def test_an_error_of_the_daemon_ends_with_1_and_one_line(shared, tmp_path):
    path = tmp_path / "five.safetensors"
    path.write_bytes(pack_safetensors({"latent": np.zeros((1, 5, 8, 8), np.float32)}))
    done = shared.cli("decode", path)
    assert done.returncode == ERROR
    assert error_of(done) == 'luna: INVALID_ARGUMENT: latent has 5 channels, model "demo" takes 16'


def test_an_unknown_model_is_named(shared, latent):
    done = shared.cli("decode", latent, "--model", "nothing")
    assert done.returncode == ERROR
    assert error_of(done).startswith("luna: NOT_FOUND: ") and "nothing" in error_of(done)


def test_connect_wins_over_the_environment(shared):
    environment = {"LUNA_ENDPOINT": "ipc:///nowhere/luna.sock"}
    assert shared.cli("ping", environment=environment, seconds=20).returncode == NOBODY
    assert shared.cli("ping", "--connect", shared.ipc, environment=environment).returncode == DONE
    assert shared.cli("ping", "--connect", shared.tcp).returncode == DONE


# ---- encode and decode


def test_encode_and_decode_a_picture(shared, tmp_path):
    latent, image = tmp_path / "latent.safetensors", tmp_path / "image.png"
    done = shared.cli("encode", PICTURE, "-o", latent)
    assert (done.returncode, done.stdout) == (DONE, b""), done
    tensors, _ = read_safetensors(latent.read_bytes())
    assert list(tensors) == ["latent"] and tensors["latent"].shape == (1, 16, 32, 48)
    assert shared.cli("decode", latent, "-o", image).returncode == DONE
    assert psnr(read_picture(image), read_picture()) > 25


def test_json_answers_are_one_document(shared, tmp_path, latent):
    answer = shared.cli_json("encode", PICTURE, "-o", tmp_path / "x.safetensors")
    assert answer["shape"] == [1, 16, 32, 48] and answer["tiled"] is False
    answer = shared.cli_json("decode", latent, "-o", tmp_path / "x.safetensors")
    assert answer["shape"] == [1, 64, 64, 3] and answer["device"] == "cpu"


def test_a_safetensors_answer_is_f32_unless_asked_otherwise(shared, tmp_path, latent):
    out = tmp_path / "out.safetensors"
    for words, dtype in (([], "F32"), (["--dtype", "f16"], "F16"), (["--dtype", "bf16"], "BF16")):
        assert shared.cli("decode", latent, "-o", out, *words).returncode == DONE
        assert safetensors_dtypes(out.read_bytes()) == {"image": dtype}
        assert shared.cli("encode", PICTURE, "-o", out, *words).returncode == DONE
        assert safetensors_dtypes(out.read_bytes()) == {"latent": dtype}


def test_several_pictures_get_numbers(shared, tmp_path):
    path = tmp_path / "two.safetensors"
    path.write_bytes(pack_safetensors({"latent": random_latent(2, 6, 8, count=2)}))
    for suffix in ("png", "jpg"):
        assert shared.cli("decode", path, "-o", tmp_path / f"name.{suffix}").returncode == DONE
        assert sorted(p.name for p in tmp_path.glob(f"*.{suffix}")) == [f"name-0.{suffix}", f"name-1.{suffix}"]
        assert read_picture(tmp_path / f"name-1.{suffix}").shape == (1, 48, 64, 3)


def test_comfyui_latents_and_latents_without_a_batch_are_taken(shared, tmp_path):
    whole = random_latent(3)
    answers = []
    for tensors in ({"latent": whole}, {"latent_tensor": whole}, {"latent": whole[0]}):
        path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
        path.write_bytes(pack_safetensors(tensors))
        assert shared.cli("decode", path, "-o", out).returncode == DONE
        answers.append(out.read_bytes())
    assert answers[0] == answers[1] == answers[2]


def test_a_dash_is_stdin_and_stdout(shared, latent, tmp_path):
    done = shared.cli("encode", "-", "-o", "-", stdin=PICTURE.read_bytes())
    assert done.returncode == DONE, done.stderr
    assert read_safetensors(done.stdout)[0]["latent"].shape == (1, 16, 32, 48)
    assert shared.cli("encode", PICTURE, "-o", tmp_path / "x.safetensors").returncode == DONE
    assert (tmp_path / "x.safetensors").read_bytes() == done.stdout
    image = shared.cli("decode", "-", "-o", "-", stdin=latent.read_bytes())
    assert image.returncode == DONE, image.stderr
    assert read_safetensors(image.stdout)[0]["image"].shape == (1, 64, 64, 3)


def test_images_in_safetensors_drop_their_alpha(shared, tmp_path):
    image = np.random.default_rng(1).random((1, 32, 40, 4), np.float32)
    answers = []
    for channels in (4, 3):
        path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
        path.write_bytes(pack_safetensors({"image": image[..., :channels]}))
        assert shared.cli("encode", path, "-o", out).returncode == DONE
        answers.append(out.read_bytes())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name, content", [
    ("x.png", b"\x89PNG\r\n\x1a\n broken"), ("x.jpg", b"\xff\xd8\xff"), ("x.safetensors", b"\xff" * 64),
    ("x.safetensors", pack_safetensors({"other": np.zeros(4, np.float32)})), ("x.png", b""),
])
def test_inputs_that_are_none_are_errors(shared, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    done = shared.cli("encode", tmp_path / name, "-o", tmp_path / "out.safetensors")
    assert done.returncode == ERROR and error_of(done).startswith("luna: INVALID_ARGUMENT: "), done
    assert not (tmp_path / "out.safetensors").exists()


def test_an_input_that_is_missing_is_named(shared, tmp_path):
    done = shared.cli("encode", tmp_path / "missing.png")
    assert done.returncode == ERROR and "missing.png" in error_of(done)


def test_an_output_that_cannot_be_written_is_an_error(shared, latent):
    done = shared.cli("decode", latent, "-o", "/nowhere/x.png")
    assert done.returncode == ERROR and "/nowhere/x.png" in error_of(done)


def test_tiling_is_told(shared, tmp_path):
    words = ["--tiling", "always", "--tile", "256", "--overlap", "64"]
    answer = shared.cli_json("encode", PICTURE, "-o", tmp_path / "x.safetensors", *words)
    assert answer["tiled"] is True and answer["tiled_why"] == "asked for" and answer["tiles"] > 1
    done = shared.cli("encode", PICTURE, "-o", tmp_path / "x.safetensors", *words)
    assert done.returncode == DONE and re.search(r"note: tiled, \d+ tiles", done.stderr.decode())


def test_an_overlap_as_large_as_the_tile_is_refused(shared, latent):
    done = shared.cli("decode", latent, "--tiling", "always", "--tile", "128", "--overlap", "128")
    assert done.returncode == ERROR and "128" in error_of(done) and "INVALID_ARGUMENT" in error_of(done)


def test_progress_shows_tiles_and_only_when_asked(shared, tmp_path):
    words = ["encode", PICTURE, "-o", tmp_path / "x.safetensors", "--tiling", "always", "--tile", "256"]
    assert b"tiles" in shared.cli(*words, "--progress").stderr.partition(b"luna: note")[0]
    assert b"\r" not in shared.cli(*words).stderr


# ---- text


def test_text_writes_cond_and_pooled(shared, tmp_path):
    out = tmp_path / "cond.safetensors"
    assert shared.cli("text", "a cat", "-o", out).returncode == DONE
    tensors, metadata = read_safetensors(out.read_bytes())
    assert {name: t.shape for name, t in tensors.items()} == {"cond": (1, 77, 192), "pooled": (1, 128)}
    assert metadata == {}


def test_text_with_negative_and_sizes(shared, tmp_path):
    out = tmp_path / "cond.safetensors"
    done = shared.cli("text", "a cat", "--negative", "blurry", "--size", "1024x768", "--crop", "0,8", "--target",
                      "832x640", "-o", out)
    assert done.returncode == DONE, done.stderr
    tensors, metadata = read_safetensors(out.read_bytes())
    assert sorted(tensors) == ["cond", "negative_cond", "negative_pooled", "pooled"]
    assert metadata == {"size": "1024x768", "crop": "0,8", "target": "832x640"}


def test_clip_skip_counts_from_the_end_with_either_sign(shared, tmp_path):
    answers = []
    for skip in ("2", "-2", "1"):
        out = tmp_path / "cond.safetensors"
        assert shared.cli("text", "a cat", "--clip-skip", skip, "-o", out).returncode == DONE
        answers.append(out.read_bytes())
    assert answers[0] == answers[1] != answers[2]


def test_a_prompt_may_begin_with_dashes(shared):
    assert shared.cli("tokenize", "--", "--a cat").returncode == DONE


def test_notes_go_to_stderr(make_daemon, models, tmp_path):
    (models / "embeddings").mkdir(exist_ok=True)
    daemon = make_daemon(extra=f"embeddings = {models / 'embeddings'}\n")
    done = daemon.cli("text", "a embedding:nothing cat", "-o", tmp_path / "x.safetensors")
    assert done.returncode == DONE
    assert re.search(r'^luna: note: .*nothing', done.stderr.decode(), re.M), done.stderr


def test_tokenize_prints_the_chunks_of_every_encoder(shared):
    done = shared.cli("tokenize", "a (cat:1.2)")
    assert done.returncode == DONE
    chunks = json.loads(done.stdout)
    assert sorted(chunks) == ["g", "l"]
    assert len(chunks["l"]) == 1 and len(chunks["l"][0]) == 77
    assert chunks["l"][0][:4] == [[49406, 1.0], [320, 1.0], [2368, 1.2], [49407, 1.0]]
    assert chunks["l"][0][4] == [49407, 1.0] and chunks["g"][0][4] == [0, 1.0]


# ---- models


def test_models_list(shared):
    table = shared.cli("models").stdout.decode()
    assert shared.cli("models", "list").stdout.decode().split()[:3] == table.split()[:3] == ["NAME", "OFFERS", "KIND"]
    model = shared.cli_json("models", "list")[0]
    assert model["name"] == "demo" and model["offers"] == ["vae", "text"] and model["bytes"] > 10**6
    assert {"kind", "loaded_on", "state", "users"} <= set(model)


def test_models_register_load_unload(daemon):
    registered = daemon.cli_json("models", "register", "mine", "vae.safetensors")
    assert registered["name"] == "mine" and registered["offers"] == ["vae"] and registered["loaded_on"] == []
    loaded = daemon.cli_json("models", "load", "mine")
    assert loaded["loaded_on"] == ["cpu"] and loaded["state"] == "loaded"
    unloaded = daemon.cli_json("models", "unload", "mine")
    assert unloaded["loaded_on"] == []
    assert {model["name"] for model in daemon.cli_json("models")} == {"demo", "mine"}
    done = daemon.cli("models", "load", "nothing")
    assert done.returncode == ERROR and error_of(done).startswith("luna: NOT_FOUND: ")


def test_a_model_may_be_left_out_only_while_one_offers_the_operation(daemon, latent):
    assert daemon.cli("decode", latent, "-o", "-").returncode == DONE
    daemon.cli_json("models", "register", "second", "vae.safetensors")
    done = daemon.cli("decode", latent, "-o", "-")
    assert done.returncode == ERROR and error_of(done).startswith("luna: FAILED_PRECONDITION: ")
    assert daemon.cli("decode", latent, "-o", "-", "--model", "second").returncode == DONE


# ---- service


def test_status_json_has_what_others_script_against(shared, latent):
    assert shared.cli("decode", latent, "-o", "-").returncode == DONE
    status = shared.cli_json("status")
    assert {"version", "pid", "uptime_seconds", "service_type", "state", "requests", "devices", "services", "models",
            "loras"} <= set(status)
    assert (status["pid"], status["service_type"], status["state"]) == (shared.pid, "full", "ready")
    assert {"total", "running", "queued", "failed", "cancelled"} <= set(status["requests"])
    device = status["devices"][0]
    assert {"name", "label", "executor_pid", "memory_total_bytes", "memory_free_bytes", "weights_bytes",
            "reserved_bytes"} <= set(device)
    assert device["name"] == "cpu" and device["memory_total_bytes"] > device["memory_free_bytes"] > 0
    service = next(s for s in status["services"] if s["operation"] == "vae")
    assert {"operation", "model", "device", "workers", "workers_busy", "workers_min", "workers_max", "queue_depth",
            "queue_age_seconds", "requests_total", "state"} <= set(service)
    assert service["model"] == "demo" and service["requests_total"] >= 1 and service["state"] == "serving"
    assert {"name", "offers", "kind", "bytes", "loaded_on"} <= set(status["models"][0])
    assert {"entries", "bytes", "limit_bytes", "hits", "misses", "evictions", "hit_ratio"} <= set(status["loras"])


def test_ping_status_and_top_for_people(shared):
    assert re.match(r"luna \S+ at ipc://\S+: ready, protocol 1\.0, [\d.]+ ms\n$", shared.cli("ping").stdout.decode())
    assert shared.cli_json("ping")["state"] == "ready"
    assert b"demo" in shared.cli("status").stdout
    top = subprocess.Popen([BINARY, "top"], env=shared.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert b"\033[H" in top.stdout.readline()
    finally:
        top.send_signal(signal.SIGINT)
        assert top.wait(10 * PATIENCE) == DONE
        top.stdout.close()
        top.stderr.close()


def test_bench_counts_and_tells_percentiles(shared):
    done = shared.cli("bench", "--clients", "3", "--mix", "text", "--duration", "1", "--json")
    assert done.returncode == DONE, done.stderr
    report = json.loads(done.stdout)
    assert report["errors"] == 0 and report["text"]["requests"] == report["all"]["requests"] > 0
    assert 0 < report["all"]["p50_ms"] <= report["all"]["p99_ms"] <= report["all"]["max_ms"]
    paced = json.loads(shared.cli("bench", "--mix", "text", "--duration", "1", "--rate", "20", "--json").stdout)
    assert 10 <= paced["all"]["requests"] <= 21
    done = shared.cli("bench", "--mix", "encode,decode", "--size", "80x48", "--duration", "1", "--json")
    sized = json.loads(done.stdout)
    assert sized["errors"] == 0 and sized["encode"]["requests"] > 0 and sized["decode"]["requests"] > 0


def test_an_interrupted_command_takes_its_request_back(shared, tmp_path):
    path = tmp_path / "large.safetensors"
    path.write_bytes(pack_safetensors({"latent": random_latent(1, 128, 128)}))
    before = shared.status().requests.cancelled
    running = subprocess.Popen([BINARY, "decode", path, "-o", tmp_path / "x.png"], env=shared.environment,
                               stderr=subprocess.PIPE)
    wait_until(lambda: shared.status().requests.running == 1, 20, "the decode runs")
    running.send_signal(signal.SIGINT)
    running.wait(10 * PATIENCE)
    running.stderr.close()
    wait_until(lambda: shared.status().requests.cancelled == before + 1, 5, "the request was cancelled")
    wait_until(lambda: shared.status().requests.running == 0, 5, "nothing runs")
