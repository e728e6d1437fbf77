"""`luna loras` and `luna text --lora` as people type them, against the real daemon."""

import json
import pathlib
import shutil
import tempfile

import numpy as np
import pytest

from adapters import make_loha, make_lora, targets, write
from conftest import Daemon
from files import read_safetensors

DONE, ERROR, USAGE = range(3)
FIELDS = ["name", "hash", "encoder_hash", "bytes", "format", "path", "rank", "encoders", "uses", "load_ms",
          "age_seconds", "pinned", "resident"]


@pytest.fixture(scope="module")
def running(models):
    """A daemon with one adapter in its folder; grain.safetensors lies beside, for uploads."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="luna-s-"))
    write(folder / "loras" / "ink.safetensors", make_lora(targets=targets("lg")))
    write(folder / "grain.safetensors", make_loha(targets=targets("lg")))
    extra = f"[lora]\ndirectories = {folder / 'loras'}\n[cache]\nconditioning_mb = 0\n"
    daemon = Daemon(folder, models, extra=extra).wait_ready()
    yield daemon
    try:
        daemon.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def entry_of(running, name):
    return next(entry for entry in running.cli_json("loras") if entry["name"] == name)


def encode(running, out, *words):
    """(tensors, metadata, what --json says) of a text that has to succeed."""
    done = running.cli("text", "a fox", "-o", out, "--json", *words)
    assert done.returncode == DONE, done.stderr.decode()
    tensors, metadata = read_safetensors(out.read_bytes())
    return tensors, metadata, json.loads(done.stdout)


def test_list_is_a_table_or_json(running):
    listed = running.cli_json("loras", "list")
    assert all(list(entry)[: len(FIELDS)] == FIELDS for entry in listed)
    ink = entry_of(running, "ink")
    assert (ink["path"], ink["pinned"]) == ("ink.safetensors", False)
    done = running.cli("loras")
    head, *lines = done.stdout.decode().splitlines()
    assert head.startswith("NAME") and any(line.startswith("ink ") for line in lines)


def test_put_get_pin_evict(running, tmp_path):
    path = write(tmp_path / "mine.safetensors", make_lora(seed=31, targets=targets("lg")))
    put = running.cli_json("loras", "put", path, "--name", "mine")
    assert put["name"] == "mine" and len(put["hash"]) == 64 and put["bytes"] == path.stat().st_size
    done = running.cli("loras", "put", path, "--name", "mine")
    assert done.returncode == DONE and b"nothing was sent" in done.stderr
    for reference in ("mine", put["hash"]):
        assert running.cli("loras", "get", reference, "-o", tmp_path / "back").returncode == DONE
        assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert running.cli("loras", "get", "mine", "-o", "-").stdout == path.read_bytes()
    over_tcp = running.cli("loras", "get", "mine", "-o", "-", "--connect", running.tcp)
    assert over_tcp.stdout == path.read_bytes()


def test_a_pin_outlives_the_command_that_made_it(running, tmp_path):
    path = write(tmp_path / "p.safetensors", make_lora(seed=32, targets=targets("lg")))
    assert running.cli("loras", "put", path, "--name", "kept").returncode == DONE
    assert running.cli_json("loras", "pin", "kept")["pinned"] is True
    assert entry_of(running, "kept")["pinned"] is True
    done = running.cli("loras", "evict", "kept")
    assert done.returncode == ERROR and done.stderr.startswith(b"luna: FAILED_PRECONDITION: "), done
    assert running.cli_json("loras", "unpin", "kept")["pinned"] is False
    assert running.cli("loras", "evict", "kept").returncode == DONE
    assert running.cli("loras", "pin", "kept").stderr.startswith(b"luna: NOT_FOUND: ")


def test_scan_and_stats_are_tables_or_json(running):
    scan = running.cli_json("loras", "scan")
    assert scan["found"] >= 1 and scan["refused"] == 0
    stats = running.cli_json("loras", "stats")
    assert {"entries", "bytes", "limit_bytes", "hits", "misses", "evictions", "hit_ratio", "files", "load_ms_p50",
            "load_ms_p99", "conditioning_hits"} <= set(stats)
    assert b"entries" in running.cli("loras", "stats").stdout
    status = running.cli_json("status")
    assert status["loras"]["limit_bytes"] == stats["limit_bytes"]
    assert b"loras " in running.cli("status").stdout


def test_text_takes_names_hashes_and_files_in_order(running, tmp_path):
    out = tmp_path / "x.safetensors"
    plain, _, told = encode(running, out)
    assert told["loras"] == []
    ink, metadata, told = encode(running, out, "--lora", "ink:0.8")
    assert (told["loras"][0]["modules"], told["loras_merged"]) == (30, False)
    assert json.loads(metadata["loras"])[0]["reference"] == "ink"
    by_hash, _, _ = encode(running, out, "--lora", f"{entry_of(running, 'ink')['hash']}:0.8")
    grain = running.folder / "grain.safetensors"
    both, metadata, told = encode(running, out, "--lora", "ink:0.8", "--lora", f"{grain}:-0.5")
    assert told["loras_merged"] is True
    assert [(e["reference"], round(e["strength"], 3)) for e in json.loads(metadata["loras"])] == [
        ("ink", 0.8), (str(grain), -0.5)]
    half, _, _ = encode(running, out, "--lora", "ink:1.6", "--lora-multiplier", "0.5")
    np.testing.assert_array_equal(by_hash["cond"], ink["cond"])
    np.testing.assert_array_equal(half["cond"], ink["cond"])
    assert len({t["cond"].tobytes() for t in (plain, ink, both)}) == 3


def test_what_cannot_be_applied_is_one_line(running, tmp_path):
    for words, code, part in ((["--lora", "nothing"], "NOT_FOUND", "nothing"),
                              (["--lora", "ink:nan"], "INVALID_ARGUMENT", "ink"),
                              (["--lora", "../ink"], "INVALID_ARGUMENT", ".."),
                              (["--lora", "ink"] * 9, "INVALID_ARGUMENT", "8")):
        done = running.cli("text", "a fox", "-o", tmp_path / "none", *words)
        lines = done.stderr.decode().splitlines()
        assert done.returncode == ERROR and len(lines) == 1, done
        assert lines[0].startswith(f"luna: {code}: ") and part in lines[0], lines
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("words", [["--lora", "ink"], ["--lora-multiplier", "2"], ["--clip-skip", "2"],
                                   ["--size", "64x64"], ["--crop", "0,0"], ["--target", "64x64"]])
def test_what_changes_no_token_is_no_option_of_tokenize(running, words):
    done = running.cli("tokenize", "a fox", *words)
    assert (done.returncode, done.stdout) == (USAGE, b"")
    assert done.stderr.startswith(f"luna: tokenize: option {words[0]} is not for this command".encode()), done


def test_what_is_said_of_a_file_calls_it_by_its_name(running, tmp_path):
    unet = {key: array for key, array in make_lora(targets=targets("lg")).items() if "unet" in key}
    path = write(tmp_path / "unet.safetensors", unet)
    done = running.cli("text", "a fox", "-o", tmp_path / "x", "--lora", f"{path}:0.5")
    assert done.returncode == DONE and done.stderr.startswith(b"luna: note: ") and str(path).encode() in done.stderr
    key = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    wrong = {f"{key}.lora_down.weight": np.zeros((4, 768), "f2"), f"{key}.lora_up.weight": np.zeros((3072, 4), "f2")}
    path = write(tmp_path / "wrong.safetensors", wrong)
    done = running.cli("text", "a fox", "-o", tmp_path / "none", "--lora", path)
    assert done.returncode == ERROR and done.stderr.startswith(b"luna: INVALID_ARGUMENT: "), done
    assert str(path).encode() in done.stderr and key.encode() in done.stderr


def test_files_that_are_no_adapters_are_refused_here_or_there(running, tmp_path):
    (tmp_path / "text.safetensors").write_bytes(b"not a file of tensors")
    done = running.cli("loras", "put", tmp_path / "text.safetensors")
    assert done.returncode == ERROR and done.stderr.startswith(b"luna: INVALID_ARGUMENT: "), done
    done = running.cli("loras", "put", tmp_path / "none.safetensors")
    assert done.returncode == ERROR and b"none.safetensors" in done.stderr
    path = write(tmp_path / "clip.safetensors", {"x.weight": np.zeros((2, 2), "f4")})
    done = running.cli("loras", "put", path)
    assert done.returncode == ERROR and done.stderr.startswith(b"luna: INVALID_ARGUMENT: "), done
