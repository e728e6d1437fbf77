"""What the steps of gpu.py share: where programs are, a device that is driven by lines, the card's own word on its
memory, a daemon. The standard library alone, because a machine with a card may have nothing else."""

import ctypes
import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "build" / "gpu-bundle"
GOLDEN = ROOT / "tests" / "golden"


class Failed(Exception):
    """A step did not do what it should."""


class Skip(Exception):
    """A step has nothing to do here, and why."""


# ---- programs


class Programs:
    """Our binaries: out of the bundle if there is one, else out of the build folder."""

    def __init__(self, build):
        self.manifest = {}
        self.library_path = [build]
        self.folders = [build / "gpu", build / "tests", build]
        self.data = {"vae.json": GOLDEN / "real" / "vae.json",
                     "cases.safetensors": GOLDEN / "real" / "cases.safetensors",
                     "small_vae.safetensors": GOLDEN / "vae" / "two.safetensors",
                     "bars.json": ROOT / "tests" / "gpu" / "bars.json"}
        self.what = f"build folder {build.name}"

    @classmethod
    def of_bundle(cls, bundle):
        self = cls(bundle)
        self.manifest = json.loads((bundle / "manifest.json").read_text())
        self.library_path = [bundle / "lib"]
        try:
            ctypes.CDLL("libstdc++.so.6")
        except OSError:
            self.library_path.append(bundle / "lib" / "cpp")
        self.folders = [bundle / "bin", bundle / "lib"]
        self.data = {name: bundle / "data" / name for name in self.data}
        for path in (bundle / "bin").iterdir():
            if not os.access(path, os.X_OK):  # not every way of copying keeps it
                path.chmod(0o755)
        self.what = f"bundle of commit {self.manifest['commit']}"
        return self

    def path(self, name):
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        raise Failed(f"{name} is not in the {self.what}")

    def has(self, name):
        return any((folder / name).is_file() for folder in self.folders)

    def environment(self, **more):
        found = dict(os.environ)
        paths = [str(p) for p in self.library_path]
        if found.get("LD_LIBRARY_PATH"):
            paths.append(found["LD_LIBRARY_PATH"])
        return found | {"LD_LIBRARY_PATH": ":".join(paths)} | more


def commit_of_tree():
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True,
                          text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


# ---- the card


class NvmlMemory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Card:
    """The first card, as the driver's management library knows it: no context is needed to ask."""

    def __init__(self):
        try:
            self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            raise Skip(f"no driver: {error}")
        self._check(self.nvml.nvmlInit_v2(), "nvmlInit")
        self.handle = ctypes.c_void_p()
        self._check(self.nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self.handle)), "the first card")
        self.name = self._text(lambda *a: self.nvml.nvmlDeviceGetName(self.handle, *a))
        self.driver = self._text(self.nvml.nvmlSystemGetDriverVersion)

    @staticmethod
    def _check(result, what):
        if result != 0:
            raise Skip(f"no card: {what} failed with {result}")

    def _text(self, function):
        buffer = ctypes.create_string_buffer(96)
        self._check(function(buffer, 96), "a name")
        return buffer.value.decode()

    def capability(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self.nvml.nvmlDeviceGetCudaComputeCapability(self.handle, ctypes.byref(major), ctypes.byref(minor)),
                    "its compute capability")
        return major.value, minor.value

    def memory(self):
        facts = NvmlMemory()
        self._check(self.nvml.nvmlDeviceGetMemoryInfo(self.handle, ctypes.byref(facts)), "its memory")
        return facts


# ---- a device that is driven by lines


