"""A translation model imported from elsewhere as a checkpoint that fairseq's commands load."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path


def configuration(task_cfg, model_cfg, model_name: str):
    """A whole fairseq configuration around task and model, as fairseq stores it in its own checkpoints."""
    from fairseq.dataclass.configs import FairseqConfig
    from omegaconf import OmegaConf

    sections = {f.name: getattr(FairseqConfig(), f.name) for f in fields(FairseqConfig)}
    cfg = OmegaConf.create({name: value for name, value in sections.items() if name not in ("task", "model")})
    cfg.task = OmegaConf.merge(OmegaConf.structured(task_cfg), {"_name": "sign_to_text"})
    cfg.model = OmegaConf.merge(OmegaConf.structured(model_cfg), {"_name": model_name})
    return cfg


def write_translation_model(
    out: Path, cfg, task, state: Mapping, provenance: Mapping[str, Mapping] | None = None
) -> None:
    """Writes the checkpoint atomically.

    Args:
        state: the model's state dict.
        provenance: of each part of the model, as `checkpoints.provenance.Provenance.to_dict` gives it.
    """
    import torch
    from omegaconf import OmegaConf

    from slt_plugin.common.files import atomic_open

    content = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": dict(state),
        "optimizer_history": [
            {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0},
        ],
        "task_state": task.state_dict(),
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    if provenance is not None:
        content["provenance"] = dict(provenance)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(out) as file:
        torch.save(content, file)
