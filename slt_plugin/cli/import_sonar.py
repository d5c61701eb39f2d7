"""``slt-import-checkpoint sonar-asl``: the four released files of SONAR's sign language models as one checkpoint."""

from pathlib import Path

from slt_plugin.checkpoints.errors import CheckpointError

SIGN_HIERA = "dm_70h_ub_signhiera.pth"
ENCODER = "dm_70h_ub_sonar_encoder.pth"
DECODER = "sonar_text_decoder.pt"
SPM = "sentencepiece.source.256000.model"
DTYPES = ("fp32", "bf16", "fp16")
SOURCES = ("video", "features")
# of the release's own demo (facebookresearch/ssvp_slt, examples/sonar/run.py)
SAMPLING_RATE, TARGET_FPS = 2, 25.0


def import_sonar_asl(folder: Path, out: Path, dtype: str, source: str) -> None:
    """Writes ``out``, a ``sonar_translator`` of videos, or of features that the release's SignHiera has extracted.

    The tensors are read memory-mapped; what is not of type ``dtype`` is held once, converted.

    Raises:
        CheckpointError: files are missing, damaged or do not belong together; ``out`` exists.
        CodecError: the vocabulary cannot be read.
    """
    import slt_plugin.tasks  # noqa: F401  registers task and model
    from slt_plugin.checkpoints import sonar
    from slt_plugin.checkpoints.provenance import provenance_of
    from slt_plugin.cli.translation_file import configuration, write_translation_model
    from slt_plugin.models.sonar import SonarTranslatorConfig, size_options

    if out.exists():
        raise CheckpointError(f"{out} exists already: remove it or name another file")
    _check_files(folder, source)
    encoder = sonar.read_sonar_encoder(folder / ENCODER)
    decoder = sonar.read_sonar_decoder(folder / DECODER)
    parts = {"encoder.sonar.": encoder.state, "decoder.": decoder.state}
    options = {"source_encoder": "none", **size_options(encoder.size, decoder.size)}
    if source == "video":
        hiera, variant, width = _read_sign_hiera(folder / SIGN_HIERA)
        if width != encoder.size.feature_dim:
            raise CheckpointError(
                f"{folder}: {SIGN_HIERA} gives features of {width} channels, {ENCODER} reads {encoder.size.feature_dim}"
            )
        parts["encoder.source_encoder.hiera."] = hiera
        options |= {"source_encoder": "signhiera", "signhiera_variant": variant}
        task = _task(folder, source=source, **_clip_options(variant))
    else:
        task = _task(folder, source=source, feature_channels=encoder.size.feature_dim)
    model_cfg = SonarTranslatorConfig(**options, max_target_positions=task.cfg.max_target_positions)
    cfg = configuration(task.cfg, model_cfg, "sonar_translator")
    model = task.build_model(cfg.model, from_checkpoint=True)  # names and shapes alone
    state = _joined(parts, model.state_dict(), dtype)
    names = {ENCODER: sonar.SONAR_ENCODER.name, DECODER: sonar.SONAR_TEXT_DECODER.name}
    if source == "video":
        names[SIGN_HIERA] = "SignHiera"
    provenance = {name: provenance_of(folder / name, project=project).to_dict() for name, project in names.items()}
    write_translation_model(out, cfg, task, state, provenance)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{out}: {count:,} parameters ({dtype}), {len(task.target_dictionary)} symbols, reads {source}")
    for name, facts in provenance.items():
        print(f"  {name}: {facts['source']}, licence {facts['licence']}")


def _check_files(folder: Path, source: str) -> None:
    needed = [ENCODER, DECODER, SPM, *([SIGN_HIERA] if source == "video" else [])]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        models = "sonar_signhiera sonar_encoder sonar_decoder"
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}: python scripts/download_pretrained.py --model {models} fetches them"
        )


def _read_sign_hiera(path: Path) -> tuple[dict, str, int]:
    """State (with initial values for norm and head, which features do not need), variant, and width of the features."""
    import torch

    from slt_plugin.checkpoints.importer import load_sign_hiera
    from slt_plugin.checkpoints.sign_hiera import read_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same file from the same input
        model = load_sign_hiera(path)
    return model.state_dict(), read_file(path).variant, model.feature_dim


def _clip_options(variant: str) -> dict:
    from slt_plugin.modules.hiera import VARIANTS

    frames, size = VARIANTS[variant]().input_size[:2]
    return {
        "clip_frames": frames,
        "clip_size": size,
        "clip_stride": frames // 2,
        "clip_sampling_rate": SAMPLING_RATE,
        "clip_target_fps": TARGET_FPS,
    }


def _task(folder: Path, **options):
    from slt_plugin.checkpoints.sonar_text import MAX_POSITIONS
    from slt_plugin.tasks.sign_to_text import SignToTextTask, SignToTextTaskConfig

    return SignToTextTask(
        SignToTextTaskConfig(
            data="",
            codec="sonar",
            codec_path=str(folder / SPM),
            max_target_positions=MAX_POSITIONS,
            eval_bleu=False,
            train_subset="train",
            seed=1,
            **options,
        )
    )


def _joined(parts: dict, target: dict, dtype: str) -> dict:
    """One state dict of the model, its SONAR parts of type ``dtype``; the SignHiera stays as it is: it is small."""
    import torch

    from slt_plugin.checkpoints.keymaps import KeyTable, fit
    from slt_plugin.modules.sonar import OVERFLOWING

    table = KeyTable("SONAR ASL", renames=())
    state = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
    state, _ = fit(state, target, table)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    kept = ("encoder.source_encoder.", "decoder.version")
    tied = "decoder.output_projection.weight"

    def cast(name: str, tensor: torch.Tensor) -> torch.Tensor:
        overflows = kind == torch.float16 and name.endswith(OVERFLOWING)
        return tensor if name.startswith(kept) or overflows else tensor.to(kind)

    converted = {name: cast(name, tensor) for name, tensor in state.items() if name != tied}
    converted[tied] = converted["decoder.embed_tokens.weight"]
    return converted
