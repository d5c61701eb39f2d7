"""What an unexpected checkpoint looks like, for error messages. Guesses from names and shapes, never used to load."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from slt_plugin.common.messages import listing

# where projects put the model's tensors in a checkpoint's dict
CONTAINERS = ("student", "model", "model_state", "clip", "state_dict", "model_state_dict", "module", "teacher")
# (patterns that must each match a whole name, what such a file is); the first that fits is named
SIGNATURES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (r"(?:encoder\.)?feature_proj.*", r"projection_out\.weight"),
        "SONAR's ASL encoder (dm_70h_ub_sonar_encoder.pth), which reads the features that a SignHiera computes; the "
        "SignHiera of that release is dm_70h_ub_signhiera.pth",
    ),
    (
        (r".*feature_proj.*",),
        "a translation model of SSVP-SLT (T5 or BART behind a feature projection), which reads features "
        "(slt-import-checkpoint ssvp-translation takes it)",
    ),
    ((r"decoder_frontend\..+", r"decoder\.layers\..+"), "SONAR's text decoder (sonar_text_decoder.pt)"),
    ((r"encoder_frontend\..+", r"encoder\.layers\..+"), "SONAR's text encoder (sonar_text_encoder.pt)"),
    ((r"(?:encoder|decoder)\.block\.0\.layer\.0\.SelfAttention\..+",), "a T5 text model of Hugging Face"),
    (
        (r"encoder\.adapter\..+", r"decoder\..+"),
        "a sign_to_text checkpoint without a SignHiera (trained on poses or on ready features)",
    ),
    ((r"encoder\.feat_proj\..+",), "a translation model of Tarres et al. (2023), which reads I3D features"),
    (
        (r"(?:model\.)?(?:encoder|decoder)\.layers\.0\.self_attn\..+",),
        "a text model of the BART family (fairseq or Hugging Face)",
    ),
    ((r"layers\.0\.(?:self_attn|encoder_attn)\..+",), "a bare Transformer encoder or decoder of fairseq"),
    ((r"(?:hiera\.)?encoder\.stages\.0\.layers\.0\..+",), "an image Hiera under Hugging Face's names"),
    ((r"visual\.(?:conv1|transformer\.resblocks)\..+",), "an image CLIP of OpenAI or open_clip"),
    ((r"(?:encoder\.)?blocks\.0\.attn\..+", r"(?:encoder\.)?(?:cls_token|pos_embed|patch_embed\..+)"), "a ViT"),
    ((r"(?:.+\.)?Conv3d_1a_7x7\..+",), "an I3D network"),
    ((r"(?:.+\.)?layer1\.0\.conv1\.weight",), "a ResNet"),
)


@dataclass(frozen=True)
class Geometry:
    """The sizes of a video Hiera that the shapes of its tensors show. ``steps`` are time steps of position table."""

    embed_dim: int
    stages: tuple[int, ...]
    steps: int
    positions: int
    patch: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"width {self.embed_dim}, {'+'.join(map(str, self.stages))} blocks, {self.steps} time steps of "
            f"{self.positions} positions, patches of {'x'.join(map(str, self.patch))}"
        )


def geometry(state: Mapping[str, Tensor]) -> Geometry | None:
    """The sizes of the video Hiera with this state dict; None where it is none with separable positions."""
    spatial, temporal = state.get("pos_embed_spatial"), state.get("pos_embed_temporal")
    patch = state.get("patch_embed.proj.weight")
    if any(t is None for t in (spatial, temporal, patch)) or (spatial.ndim, temporal.ndim, patch.ndim) != (3, 3, 5):
        return None
    numbers = sorted({int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))})
    stages: list[int] = []
    for i in numbers:
        if not stages or f"blocks.{i}.proj.weight" in state:  # a block that widens the channels opens a stage
            stages.append(0)
        stages[-1] += 1
    return Geometry(spatial.shape[2], tuple(stages), temporal.shape[1], spatial.shape[1], tuple(patch.shape[2:]))


def find_state(content: Mapping) -> dict[str, Tensor]:
    """The tensors of a checkpoint: of the first container that has some, or of the top level."""
    for candidate in (*(content.get(name) for name in CONTAINERS), content):
        if isinstance(candidate, Mapping):
            state = {k: v for k, v in candidate.items() if isinstance(k, str) and isinstance(v, Tensor)}
            if state:
                return state
    return {}


def looks_like(content: Mapping) -> str:
    """In words, what a checkpoint's content is: 'it looks like ...'."""
    state = find_state(content)
    if not state:
        if {"state", "param_groups"} <= set(content) or any("optimizer" in str(key) for key in content):
            return f"it looks like the state of an optimizer without a model (keys: {listing(list(content))})"
        return f"it holds no named tensors (keys: {listing(list(content))})"
    prefix = _common_prefix(state)
    if prefix:
        inner = looks_like({name.removeprefix(prefix): tensor for name, tensor in state.items()})
        return f"all its names begin with {prefix!r}; without that, {inner}"
    patch = state.get("patch_embed.proj.weight")
    if patch is not None and patch.ndim == 4 and "blocks.0.attn.qkv.weight" in state and "cls_token" not in state:
        return f"it looks like an image Hiera or ViT (patch convolution {tuple(patch.shape)} in two dimensions)"
    sizes = geometry(state)
    if sizes is not None:
        return f"it looks like a video Hiera of {sizes}"
    for patterns, what in SIGNATURES:
        if all(_any_matches(pattern, state) for pattern in patterns):
            return f"it looks like {what}"
    return f"its names are unknown: {listing(list(state), 5)}"


def _any_matches(pattern: str, names: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


def _common_prefix(names: Iterable[str]) -> str:
    """The module name that wrappers (DistributedDataParallel, torch.compile) put before all names."""
    return next((p for p in ("module.", "_orig_mod.") if all(name.startswith(p) for name in names)), "")
