"""Tiny files with the names and layouts of SONAR's release, and a vocabulary of its form."""

import re
from pathlib import Path

import torch
from codec_helpers import train_spm
from hiera_files import WIDTH, dailymoth, tiny_hiera
from transformers import T5Config, T5Model

from slt_plugin.checkpoints.sonar_text import SonarTextEncoder, SonarTextSize, build_text_decoder
from slt_plugin.text.codec import TextCodec, build_codec

DIM, FEATURES, T5_VOCABULARY = 64, WIDTH, 40
TEXT_SIZE = SonarTextSize(layers=2, embed_dim=DIM, ffn_dim=96, heads=1)
SPM = "sentencepiece.source.256000.model"
# our name of a layer's part -> fairseq2's; written by hand, not taken from the tables that are tested
FAIRSEQ2 = {
    "encoder_attn.out_proj": "encoder_decoder_attn.output_proj",
    "encoder_attn_layer_norm": "encoder_decoder_attn_layer_norm",
    "encoder_attn": "encoder_decoder_attn",
    "self_attn.out_proj": "self_attn.output_proj",
    "fc1": "ffn.inner_proj",
    "fc2": "ffn.output_proj",
    "final_layer_norm": "ffn_layer_norm",
}


def sonar_codec(folder: Path) -> TextCodec:
    """SONAR's kind of vocabulary over a small SentencePiece model, which is written into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / SPM).is_file():
        train_spm(folder / SPM, vocab_size=60)
    return build_codec("sonar", folder / SPM)


def t5_model() -> T5Model:
    """A T5 v1.1 of Hugging Face with three token tables of their own: the oracle of our encoder."""
    config = T5Config(
        vocab_size=T5_VOCABULARY,
        d_model=DIM,
        d_kv=16,
        d_ff=96,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=3,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    config.tie_word_embeddings = False
    torch.manual_seed(3)
    model = T5Model(config).eval()
    for table in (model.shared, model.encoder.embed_tokens, model.decoder.embed_tokens):
        table.weight = torch.nn.Parameter(torch.randn(T5_VOCABULARY, DIM))
    return model


def student_state(model: T5Model, *, old_names: bool = False) -> dict[str, torch.Tensor]:
    """The state dict of the released encoder, around the weights of ``model``."""
    torch.manual_seed(4)
    projection = "encoder.feature_proj" if old_names else "encoder.feature_projection.feature_proj"
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state[f"{projection}.weight"] = torch.randn(DIM, FEATURES) / 8
    state[f"{projection}.bias"] = torch.randn(DIM) / 8
    state[f"{projection}_scale"] = torch.rand(DIM) + 0.5
    state["projection_out.weight"] = torch.randn(DIM, DIM) / 8
    return state


def fairseq2_name(name: str, part: str) -> str:
    """``layers.0.fc1.weight`` -> ``decoder.layers.0.ffn.inner_proj.weight``."""
    if name == "embed_tokens.weight":
        return f"{part}_frontend.embed.weight"
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        return name if part == "encoder" else f"{part}.{name}"  # the last layer norm
    inner = match[2]
    for ours, theirs in FAIRSEQ2.items():
        if inner == ours or inner.startswith(f"{ours}."):
            inner = theirs + inner.removeprefix(ours)
            break
    return f"{part}.layers.{match[1]}.{inner}.{match[3]}"


def as_fairseq2(module: torch.nn.Module, part: str) -> dict:
    """A checkpoint in fairseq2's layout: special rows in the order PAD UNK BOS EOS, a final projection."""
    skipped = ("version", "output_projection.weight")
    state = {fairseq2_name(n, part): t.clone() for n, t in module.state_dict().items() if n not in skipped}
    table = state[f"{part}_frontend.embed.weight"]
    table[:4] = table[[1, 3, 0, 2]]
    if part == "decoder":
        state["final_proj.weight"] = table
    return {"model": state}


def as_fairseq1(module: torch.nn.Module) -> dict:
    """A checkpoint of a bare module, as fairseq 1 saved it: without the number of the version."""
    state = {name: tensor.clone() for name, tensor in module.state_dict().items() if name != "version"}
    return {"state_dict": state | {"embed_positions._float_tensor": torch.zeros(1)}}


def text_decoder(codec: TextCodec):
    torch.manual_seed(5)
    return build_text_decoder(TEXT_SIZE, codec.dictionary).eval()


def text_encoder(codec: TextCodec) -> SonarTextEncoder:
    torch.manual_seed(6)
    return SonarTextEncoder(TEXT_SIZE, codec.dictionary).eval()


def make_fake_release(folder: Path) -> Path:
    """The five files of the release under their own names, tiny."""
    codec = sonar_codec(folder)
    torch.save(dailymoth(tiny_hiera()), folder / "dm_70h_ub_signhiera.pth")
    torch.save({"student": student_state(t5_model())}, folder / "dm_70h_ub_sonar_encoder.pth")
    torch.save(as_fairseq2(text_decoder(codec), "decoder"), folder / "sonar_text_decoder.pt")
    torch.save(as_fairseq2(text_encoder(codec).transformer, "encoder"), folder / "sonar_text_encoder.pt")
    return folder
