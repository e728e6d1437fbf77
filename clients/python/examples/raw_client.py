"""Decodes a latent with nothing but pyzmq and protobuf (luna_pb2: see ../README.md)."""

import os
import sys

import luna_pb2 as pb
import zmq

socket = zmq.Context().socket(zmq.REQ)
socket.connect(os.environ.get("LUNA_ENDPOINT", "tcp://127.0.0.1:19283"))
latent = open(sys.argv[1], "rb").read()  # float32 [1,4,64,64], little-endian
header = pb.Header(major=1, kind=pb.REQUEST, id=os.urandom(16), operation=pb.DECODE_LATENT)
header.tensors.add(name="latent", dtype=pb.F32, dims=[1, 4, 64, 64], bytes=len(latent))
body = pb.DecodeLatent(output=pb.U8)
socket.send_multipart([header.SerializeToString(), body.SerializeToString(), latent])
head, body, *pixels = socket.recv_multipart()
answer = pb.Header.FromString(head)
if answer.code != pb.OK:
    sys.exit(f"{pb.Code.Name(answer.code)}: {answer.message}")
print(list(answer.tensors[0].dims), pb.ImageReply.FromString(body).device)
open(sys.argv[2], "wb").write(pixels[0])  # uint8 [1,512,512,3]