class Device:
    """One gpu_run: see the head of gpu_run.c for what may be asked."""

    def __init__(self, walk, device, mode, files, wrapper=(), preload=None, **environment):
        self.walk = walk
        if preload:
            environment["LD_PRELOAD"] = str(preload)
        command = [*map(str, wrapper), str(walk.programs.path("gpu_run")), device, mode, "0", *map(str, files)]
        walk.log(f"$ {' '.join(command)}")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=walk.log_file,
                                        text=True, env=walk.programs.environment(**environment))
        try:
            self.label = self._answer(60)["ready"]
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _answer(self, seconds):
        """The next line; a watch kills a process that is silent for too long."""
        watch = threading.Timer(max(1, min(seconds, self.walk.left())), self.process.kill)
        watch.start()
        try:
            # A tool that wraps the process may write lines of its own.
            line = self.process.stdout.readline()
            while line and not line.startswith("{"):
                self.walk.log(line.rstrip())
                line = self.process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            code = self.process.wait()
            raise Failed(f"gpu_run ended with {code}{' or was silent for too long' if code == -9 else ''}: "
                         f"{self.walk.last_of_log()}")
        self.walk.log(line.rstrip())
        return json.loads(line)

    def try_to(self, *words, seconds=180):
        """The answer, be it an error."""
        self.walk.log("> " + " ".join(map(str, words)))
        try:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer tells
        return self._answer(seconds)

    def ask(self, *words, seconds=180):
        answer = self.try_to(*words, seconds=seconds)
        if "error" in answer:
            raise Failed(f"{words[0]}: {answer['error']}: {answer['message']}")
        return answer

    def close(self):
        """Ends it; returns how it ended."""
        watch = threading.Timer(120, self.process.kill)
        watch.start()
        try:
            self.process.stdin.close()
            return self.process.wait()
        except BrokenPipeError:
            return self.process.wait()
        finally:
            watch.cancel()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        code = self.close()
        if kind is None and code != 0:
            raise Failed(f"gpu_run ended with {code}: {self.walk.last_of_log()}")


# ---- a daemon


CONFIG = """[service]
devices = {device}
[listen]
requests = ipc://{folder}/luna.sock
page =
events =
[models]
directories = {models}
[model gpu]
files = {files}
[scaling]
memory_margin_mb = {margin}
"""


class Daemon:
    """`luna serve` with one model on one device, in a folder of its own."""

    def __init__(self, walk, files):
        self.walk = walk
        self.folder = walk.scratch / "daemon"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.endpoint = f"ipc://{self.folder}/luna.sock"
        config = self.folder / "luna.conf"
        config.write_text(CONFIG.format(device=walk.device, folder=self.folder, models=files[0].parent,
                                        files=", ".join(path.name for path in files),
                                        margin="auto" if walk.is_card else 16))  # the emulator has 2 GiB in all
        self.program = walk.programs.path("luna")
        self.environment = walk.programs.environment(XDG_RUNTIME_DIR=str(self.folder), TMPDIR=str(self.folder))
        walk.log(f"$ {self.program} serve -c {config}")
        self.process = subprocess.Popen([self.program, "serve", "-c", config], stdout=walk.log_file,
                                        stderr=walk.log_file, cwd=self.folder, env=self.environment)
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self):
        deadline = time.monotonic() + min(60, self.walk.left())
        while self.cli("ping", check=False).returncode != 0:
            if self.process.poll() is not None:
                raise Failed(f"the daemon ended with {self.process.returncode}: {self.walk.last_of_log()}")
            if time.monotonic() > deadline:
                raise Failed("the daemon does not answer")
            time.sleep(0.1)

    def cli(self, command, *words, check=True, seconds=120):
        done = subprocess.run([self.program, command, "--connect", self.endpoint, *map(str, words)],
                              capture_output=True, text=True, env=self.environment, cwd=self.folder,
                              timeout=max(1, min(seconds, self.walk.left())))
        if check and done.returncode != 0:
            raise Failed(f"luna {command} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return done

    def executor(self):
        status = self.cli("status", "--json").stdout
        self.walk.log(status)
        devices = json.loads(status)["devices"]
        return next((d["executor_pid"] for d in devices if d["name"] == self.walk.device), 0)

    def bench(self, side, clients, seconds, *words):
        """What luna bench says of decodes: requests answered per second, percentiles, errors."""
        done = self.cli("bench", "--clients", clients, "--mix", "decode", "--size", f"{side}x{side}", "--duration",
                        seconds, "--json", *words, seconds=seconds + 60)
        self.walk.log(done.stdout)
        return json.loads(done.stdout)

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# ---- numbers


def read_safetensors(path):
    """{name: (dims, floats)} of a small file of f32."""
    import array

    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = (entry["shape"], array.array("f", data[begin:end]))
    return found


def read_floats(path):
    import array

    return array.array("f", path.read_bytes())


def median(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
