"""``slt-import-checkpoint merge-lora``: adapters folded into their base, as one checkpoint that needs neither."""

import argparse
from pathlib import Path

from slt_plugin.checkpoints.errors import CheckpointError


def add_parser(projects: argparse._SubParsersAction) -> None:
    """The command's own arguments."""
    parser = projects.add_parser(
        "merge-lora", help="a model that was trained with model.use_lora as one whole: adapters folded into the base"
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of a training with model.use_lora=true")
    parser.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write")
    parser.add_argument(
        "--base", metavar="MODEL", help="where the base lies now: a directory or a hub id; default: as in the training"
    )
    parser.set_defaults(run=lambda args: merge_checkpoint(args.checkpoint, args.out, args.base))


def merge_checkpoint(checkpoint: Path, out: Path, base: str | None = None) -> None:
    """Writes ``out``, a ``sign_to_text_hf`` without LoRA that computes what ``checkpoint`` computes on its base.

    Args:
        base: where the base lies; default: where the training found it (``model.hf_model``).

    Raises:
        CheckpointError: ``checkpoint`` has no adapters, or another base; ``out`` exists.
        SltError: the base cannot be found.
    """
    import torch
    from fairseq import checkpoint_utils
    from omegaconf import OmegaConf

    import slt_plugin.tasks  # noqa: F401  registers task and model
    from slt_plugin.checkpoints.provenance import provenance_of
    from slt_plugin.cli.translation_file import write_translation_model
    from slt_plugin.models.hf_lora import merge_lora

    if out.exists():
        raise CheckpointError(f"{out} exists already: remove it or name another file")
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint} does not exist: give a checkpoint that was trained with model.use_lora")
    model_cfg = _model_options(checkpoint)
    if not model_cfg.get("use_lora"):
        raise CheckpointError(
            f"{checkpoint} holds a {model_cfg.get('_name')} that was trained without LoRA: there is nothing to fold"
        )
    overrides = {"data": "", **({} if base is None else {"hf_model": base})}
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], overrides)
    adapters = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    hf_config = model.cfg.hf_config  # filled in when the model was built
    merge_lora(model.hf)
    model.forget_base()
    OmegaConf.set_struct(cfg, False)
    cfg.model.use_lora, cfg.model.hf_config = False, hf_config
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    facts = provenance_of(checkpoint, project="sign_to_text_hf with LoRA", notes=["adapters folded into the base"])
    with torch.no_grad():
        write_translation_model(out, cfg, task, state, {checkpoint.name: facts.to_dict()})
    print(
        f"{out}: {adapters:,} parameters of adapters folded into {cfg.model.hf_model}, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters in all"
    )


def _model_options(checkpoint: Path) -> dict:
    from omegaconf import OmegaConf

    from slt_plugin.checkpoints.foreign import read_torch

    cfg = read_torch(checkpoint, mmap=True).get("cfg")
    if OmegaConf.is_config(cfg):
        cfg = OmegaConf.to_container(cfg)
    model = (cfg or {}).get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{checkpoint} is no checkpoint of this project: it has no cfg.model")
    return model
