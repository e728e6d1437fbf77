#!/usr/bin/env python3
"""Writes tests/golden/lora/adapter.safetensors and adapter.pt: one small adapter in both formats.

Run it with a Python that has torch and safetensors. The LoRA store's test reads both and wants the same hashes.
"""

import pathlib

import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent / "lora"


def main():
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for stem in ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "lora_unet_down_blocks_0_to_q"):
        tensors[f"{stem}.lora_down.weight"] = torch.randn(4, 64, generator=generator).half()
        tensors[f"{stem}.lora_up.weight"] = torch.randn(64, 4, generator=generator).half()
        tensors[f"{stem}.alpha"] = torch.tensor(2.0).half()
    save_file(tensors, FOLDER / "adapter.safetensors")
    torch.save(tensors, FOLDER / "adapter.pt")


main()
