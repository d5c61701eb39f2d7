"""Hugging Face's encoder and decoder behind fairseq's interfaces; its key-value cache is fairseq's incremental state.

Neither holds the model as a submodule of its own: it is registered once, in the model around them, so that a
state dict names every weight as Hugging Face does, after ``hf.``.
"""

from __future__ import annotations

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn

CACHE = "hf_cache"  # key in fairseq's incremental state


class HFTextEncoder(nn.Module):
    """The encoder fed with embeddings; what `models.encoders.SignEncoder` calls a text encoder."""

    def __init__(self, hf: nn.Module, max_steps: int):
        super().__init__()
        self.__dict__["hf"] = hf  # not registered here
        self.max_steps = max_steps

    def forward(self, embeddings: Tensor, padding_mask: Tensor) -> dict[str, list[Tensor]]:
        """embeddings (B, T, D), padding_mask (B, T) True = padding -> encoder_out with T x B x D and B x T."""
        keep = (~padding_mask).long()  # Hugging Face masks count the other way round
        states = self.hf.get_encoder()(inputs_embeds=embeddings, attention_mask=keep).last_hidden_state
        return {"encoder_out": [states.transpose(0, 1)], "encoder_padding_mask": [padding_mask]}

    def reorder_encoder_out(self, encoder_out: dict[str, list[Tensor]], new_order: Tensor) -> dict[str, list[Tensor]]:
        return {
            "encoder_out": [x.index_select(1, new_order) for x in encoder_out["encoder_out"]],
            "encoder_padding_mask": [x.index_select(0, new_order) for x in encoder_out["encoder_padding_mask"]],
        }

    def max_positions(self) -> int:
        return self.max_steps


class HFDecoder(FairseqIncrementalDecoder):
    """The decoder with its output projection, as the model's own ``forward`` joins them.

    Args:
        dictionary: index = the tokenizer's id. The model's tables may have more rows than it has symbols (T5: 32128 for
            32100): logits are the model's, and their probabilities are cut to the dictionary after the softmax, so
            that they are the model's own.
    """

    def __init__(self, hf: nn.Module, dictionary: Dictionary, max_tokens: int):
        super().__init__(dictionary)
        self.__dict__["hf"] = hf  # not registered here
        self.max_tokens = max_tokens

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]],
        incremental_state: dict | None = None,
    ) -> tuple[Tensor, dict]:
        """prev_output_tokens (B, U) -> logits (B, U, rows of the model's table) and fairseq's extra dict.

        Args:
            incremental_state: the logits are then those of the tokens that it has not seen yet, the last mostly.
        """
        from transformers.modeling_outputs import BaseModelOutput

        cache, tokens = None, prev_output_tokens
        if incremental_state is not None:
            if CACHE not in incremental_state:
                incremental_state[CACHE] = self._empty_cache()
            cache = incremental_state[CACHE]
            tokens = tokens[:, cache.get_seq_length() :]
        output = self.hf(
            decoder_input_ids=tokens,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_out["encoder_out"][0].transpose(0, 1)),
            attention_mask=(~encoder_out["encoder_padding_mask"][0]).long(),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.logits, {"attn": None}

    def _empty_cache(self):
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        return EncoderDecoderCache(DynamicCache(config=self.hf.get_decoder().config), DynamicCache())

    def reorder_incremental_state_scripting(self, incremental_state: dict, new_order: Tensor) -> None:
        """Beams that go on: new_order (B',) are rows of the last step; B' is smaller where sentences ended."""
        if CACHE in incremental_state:
            incremental_state[CACHE].reorder_cache(new_order)

    def get_normalized_probs_scriptable(self, net_output, log_probs: bool, sample=None) -> Tensor:
        """(B, U, symbols of the dictionary) float32; of all rows of the model's table they would sum to 1."""
        logits = net_output[0].float()
        normalised = torch.log_softmax(logits, dim=-1) if log_probs else torch.softmax(logits, dim=-1)
        return normalised[..., : len(self.dictionary)]

    def max_positions(self) -> int:
        return self.max_tokens
