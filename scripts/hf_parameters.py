#!/usr/bin/env python3
"""Parameters (trained, all), memory and batch of the configs hf_*, as a Markdown table for the README.

    python scripts/hf_parameters.py                       # all of them; needs no GPU, no hub and hardly any memory
    python scripts/hf_parameters.py hf_t5_small_isign_pose model.freeze_encoder=true

The models are built on PyTorch's meta device, without values, from the sizes in SIZES, as the training would build
them: sign encoder, adapter, pretrained model, LoRA. Memory is that of weights, gradients and Adam in fairseq's bf16 (a
trained parameter: 2 bytes of weight, 2 of gradient, 4 of float32 copy, 4 of its gradient, 8 of Adam; another one: 2) or
fp32 (16 and 4); what a batch needs comes on top and is not computed here. Batch: source steps x batches of an update;
on the GPUs named it stays the same, because scripts/train_multi_gpu.sh divides the batches among them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
from omegaconf import DictConfig

import slt_plugin.tasks  # noqa: F401  registers models and tasks
from slt_plugin.cli.training import CONFIGS, config_names
from slt_plugin.cli.training_launch import compose, resolve
from slt_plugin.common.errors import SltError
from slt_plugin.common.messages import did_you_mean
from slt_plugin.models import sign_to_text_hf
from slt_plugin.models.errors import OptionError
from slt_plugin.models.hf import build_model

FOLDER = CONFIGS / "finetune"
BYTES = {True: (20, 2), False: (16, 4)}  # bf16 or not: of a trained parameter, of another one


def _t5(width: int, ffn: int, layers: int, heads: int, head_width: int = 64, **values: object) -> dict:
    return {"model_type": "t5", "d_model": width, "d_ff": ffn, "num_layers": layers, "num_heads": heads,
            "d_kv": head_width, "vocab_size": 32128, "tie_word_embeddings": True, "decoder_start_token_id": 0,
            **values}  # fmt: skip


def _bart(model_type: str, symbols: int, **values: object) -> dict:
    size = dict.fromkeys(("encoder_layers", "decoder_layers"), 12)
    size |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 16)
    size |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4096)
    return {"model_type": model_type, "d_model": 1024, "vocab_size": symbols, "max_position_embeddings": 1024,
            "tie_word_embeddings": True, "decoder_start_token_id": 2, **size, **values}  # fmt: skip


_V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_MT5 = {**_V1_1, "model_type": "mt5", "vocab_size": 250112}
# id on the hub -> the sizes in its config.json (https://huggingface.co/<id>/blob/main/config.json), typed in
SIZES = {
    "google-t5/t5-small": _t5(512, 2048, 6, 8),
    "google-t5/t5-base": _t5(768, 3072, 12, 12),
    "google-t5/t5-large": _t5(1024, 4096, 24, 16),
    "google-t5/t5-3b": _t5(1024, 16384, 24, 32, 128),
    "google/t5-v1_1-base": _t5(768, 2048, 12, 12, **_V1_1),
    "google/mt5-large": _t5(1024, 2816, 24, 16, **_MT5),
    "google/mt5-xl": _t5(2048, 5120, 24, 32, **_MT5),
    "facebook/bart-large": _bart("bart", 50265),
    "facebook/mbart-large-50": _bart("mbart", 250054, scale_embedding=True),
    "facebook/m2m100_418M": _bart("m2m_100", 128112, scale_embedding=True),
}


class Counted(NamedTuple):
    config: str
    hf_model: str
    trained: int
    total: int
    gigabytes: float  # of weights, gradients and Adam
    lora: bool
    steps: int  # source steps of a batch
    batches: int  # of an update


def count(name: str, overrides: Sequence[str] = ()) -> Counted:
    """Composes a config and counts what it would train.

    Raises:
        OptionError: no such config, or one with a model whose sizes are not in SIZES.
    """
    options = argparse.Namespace(config_name=name, config_path=None, config_dir=str(FOLDER))
    cfg = resolve(compose(options, ["task.data=.", *overrides]))
    base = cfg.model.hf_model
    if base not in SIZES:
        raise OptionError(
            f"model.hf_model={base}: its sizes are not in scripts/hf_parameters.py{did_you_mean(base, SIZES)}"
        )
    trained, total = parameters(cfg, SIZES[base])
    of_trained, of_other = BYTES[bool(cfg.common.bf16)]
    gigabytes = (trained * of_trained + (total - trained) * of_other) / 1e9
    (batches,) = cfg.optimization.update_freq
    return Counted(name, base, trained, total, gigabytes, cfg.model.use_lora, cfg.dataset.max_tokens, batches)


def parameters(cfg: DictConfig, sizes: dict) -> tuple[int, int]:
    """(trained, all) parameters of the model that the configuration builds around one of these sizes."""
    with torch.device("meta"):
        hf = build_model(json.dumps(sizes))
        if sizes["tie_word_embeddings"]:  # which transformers leaves out on this device
            hf.get_output_embeddings().weight = hf.get_input_embeddings().weight
        task = SimpleNamespace(
            cfg=cfg.task,
            source_channels=source_channels(cfg),
            codec=Vocabulary(hf.config),
            target_dictionary=Vocabulary(hf.config),
            weights_follow=True,
        )
        # without values there is nothing to load and no checksum to take
        with (
            mock.patch.object(sign_to_text_hf.SignToTextHF, "_pretrained", return_value=hf),
            mock.patch.object(sign_to_text_hf, "base_identity", return_value=torch.zeros(32, dtype=torch.uint8)),
        ):
            model = sign_to_text_hf.SignToTextHF.build_model(cfg.model, task)
    return (
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        sum(p.numel() for p in model.parameters()),
    )


class Vocabulary:
    """What building asks of a codec and of its dictionary: the special symbols and the size of the model's own."""

    kind, languages, language_is_prefix = "hf", (), False

    def __init__(self, config):
        self.config, self.dictionary = config, self

    def __len__(self) -> int:
        return self.config.vocab_size

    def pad(self) -> int:
        return self.config.pad_token_id

    def eos(self) -> int:
        return self.config.eos_token_id


def source_channels(cfg: DictConfig) -> int:
    from slt_plugin.data.pose import PoseOptions, channels

    if cfg.task.source == "pose":
        return channels(PoseOptions(parts=tuple(cfg.task.pose_parts.split(","))))
    return cfg.task.feature_channels


def table(rows: Sequence[Counted]) -> str:
    """GitHub's Markdown."""
    lines = [
        "| config | pretrained model | trained | all parameters | weights, gradients, Adam | batch | GPUs |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        gpus = [n for n in range(1, row.batches + 1) if row.batches % n == 0]
        model = f"`{row.hf_model}`" + (", LoRA" if row.lora else "")
        lines.append(
            f"| `{row.config}` | {model} | {row.trained / 1e6:,.1f} M | {row.total / 1e6:,.1f} M | "
            f"{row.gigabytes:.1f} GB | {row.steps} x {row.batches} | {', '.join(map(str, gpus))} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="one of the configs hf_* (default: all)")
    parser.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help="as of slt-finetune")
    args = parser.parse_args(argv)
    names = [name for name in config_names(FOLDER) if name.startswith("hf_")]
    if args.config is not None and args.config not in names:
        parser.error(f"no config {args.config}{did_you_mean(args.config, names)}; there are {', '.join(names)}")
    try:
        rows = [count(name, args.overrides) for name in ([args.config] if args.config else names)]
    except SltError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(sorted(rows, key=lambda row: row.total)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
