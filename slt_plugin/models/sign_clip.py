"""Model ``sign_clip``: the masked autoencoder of ``sign_mae`` whose encoder also learns to match clips and their texts.

As FLIP (Li et al., 2023) and SSVP-SLT (Rust et al., 2024, section 3.2) do it. Trained by criterion ``mae_contrastive``.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Optional

import torch
from fairseq.models import BaseFairseqModel, register_model
from omegaconf import II, MISSING
from torch import Tensor, nn
from torch.nn.functional import normalize

from slt_plugin.models.errors import OptionError
from slt_plugin.models.parameter_groups import no_weight_decay
from slt_plugin.models.precision import Fp16Guard
from slt_plugin.models.sign_mae import SignMAEConfig, build_mae, check_state, prepare_clips, undecayed
from slt_plugin.models.text_tower import build_text_tower
from slt_plugin.modules.clip import Projection
from slt_plugin.modules.contrastive import LOG_SCALE_INIT, LOG_SCALE_MAX
from slt_plugin.modules.gradnorm import GradNorm
from slt_plugin.modules.hiera_mae import SignHieraMAE


@dataclass
class SignCLIPConfig(SignMAEConfig):
    """Options of ``sign_clip``."""

    text_tower: str = field(
        default=MISSING,
        metadata={
            "help": "local directory of a Hugging Face text encoder (T5, BERT, ...), or of a fairseq BART or mBART"
        },
    )
    text_max_tokens: int = field(default=128, metadata={"help": "texts are cut to so many tokens"})
    text_lang: Optional[str] = field(
        default=None, metadata={"help": "language of the texts for an mBART of fairseq, such as en_XX"}
    )
    freeze_text_tower: bool = field(
        default=False, metadata={"help": "keep the text encoder as it is; its projection is trained"}
    )
    embed_dim: int = field(default=768, metadata={"help": "width of both projections and of the embeddings"})
    no_mae: bool = II("criterion.no_mae")
    no_contrastive: bool = II("criterion.no_contrastive")


class SignCLIPOutput(NamedTuple):
    """What the model makes of B clips and their texts; None for what was not asked for.

    video, text: (B, D) float32, of length 1.
    mae_sum: the reconstruction's loss summed over its ``patches`` predicted patches, float32.
    """

    video: Tensor | None
    text: Tensor | None
    mae_sum: Tensor | None
    patches: int


@register_model("sign_clip", dataclass=SignCLIPConfig)
class SignCLIP(Fp16Guard, BaseFairseqModel):
    """SignHieraMAE, a text tower, a projection behind each, the scale of their cosines, and the weights of both losses.

    What criterion mae_contrastive leaves out (``no_mae``: the decoder; ``no_contrastive``: texts and projections) gets
    no gradient, so it is not trained: weight decay would shrink it otherwise.
    """

    overflows_in_fp16 = True  # T5 does, and the recipe is unstable in fp16

    def __init__(self, cfg: SignCLIPConfig, mae: SignHieraMAE, text_tower: nn.Module):
        super().__init__()
        self.cfg = cfg
        self.mae = mae
        self.text_tower = text_tower
        self.video_projection = Projection(mae.encoder.feature_dim, cfg.embed_dim)
        self.text_projection = Projection(text_tower.width, cfg.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(LOG_SCALE_INIT))  # of the logarithm
        self.gradnorm = GradNorm(2)  # reconstruction, contrastive
        no_weight_decay([*undecayed(self), self.logit_scale])
        self.text_is_trained = not (cfg.freeze_text_tower or cfg.no_contrastive)
        if cfg.no_mae:
            self.mae.requires_grad_(False)
            self.mae.encoder.requires_grad_(True)
        if cfg.no_contrastive:
            for part in (self.video_projection, self.text_projection, self.logit_scale):
                part.requires_grad_(False)
        if not self.text_is_trained:
            self.text_tower.requires_grad_(False)

    @classmethod
    def build_model(cls, cfg: SignCLIPConfig, task) -> "SignCLIP":
        """Builds the model; where a checkpoint is about to be loaded (``task.weights_follow``), without weights files.

        Raises:
            OptionError: options that contradict each other.
            SltError: see `build_text_tower` and `build_mae`.
        """
        if cfg.embed_dim < 1:
            raise OptionError(f"model.embed_dim={cfg.embed_dim}: give a width above 0, such as 768")
        tower = build_text_tower(
            cfg.text_tower,
            max_tokens=cfg.text_max_tokens,
            language=cfg.text_lang,
            weights=not task.weights_follow,
        )
        return cls(cfg, build_mae(cfg, task.cfg), tower)

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """See fairseq; raises CheckpointError where it is strict and the tensors are those of another model."""
        if strict:
            check_state(self, state_dict, "model.text_tower, model.embed_dim and model.variant")
        return super().load_state_dict(state_dict, strict, model_cfg, args)

    def train(self, mode: bool = True) -> "SignCLIP":
        super().train(mode)
        if not self.text_is_trained:
            self.text_tower.eval()
        return self

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        mask_seeds: Tensor,
        texts: list[str] | None = None,
        reconstruct: bool = True,
        embed: bool = True,
    ) -> SignCLIPOutput:
        """Masked clips and their texts -> embeddings and the loss of the reconstruction.

        Both come of one pass through the encoder. Embeddings are computed first, so that they and the dropout behind
        them are the same with and without the reconstruction.

        Args:
            src_tokens: (B, T, 3, S, S) uint8.
            src_lengths: (B,) frames of each clip.
            mask_seeds: (B,) int64, one for each clip's mask.
            texts: B texts; needed to ``embed``.
            reconstruct, embed: what is wanted.
        """
        text = self._embed(self.text_projection, self._texts(texts)) if embed else None
        video, padding = prepare_clips(src_tokens, src_lengths)
        options = {"padding": padding, "seeds": mask_seeds, "mask_ratio": self.cfg.mask_ratio}
        mae_sum, patches = None, 0
        if reconstruct:
            output = self.mae(video, **options)
            pooled, patches = output.pooled, len(output.pred)
            mae_sum = output.loss * patches
        else:
            pooled = self.mae.encode(video, **options)
        return SignCLIPOutput(self._embed(self.video_projection, pooled) if embed else None, text, mae_sum, patches)

    def _texts(self, texts: list[str]) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.text_is_trained):
            return self.text_tower(texts)

    def log_scale(self) -> float:
        """The logarithm of what cosines are multiplied by."""
        return min(float(self.logit_scale.detach()), LOG_SCALE_MAX)

    @staticmethod
    def _embed(projection: Projection, x: Tensor) -> Tensor:
        return normalize(projection(x).float(), dim=1)
