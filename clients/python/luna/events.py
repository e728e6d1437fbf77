"""The daemon's stream of events."""

import collections

import zmq
from google.protobuf.message import DecodeError

from . import luna_pb2 as pb
from .requests import plain

Event = collections.namedtuple("Event", "topic data")
Event.__doc__ = "A topic ('scaling.up') and a dictionary: luna_pb2.Status for 'status', else Event."


def events(endpoint="tcp://127.0.0.1:19285", topics=("",), timeout=None):
    """Yields every Event whose topic starts with one of topics, for ever or until none came for
    timeout seconds. A gap in data["sequence"] was a drop."""
    socket = zmq.Context.instance().socket(zmq.SUB)
    try:
        socket.linger = 0
        for topic in topics:
            socket.subscribe(topic)
        socket.connect(endpoint)
        while socket.poll(None if timeout is None else int(timeout * 1000)):
            frames = socket.recv_multipart()
            if len(frames) != 2:
                continue
            topic = frames[0].decode("utf-8", "replace")
            try:
                body = (pb.Status if topic == "status" else pb.Event).FromString(frames[1])
            except DecodeError:
                continue
            yield Event(topic, plain(body))
    finally:
        socket.close()
