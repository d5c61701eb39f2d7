"""``slt-import-checkpoint``: turn another project's checkpoint into one that our commands load.

examples:
  slt-import-checkpoint sign-hiera pretrained/dm_70h_ub_signhiera.pth signhiera_dm70h.pt
  slt-import-checkpoint sign-hiera pretrained/mae_hiera_base_16x224.pth signhiera_k400.pt --variant base_128x224
  slt-import-checkpoint describe signhiera_k400.pt
  slt-import-checkpoint export-fp16 runs/fingerspelling/checkpoint_best.pt fingerspelling_fp16.pt
  slt-import-checkpoint merge-lora runs/t5_3b_lora/checkpoint_best.pt t5_3b_isign.pt
  slt-import-checkpoint ssvp-translation best_model.pth ssvp_t5.pt --base google/t5-v1_1-base
  slt-import-checkpoint sonar-asl pretrained sonar_asl.pt --dtype bf16
  slt-import-checkpoint tarres checkpoint.best_reduced_sacrebleu_3.5401.pt how2sign_i3d.pt \\
      --spm cvpr23.train.how2sign.unigram7000_lowercased.model
  fairseq-generate DATA --user-dir slt_plugin --task sign_to_text --path how2sign_i3d.pt --gen-subset test --beam 5
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from slt_plugin.checkpoints.keymaps import TARRES, CheckpointError, convert, fit
from slt_plugin.cli import import_sonar, import_ssvp, merge_lora
from slt_plugin.common.errors import SltError
from slt_plugin.text.errors import CodecError

# our model option -> theirs, where the value is the same
TARRES_OPTIONS = {
    **{
        f"{part}_{name}": f"{part}_{name}"
        for part in ("encoder", "decoder")
        for name in ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")
    },
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "activation_fn": "activation_fn",
    "layernorm_embedding": "layernorm_embedding",
    "share_decoder_input_output_embed": "share_decoder_input_output_embed",
    "normalize_before": "encoder_normalize_before",
    "max_encoder_positions": "max_source_positions",
    "max_decoder_positions": "max_target_positions",
}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        args.run(args)
    except (SltError, OSError) as error:
        print(f"slt-import-checkpoint: {error}", file=sys.stderr)
        return 1
    return 0


def import_tarres(checkpoint: Path, spm: Path, dictionary: Path | None, out: Path) -> None:
    """Writes ``out`` from a ``sign2text_transformer`` checkpoint of Tarres et al. (2023) and its vocabulary.

    Raises:
        CheckpointError: the checkpoint is no such model, or its options have no counterpart here.
        CodecError: the vocabulary cannot be read.
    """
    import slt_plugin.tasks  # noqa: F401  registers task and model
    from slt_plugin.checkpoints.importer import read_foreign
    from slt_plugin.cli.translation_file import configuration, write_translation_model
    from slt_plugin.models.sign_to_text import SignToTextConfig
    from slt_plugin.tasks.sign_to_text import SignToTextTask, SignToTextTaskConfig

    if out.exists():
        raise CheckpointError(f"{out} exists already: remove it or name another file")
    foreign = read_foreign(checkpoint)
    if foreign.kind != "fairseq":
        raise CheckpointError(f"{checkpoint}: expected a fairseq checkpoint with its configuration")
    if not spm.is_file():
        raise CodecError(
            f"--spm {spm} does not exist: give the SentencePiece .model that the checkpoint was trained with"
        )
    if dictionary is None and spm.with_suffix(".txt").is_file():
        dictionary = spm.with_suffix(".txt")  # where their task looks for it
    try:
        state = convert(foreign.state, TARRES)
        projection = state.get("encoder.adapter.projection.weight")
        if projection is None:
            raise CheckpointError("encoder.feat_proj.weight is missing")
        task = SignToTextTask(
            SignToTextTaskConfig(
                data="",
                source="features",
                feature_channels=projection.shape[1],
                codec="sentencepiece",
                codec_path=str(spm),
                dictionary_path=None if dictionary is None else str(dictionary),
                # their task lower-cases the text under this name
                lowercase=foreign.metadata.get("pre_tokenizer") == "moses",
                max_source_positions=foreign.metadata.get("max_source_positions", 1024),
                max_target_positions=foreign.metadata.get("max_target_positions", 1024),
                eval_bleu=False,
                train_subset="train",
                seed=1,
            )
        )
        _check_size(state, task.target_dictionary, spm, dictionary)
        model_options = tarres_options(foreign.metadata)
        cfg = configuration(task.cfg, SignToTextConfig(**model_options), "sign_to_text")
        model = task.build_model(cfg.model)
        state, _ = fit(state, model.state_dict(), TARRES)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    # with the model's own version numbers: without them fairseq takes the file for an old one and drops layer_norm
    write_translation_model(out, cfg, task, model.state_dict() | state)
    print(
        f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(task.target_dictionary)} symbols "
        f"(order of {dictionary or spm}), features of {projection.shape[1]} channels"
    )


def import_sign_hiera(
    checkpoint: Path, out: Path, variant: str | None, licence: str | None, source: str | None
) -> None:
    """Writes ``out``, a SignHiera with its provenance, from any checkpoint that holds one.

    Raises:
        CheckpointError: the checkpoint holds none, or not of this variant; ``out`` exists.
    """
    from slt_plugin.checkpoints import sign_hiera

    file = sign_hiera.import_sign_hiera(checkpoint, out, variant, licence=licence, source=source)
    print(f"{out}: {_summary(file)}")
    for line in file.provenance.lines():
        print(f"  {line}")


def describe(checkpoint: Path) -> None:
    """Prints what a SignHiera checkpoint, or an imported translation model, is and where it comes from.

    Raises:
        CheckpointError: it is neither; the message says what it looks like.
    """
    from slt_plugin.checkpoints.foreign import read_content
    from slt_plugin.checkpoints.provenance import Provenance, provenance_of
    from slt_plugin.checkpoints.sign_hiera import read_file

    content = read_content(checkpoint)
    if "cfg" in content and isinstance(content.get("provenance"), dict):
        print(f"{checkpoint}: {content['cfg']['model']['_name']}, reads {content['cfg']['task']['source']}")
        for part, facts in content["provenance"].items():
            for line in (f"from {part}", *Provenance.from_dict(facts, checkpoint).lines()):
                print(f"  {line}")
        return
    file = read_file(checkpoint)
    provenance = file.provenance or provenance_of(checkpoint, project=file.project, notes=file.notes)
    print(f"{checkpoint}: {_summary(file)}")
    for line in provenance.lines():
        print(f"  {line}")


def export(checkpoint: Path, out: Path) -> None:
    """Writes ``out``, a checkpoint of one of our models for decoding only, with its weights in fp16.

    Raises:
        CheckpointError: it is no such checkpoint, or fp16 cannot hold its weights; ``out`` exists.
    """
    from slt_plugin.checkpoints.export import export_fp16

    done = export_fp16(checkpoint, out)
    print(
        f"{out}: fp16, {done.bytes_after / 1e6:.1f} MB ({checkpoint.name}: {done.bytes_before / 1e6:.1f} MB); "
        f"largest change of a weight {done.largest_change:.1g}"
    )


def _summary(file) -> str:
    parameters = sum(tensor.numel() for tensor in file.state.values())
    return f"SignHiera {file.variant}, {len(file.state)} tensors, {parameters:,} parameters"


def tarres_options(theirs: dict) -> dict:
    """Their model configuration -> values of ``SignToTextConfig``.

    Raises:
        CheckpointError: options are missing, or differ between encoder and decoder where we have one.
    """
    lacking = [name for name in TARRES_OPTIONS.values() if name not in theirs]
    if lacking:
        raise CheckpointError(
            f"its configuration lacks {', '.join(lacking)}: no sign2text_transformer of Tarres et al."
        )
    if theirs["encoder_normalize_before"] != theirs.get("decoder_normalize_before"):
        raise CheckpointError("encoder_normalize_before and decoder_normalize_before differ, here they are one option")
    options = {ours: theirs[name] for ours, name in TARRES_OPTIONS.items()}
    return options | {
        "source_encoder": "none",
        "scale_embedding": not theirs.get("no_scale_embedding", False),
        "encoder_layernorm_embedding": False,  # theirs normalises the decoder's embeddings only
    }


def _check_size(state: dict, symbols: Sequence, spm: Path, dictionary: Path | None) -> None:
    rows = len(state.get("decoder.embed_tokens.weight", ()))
    if rows != len(symbols):
        raise CheckpointError(
            f"it has {rows} symbols, the vocabulary ({dictionary or spm}) has {len(symbols)}: give the SentencePiece "
            "model it was trained with, and its fairseq dictionary with --dict"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slt-import-checkpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    projects = parser.add_subparsers(required=True, metavar="PROJECT")
    tarres = projects.add_parser(
        "tarres", help="sign2text_transformer of Tarres et al. (2023), I3D features -> English"
    )
    tarres.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="their fairseq checkpoint (.pt)")
    tarres.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write")
    tarres.add_argument("--spm", type=Path, required=True, metavar="MODEL", help="its SentencePiece model")
    tarres.add_argument(
        "--dict", type=Path, dest="dictionary", metavar="FILE", help="its fairseq dictionary; default: MODEL's .txt"
    )
    tarres.set_defaults(run=lambda args: import_tarres(args.checkpoint, args.spm, args.dictionary, args.out))
    hiera = projects.add_parser(
        "sign-hiera",
        help="SignHiera of SSVP-SLT (MAE or CLIP), DailyMoth-70h, public Hiera video models, or our fine-tuned models",
    )
    hiera.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="their file (.pth, .pt, .safetensors)")
    hiera.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write")
    hiera.add_argument(
        "--variant",
        help="base_16x224, base_128x224, large_128x224, ...; default: as the file says. Temporal positions are "
        "interpolated to the variant's length",
    )
    hiera.add_argument("--licence", help="of the weights; default: what is known of the file")
    hiera.add_argument("--source", metavar="URL", help="where the file comes from; default: as downloaded, or its path")
    hiera.set_defaults(
        run=lambda args: import_sign_hiera(args.checkpoint, args.out, args.variant, args.licence, args.source)
    )
    sonar = projects.add_parser(
        "sonar-asl",
        help="DailyMoth-70h's SignHiera, SONAR's ASL encoder and text decoder: video -> 202 languages",
    )
    sonar.add_argument("folder", type=Path, metavar="DIR", help="where scripts/download_pretrained.py has put them")
    sonar.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write")
    sonar.add_argument(
        "--dtype", choices=import_sonar.DTYPES, default="fp32", help="of SONAR's weights (default: %(default)s)"
    )
    sonar.add_argument(
        "--source",
        choices=import_sonar.SOURCES,
        default="video",
        help="what the model reads; features: those that slt-extract has made with the SignHiera",
    )
    sonar.set_defaults(run=lambda args: import_sonar.import_sonar_asl(args.folder, args.out, args.dtype, args.source))
    import_ssvp.add_parser(projects)
    merge_lora.add_parser(projects)
    exporting = projects.add_parser(
        "export-fp16", help="a checkpoint of one of our models for decoding: half the size, no optimizer"
    )
    exporting.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of a training, or imported")
    exporting.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write")
    exporting.set_defaults(run=lambda args: export(args.checkpoint, args.out))
    describing = projects.add_parser(
        "describe", help="what a SignHiera or an imported model is, and where it comes from"
    )
    describing.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="ours or theirs")
    describing.set_defaults(run=lambda args: describe(args.checkpoint))
    return parser


if __name__ == "__main__":
    sys.exit(main())
