"""``slt-import-checkpoint ssvp-translation``: a translation model of SSVP-SLT (T5, BART) as a ``sign_to_text_hf``."""

import argparse
import json
from pathlib import Path

from slt_plugin.checkpoints.errors import CheckpointError

# of the paper's recipe (Rust et al., 2024, appendix): longest features, in steps, and longest translation, in tokens
MAX_SOURCE_STEPS, MAX_TARGET_TOKENS = 1024, 128


def add_parser(projects: argparse._SubParsersAction) -> None:
    """The command's own arguments."""
    parser = projects.add_parser(
        "ssvp-translation", help="T5 or BART that facebookresearch/ssvp_slt has trained on features (best_model.pth)"
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="their file (.pth)")
    parser.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write")
    parser.add_argument(
        "--base",
        required=True,
        metavar="MODEL",
        help="the pretrained model that it was fine-tuned from (their model.name_or_path): a directory or a hub id; "
        "its configuration and its tokenizer are read",
    )
    parser.add_argument("--lowercase", action="store_true", help="it was trained on lower-cased text")
    parser.set_defaults(run=lambda args: import_ssvp_translation(args.checkpoint, args.out, args.base, args.lowercase))


def import_ssvp_translation(checkpoint: Path, out: Path, base: str, lowercase: bool) -> None:
    """Writes ``out``, which reads the features that the original has read, from a ``best_model.pth``.

    Args:
        base: the pretrained model that the training began with (their ``model.name_or_path``): a directory, or an id on
            the hub. Of it the configuration and the tokenizer are read, no weights.
        lowercase: whether the model was trained on lower-cased text (their ``model.lower_case``).

    Raises:
        CheckpointError: the checkpoint is no such model, or of another base; ``out`` exists.
        SltError: the base cannot be found, or its vocabulary or configuration not be used.
    """
    import slt_plugin.tasks  # noqa: F401  registers task and model
    from slt_plugin.checkpoints.provenance import provenance_of
    from slt_plugin.checkpoints.ssvp_translation import read_ssvp_translation
    from slt_plugin.cli.translation_file import configuration, write_translation_model
    from slt_plugin.models.hf import describe
    from slt_plugin.models.sign_to_text_hf import SignToTextHFConfig
    from slt_plugin.text.hub import resolve

    if out.exists():
        raise CheckpointError(f"{out} exists already: remove it or name another file")
    original, folder = read_ssvp_translation(checkpoint), resolve(base)
    task = _task(folder, original.feature_dim, lowercase)
    model_cfg = SignToTextHFConfig(
        hf_model=base,
        hf_config=_description(original, folder),
        max_encoder_positions=MAX_SOURCE_STEPS,
        max_target_positions=MAX_TARGET_TOKENS,
    )
    cfg = configuration(task.cfg, model_cfg, "sign_to_text_hf")
    model = task.build_model(cfg.model, from_checkpoint=True)
    cfg.model.hf_config = describe(model.hf)
    _fill(model, original, f"{checkpoint} with the base {base}")
    provenance = {checkpoint.name: provenance_of(checkpoint, project=original.table.name).to_dict()}
    write_translation_model(out, cfg, task, model.state_dict(), provenance)
    print(
        f"{out}: {original.table.name}, {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{len(task.target_dictionary)} symbols of {folder}, features of {original.feature_dim} channels"
    )


def _task(folder: Path, channels: int, lowercase: bool):
    from slt_plugin.tasks.sign_to_text import SignToTextTask, SignToTextTaskConfig

    return SignToTextTask(
        SignToTextTaskConfig(
            data="",
            source="features",
            feature_channels=channels,
            codec="hf",
            codec_path=str(folder),
            lowercase=lowercase,
            max_source_positions=MAX_SOURCE_STEPS,
            max_target_positions=MAX_TARGET_TOKENS,
            eval_bleu=False,
            train_subset="train",
            seed=1,
        )
    )


def _description(original, folder: Path) -> str:
    """The configuration of the base, with token tables tied as they are in the checkpoint."""
    import torch

    from slt_plugin.checkpoints.foreign import read_json
    from slt_plugin.models.hf import SCALED, TIED

    config = folder / "config.json"
    values = read_json(config)
    if values.get("model_type") != original.family:
        raise CheckpointError(
            f"the checkpoint is a {original.family} ({original.table.name}), the base {folder} a "
            f"{values.get('model_type')}: give the model that its training began with (model.name_or_path)"
        )
    tied = values.get(TIED, True)
    prefix = "model." if original.family == "bart" else ""
    table, output = (original.state.get(name) for name in (f"{prefix}decoder.embed_tokens.weight", "lm_head.weight"))
    if original.family == "t5":
        values[SCALED] = tied  # T5 v1.0 scales its outputs, v1.1 does not, and this tells them apart
    if table is not None and output is None and tied:
        original.state["lm_head.weight"] = output = table
    values[TIED] = table is not None and output is not None and torch.equal(table, output)
    return json.dumps(values)


def _fill(model, original, what: str) -> None:
    """Loads the tensors into a model that was built without values."""
    import torch

    from slt_plugin.checkpoints.keymaps import fit

    try:
        state, _ = fit(original.state, model.hf.state_dict(), original.table)
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from error
    model.hf.load_state_dict(state, strict=False)  # `fit` has compared every name
    projection = model.encoder.adapter.projection
    with torch.no_grad():
        projection.weight.copy_(original.weight)
        projection.bias.copy_(original.bias)
