"""Encodes a prompt with a LoRA's file that travels along, with nothing but pyzmq and protobuf (see ../README.md).

    raw_lora.py PROMPT FILE [STRENGTH]
"""

import os
import sys

import luna_pb2 as pb
import zmq

prompt, file = sys.argv[1].encode(), open(sys.argv[2], "rb").read()
model = os.environ.get("LUNA_MODEL", "")  # empty: the only one
header = pb.Header(major=1, kind=pb.REQUEST, id=os.urandom(16), operation=pb.ENCODE_TEXT, model=model)
header.tensors.add(name="prompt", dtype=pb.U8, dims=[len(prompt)], bytes=len(prompt))
header.tensors.add(name="lora.0", dtype=pb.U8, dims=[len(file)], bytes=len(file))
body = pb.EncodeText()
body.loras.add(tensor="lora.0", strength=float(sys.argv[3]) if len(sys.argv) > 3 else 1.0)
# One that the daemon knows needs no tensor: body.loras.add(reference="style", strength=0.8)
socket = zmq.Context().socket(zmq.REQ)
socket.connect(os.environ.get("LUNA_ENDPOINT", "tcp://127.0.0.1:19283"))
socket.send_multipart([header.SerializeToString(), body.SerializeToString(), prompt, file])
head, body, *tensors = socket.recv_multipart()
answer, reply = pb.Header.FromString(head), pb.TextReply.FromString(body)
if answer.code != pb.OK:
    sys.exit(f"{pb.Code.Name(answer.code)}: {answer.message}")
for tensor in answer.tensors:
    print(tensor.name, list(tensor.dims), pb.Dtype.Name(tensor.dtype))
print("changed", reply.loras[0].modules, "tensors", *reply.notes)
