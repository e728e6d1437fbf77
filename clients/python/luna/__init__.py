"""Client of the luna daemon, which serves VAE and CLIP text encoders to image generation.

daemon = luna.connect()
latent = daemon.encode_image(pixels)
result = daemon.encode_text("a cat", loras=[("style", 0.8)])
"""

from .cuda import DeviceArray
from .daemon import Daemon, connect
from .errors import (
    Cancelled,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from .events import Event, events
from .requests import TextResult
from .tensor_file import state_dict

__version__ = "0.1.0"
__all__ = [
    "Cancelled",
    "Daemon",
    "DeadlineExceeded",
    "DeviceArray",
    "Error",
    "Event",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "TextResult",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "connect",
    "events",
    "state_dict",
]
