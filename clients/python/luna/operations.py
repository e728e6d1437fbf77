"""The daemon's operations as methods, written once for both clients.

Each method returns what self._run(request, ...) returns: the result in luna.Daemon, an awaitable in
luna.aio.Daemon. Every method that works takes timeout (seconds) and priority (-100 to 100).
"""

from . import luna_pb2 as pb
from . import requests


class Operations:
    """Mixed into both clients."""

    def _run(self, request, timeout=None, priority=0, progress=None):
        raise NotImplementedError

    def encode_image(
        self,
        image,
        model=None,
        tiling="auto",
        tile=512,
        overlap=64,
        passes=3,
        *,
        dtype=None,
        details=False,
        progress=None,
        timeout=None,
        priority=0
    ):
        """Latents [N,c,h,w] of an image [N,H,W,C], u8 or 0..1.

        dtype of the answer: "f32" (None), "f16", "bf16". With details: (latents, how it was done).
        """
        request = requests.encode_image(image, model, tiling, tile, overlap, passes, dtype, details)
        return self._run(request, timeout, priority, progress)

    def decode_latent(
        self,
        latent,
        model=None,
        tiling="auto",
        progress=None,
        *,
        tile=512,
        overlap=64,
        passes=3,
        dtype=None,
        details=False,
        timeout=None,
        priority=0
    ):
        """The image [N,H,W,3] in 0..1 of latents [N,c,h,w]; dtype "u8" rounds to 0..255."""
        request = requests.decode_latent(
            latent, model, tiling, tile, overlap, passes, dtype, details
        )
        return self._run(request, timeout, priority, progress)

    def encode_text(
        self,
        text,
        negative=None,
        prompt_2=None,
        model=None,
        loras=(),
        lora_multiplier=1.0,
        clip_skip=None,
        sizes=None,
        *,
        negative_2=None,
        weights=True,
        dtype=None,
        torch=False,
        progress=None,
        timeout=None,
        priority=0
    ):
        """A TextResult: .cond .pooled .negative_cond .negative_pooled .notes.

        loras: names, (name, strength), or dictionaries of LoraEntry's fields, in order.
        """
        texts = {
            "prompt": text,
            "prompt_2": prompt_2,
            "negative": negative,
            "negative_2": negative_2,
        }
        request = requests.encode_text(
            texts, model, loras, lora_multiplier, clip_skip, sizes, dtype, weights, torch
        )
        return self._run(request, timeout, priority, progress)

    def encode_tokens(
        self,
        chunks,
        negative=None,
        model=None,
        loras=(),
        lora_multiplier=1.0,
        clip_skip=None,
        *,
        dtype=None,
        torch=False,
        timeout=None,
        priority=0
    ):
        """As encode_text, of chunks in the form that tokenize returns."""
        request = requests.encode_tokens(
            chunks, negative, model, loras, lora_multiplier, clip_skip, dtype, torch
        )
        return self._run(request, timeout, priority)

    def tokenize(self, text, model=None, *, prompt_2=None, weights=True, timeout=None):
        """The chunks of every encoder: {"l": [[[id, weight], ... 77], ...], ...}."""
        return self._run(requests.tokenize(text, prompt_2, model, weights), timeout)

    def register_model(self, name, files, embeddings=None, *, timeout=None):
        """Gives a name to files below the daemon's model folders; returns the model."""
        return self._run(requests.register_model(name, files, embeddings), timeout)

    def load_model(self, name, *, timeout=None):
        """Loads a model before the first request for it; returns the model."""
        return self._run(requests.model_by_name(pb.MODEL_LOAD, name), timeout)

    def unload_model(self, name, *, timeout=None):
        """Gives the model's memory back; returns the model."""
        return self._run(requests.model_by_name(pb.MODEL_UNLOAD, name), timeout)

    def status(self, *, timeout=None):
        """What `luna status --json` prints, as a dictionary."""
        return self._run(requests.status(), timeout)

    def ping(self, *, timeout=None):
        """Version, limits and state of the daemon, as a dictionary."""
        return self._run(requests.ping(), timeout)

    def cancel(self, request_id, *, timeout=None):
        """Takes back a request of one's own, by its 16 bytes."""
        return self._run(requests.cancel(request_id), timeout)

    def drain(self, *, timeout=None):
        """Lets the daemon finish what it has and take nothing new."""
        return self._run(requests.simple(pb.DRAIN), timeout)

    def shutdown(self, *, timeout=None):
        """Ends the daemon after it has drained."""
        return self._run(requests.simple(pb.SHUTDOWN), timeout)

    def limits(self, *, timeout=None, **values):
        """Sets the limits given (vae_workers_max=1, ...) and returns those in force."""
        return self._run(requests.limits(values), timeout)

    def put_lora(self, path_or_state_dict, name=None, *, timeout=None):
        """Uploads an adapter. No daemon takes one yet: raises luna.Unimplemented."""
        return self._run(requests.simple(pb.LORA_PUT), timeout)

    def loras(self, *, timeout=None):
        """The adapters that the daemon knows. No daemon has this yet: raises luna.Unimplemented."""
        return self._run(requests.simple(pb.LORA_LIST), timeout)
