"""The daemon's operations as methods, written once for both clients.

Each method returns what self._run(request, ...) or self._converse(conversation, ...) returns: the
result in luna.Daemon, an awaitable in luna.aio.Daemon. Every method that works takes timeout (seconds,
of the whole) and priority (-100 to 100).
"""

import functools

from . import loras as adapters
from . import luna_pb2 as pb
from . import requests


class Operations:
    """Mixed into both clients."""

    def _run(self, request, timeout=None, priority=0, progress=None):
        raise NotImplementedError

    def _converse(self, conversation, timeout=None, priority=0, progress=None):
        """Runs a conversation (see loras.py); progress is of the work in it."""
        raise NotImplementedError

    @property
    def _hashes(self):
        """Hashes of adapters' files, kept as long as the object."""
        if "_known_hashes" not in self.__dict__:
            self._known_hashes = adapters.Hashes()
        return self._known_hashes

    @property
    def _piece_bytes(self):
        return self.hello["chunk_bytes"] if self.hello else 0

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
        """The image [N,H,W,3] in 0..1 of latents [N,c,h,w]; dtype "u8" rounds to 0..255.

        With details: (image, how it was done); not_finite_output tells of NaN or infinity that the
        model made, which bytes and the clamp to 0..1 would hide.
        """
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
        one_shot=False,
        weights=True,
        dtype=None,
        torch=False,
        progress=None,
        timeout=None,
        priority=0
    ):
        """A TextResult: .cond .pooled .negative_cond .negative_pooled .notes .loras .cached.

        loras, in order: adapters, (adapter, strength), or dictionaries of LoraEntry's fields whose
        "reference" is an adapter. An adapter is a name or a hash that the daemon knows, a path here,
        or a state dict. What is here is uploaded when the daemon lacks it, or, with one_shot, sent
        along and forgotten with the answer.

        torch: True gives torch tensors, a device, "cuda:0" for instance, torch tensors there.
        """
        texts = {
            "prompt": text,
            "prompt_2": prompt_2,
            "negative": negative,
            "negative_2": negative_2,
        }
        make_request = functools.partial(
            requests.encode_text,
            *(texts, model, lora_multiplier, clip_skip, sizes, dtype, weights, torch)
        )
        return self._encode(make_request, loras, one_shot, timeout, priority, progress)

    def encode_tokens(
        self,
        chunks,
        negative=None,
        model=None,
        loras=(),
        lora_multiplier=1.0,
        clip_skip=None,
        *,
        one_shot=False,
        dtype=None,
        torch=False,
        timeout=None,
        priority=0
    ):
        """As encode_text, of chunks in the form that tokenize returns."""
        make_request = functools.partial(
            requests.encode_tokens,
            *(chunks, negative, model, lora_multiplier, clip_skip, dtype, torch)
        )
        return self._encode(make_request, loras, one_shot, timeout, priority, None)

    def _encode(self, make_request, loras, one_shot, timeout, priority, progress):
        stack = adapters.stack(loras, self._hashes)
        if not any(entry.source or entry.maybe for entry in stack):  # one question, one answer
            request = make_request([entry.message for entry in stack])
            return self._run(request, timeout, priority, progress)
        conversation = adapters.encode(make_request, stack, one_shot, self._piece_bytes)
        return self._converse(conversation, timeout, priority, progress)

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

    def models(self, *, timeout=None):
        """The models, as `luna models list --json` prints them."""
        return self._converse(
            adapters.every(pb.MODEL_LIST, pb.ModelListReply, "models"), timeout
        )

    def put_lora(self, path_or_state_dict, name=None, *, progress=None, timeout=None):
        """Uploads an adapter; what the daemon has already moves no bytes.

        Returns what to call it in loras=: name, or the hash of its tensors where it has none.
        progress: a function of (bytes done, bytes in all).
        """
        thing = adapters.source(path_or_state_dict, self._hashes)
        return self._converse(
            adapters.put_and_name(thing, name, progress, self._piece_bytes), timeout
        )

    def get_lora(self, reference, path=None, *, progress=None, timeout=None):
        """The whole file of an adapter, bytes as they were put or found: luna.state_dict reads them.

        From a daemon on the same machine it is a view of the daemon's own memory where that is
        possible. With path it is written there, whole or not at all, and path is returned.
        """
        local = self._sharing.may_share
        return self._converse(
            adapters.get(reference, path, progress, self._piece_bytes, local), timeout
        )

    def loras(self, *, timeout=None):
        """The adapters that the daemon knows, as `luna loras list --json` prints them."""
        return self._converse(adapters.every(pb.LORA_LIST, pb.LoraListReply, "loras"), timeout)

    def lora(self, reference, *, timeout=None):
        """One adapter, by name or hash; raises luna.NotFound."""
        return self._run(requests.lora_by_name(pb.LORA_HAS, reference), timeout)

    def lora_stats(self, *, timeout=None):
        """What `luna loras stats --json` prints, as a dictionary."""
        return self._run(requests.lora_stats(), timeout)

    def scan_loras(self, *, timeout=None):
        """Looks through the daemon's adapter folders; returns what was found, added, removed."""
        return self._run(requests.scan_loras(), timeout)

    def pin_lora(self, reference, *, timeout=None):
        """Keeps an adapter in memory until it is unpinned; returns it."""
        return self._run(requests.lora_by_name(pb.LORA_PIN, reference), timeout)

    def unpin_lora(self, reference, *, timeout=None):
        """Takes one's own pin back; returns the adapter."""
        return self._run(requests.lora_by_name(pb.LORA_UNPIN, reference), timeout)

    def evict_lora(self, reference, *, timeout=None):
        """Drops an adapter from the daemon's memory; returns it as it was."""
        return self._run(requests.lora_by_name(pb.LORA_EVICT, reference), timeout)
