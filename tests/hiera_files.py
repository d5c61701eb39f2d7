"""Checkpoints of a tiny SignHiera in the layouts of the projects that have one, for the tests of the importer."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from slt_plugin.modules.hiera import SignHiera, signhiera_tiny_32x64

STEPS, WIDTH = 16, 256  # time steps and last width of tiny_32x64
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3), "step": 7}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}


def tiny_hiera(seed: int = 0) -> SignHiera:
    """With weights large enough that every one of them shows in the features."""
    model = signhiera_tiny_32x64(num_classes=5).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.ndim == 1 else 0.1))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


def mae_state(model: SignHiera, fusion_heads: int = 3) -> dict[str, Tensor]:
    """The model as a masked autoencoder's state dict: a decoder, and neither norm nor head."""
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith(("norm.", "head."))}
    for i in range(fusion_heads):
        state[f"multi_scale_fusion_heads.{i}.weight"] = torch.ones(WIDTH, 8, 1, 2, 2)
        state[f"multi_scale_fusion_heads.{i}.bias"] = torch.ones(WIDTH)
    for name in ("encoder_norm", "decoder_embed", "decoder_blocks.0.attn.qkv", "decoder_norm", "decoder_pred"):
        state |= {f"{name}.weight": torch.ones(3, 3), f"{name}.bias": torch.ones(3)}
    return state | {"mask_token": torch.ones(1, 1, 3), "decoder_pos_embed": torch.ones(1, 4, 3)}


def ssvp_mae(model: SignHiera) -> dict:
    """What pretraining/main_pretraining.py of facebookresearch/ssvp_slt saves."""
    return {
        "model": mae_state(model),
        "optimizer": OPTIMIZER,
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
        "cfg": {"model": {"name": "mae_hiera_base_128x224"}, "wandb": None},
        "epoch": 399,
    }


def mae_st(model: SignHiera) -> dict:
    """The same as its ancestor mae_st saves it: the options are a namespace."""
    return ssvp_mae(model) | {"cfg": None, "args": argparse.Namespace(model="mae_hiera_base_128x224", lr=8e-4)}


def ssvp_clip(model: SignHiera) -> dict:
    """What pretraining_clip/main_pretraining_clip.py saves: vision tower, its projection, text tower, logit scale."""
    state = {f"visual.transformer.{name}": tensor for name, tensor in mae_state(model).items()}
    state |= {"visual.proj.0.weight": torch.ones(2, 2), "visual.proj.2.weight": torch.ones(2, 2)}
    state |= {
        "text.transformer.encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2),
        "text.proj.0.weight": torch.ones(2),
    }
    return {
        "clip": state | {"logit_scale": torch.tensor(2.6592)},
        "gradnorm": {"mae_weight": torch.ones(()), "contrastive_weight": torch.ones(())},
        "optimizer": OPTIMIZER,
        "optimizer_gradnorm": OPTIMIZER,
        "cfg": {"model": {"vision_model_name": "mae_hiera_base_128x224", "embed_dim": 768}},
        "epoch": 199,
    }


def dailymoth(model: SignHiera) -> dict:
    return {"model_state": mae_state(model)}


def hiera_mae(model: SignHiera) -> dict:
    """facebookresearch/hiera: mae_hiera_base_16x224.pth, which pools twice."""
    return {"model_state": mae_state(model, fusion_heads=2)}


def hiera_classifier(model: SignHiera) -> dict:
    """facebookresearch/hiera: hiera_base_16x224.pth."""
    return {"model_state": model.state_dict()}


def bare(model: SignHiera) -> dict:
    return dict(model.state_dict())


def sign_to_text(model: SignHiera) -> dict:
    """A fine-tuned translation model of ours."""
    state = {f"encoder.source_encoder.hiera.{name}": tensor for name, tensor in model.state_dict().items()}
    for name in (
        "encoder.adapter.projection",
        "encoder.text_encoder.layers.0.fc1",
        "encoder.ctc_head.projection",
        "decoder.x",
    ):
        state[f"{name}.weight"] = torch.ones(2, 2)
    return {
        "args": None,
        "cfg": {"model": {"_name": "sign_to_text"}},
        "model": state,
        "task_state": {"source": "video"},
        "extra_state": {"epoch": 3},
    }


LAYOUTS = {f.__name__: f for f in (ssvp_mae, mae_st, ssvp_clip, dailymoth, hiera_mae, hiera_classifier, bare,
                                   sign_to_text)}  # fmt: skip


def shorter(model: SignHiera, steps: int) -> SignHiera:
    """The model with fewer temporal positions: (1, steps, C), values i + c / 10."""
    table = torch.arange(steps, dtype=torch.float32)[None, :, None] + torch.arange(32)[None, None] / 10
    model.pos_embed_temporal = torch.nn.Parameter(table)
    return model


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path
