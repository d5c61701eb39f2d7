"""Tiny random seq2seq models of every family with tokenizers, in the layout that the hub has them in.

``tiny_model("t5", folder)`` writes config.json, model.safetensors and the tokenizer's files and returns the folder, as
a clone of the model's repository would look. The tokenizers know the letters of ``conftest.write_pose_corpus``.
"""

import json
from pathlib import Path

import torch
from codec_helpers import TEXTS, configure, train_spm
from safetensors.torch import save_file
from tokenizers import AddedToken, ByteLevelBPETokenizer

from slt_plugin.text.languages import MBART_50, MBART_CC25, NLLB_200

FAMILIES = ("t5", "t5_v1_1", "mt5", "byt5", "bart", "mbart_cc25", "mbart50", "pegasus", "m2m100", "nllb")
# a language that each multilingual family knows, and a second one
LANGUAGES = {
    "mbart_cc25": ("en_XX", "de_DE"),
    "mbart50": ("en_XX", "pl_PL"),
    "m2m100": ("en", "de"),
    "nllb": ("eng_Latn", "deu_Latn"),
}
UNTIED = ("t5_v1_1", "mt5", "byt5")  # the releases whose output projection has weights of its own
WIDTH, HEADS, FFN = 16, 2, 32
ENCODER_LAYERS, DECODER_LAYERS = 1, 2  # not equal: what takes one for the other shows
T5_LIKE = {
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": FFN,
    "num_heads": HEADS,
    "num_layers": ENCODER_LAYERS,
    "num_decoder_layers": DECODER_LAYERS,
}
BART_LIKE = {
    "d_model": WIDTH,
    "encoder_layers": ENCODER_LAYERS,
    "decoder_layers": DECODER_LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FFN,
    "decoder_ffn_dim": FFN,
}
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]


def tiny_model(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Writes a random model of the family (1+2 layers, width 16) with its tokenizer into ``folder``, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(family, folder)
    model = _model(family, _size(folder))
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        if "embed_tokens" in name or (name == "lm_head.weight" and family not in UNTIED):
            continue  # tied to the shared table: the hub's files hold it once
        if family == "pegasus" and "embed_positions" in name:
            continue  # sinusoids, which the hub's files leave out
        # wider than initialised: the logits of a random model shall differ from token to token
        noise = torch.randn(tensor.shape, generator=generator)
        state[name] = 1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.3 * noise
        if name == "final_logits_bias":
            state[name] = torch.zeros_like(tensor)
    if family in ("mbart_cc25", "mbart50"):
        del state["final_logits_bias"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [type(model).__name__]
    if family in UNTIED:  # as the releases say it
        config["tie_word_embeddings"] = False
        config.pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def write_tokenizer(family: str, folder: Path) -> None:
    """The tokenizer's files alone, under the names that the family's repositories have."""
    if family in ("t5", "t5_v1_1", "mt5"):
        train_spm(folder / "spiece.model", vocab_size=70, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        configure(folder, "T5Tokenizer", extra_ids=4)
    elif family == "byt5":
        configure(folder, "ByT5Tokenizer", extra_ids=4)
    elif family == "bart":
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(TEXTS, vocab_size=300, show_progress=False, special_tokens=SPECIALS)
        bpe.add_special_tokens([AddedToken("<mask>", lstrip=True)])
        bpe.save_model(str(folder))
        configure(folder, "BartTokenizer")
    elif family in ("mbart_cc25", "mbart50"):
        train_spm(folder / "sentencepiece.bpe.model", vocab_size=70)
        name, codes = ("MBartTokenizer", MBART_CC25) if family == "mbart_cc25" else ("MBart50Tokenizer", MBART_50)
        configure(folder, name, src_lang=None, tgt_lang=None, additional_special_tokens=list(codes))
    elif family == "pegasus":
        train_spm(folder / "spiece.model", vocab_size=70, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        configure(folder, "PegasusTokenizer")
    elif family == "m2m100":
        processor = train_spm(folder / "sentencepiece.bpe.model", vocab_size=70)
        pieces = [processor.id_to_piece(index) for index in range(3, len(processor))]
        vocab = {token: index for index, token in enumerate([*SPECIALS, *pieces])}
        (folder / "vocab.json").write_text(json.dumps(vocab))
        configure(folder, "M2M100Tokenizer", num_madeup_words=8)
    elif family == "nllb":
        train_spm(folder / "sentencepiece.bpe.model", vocab_size=70, model_type="bpe")
        configure(folder, "NllbTokenizer", additional_special_tokens=list(NLLB_200))
    else:
        raise ValueError(f"no such family: {family}; there are {FAMILIES}")


def _size(folder: Path) -> int:
    """Rows of the embedding table: more than the tokenizer has, rounded up as the releases do."""
    from slt_plugin.text.codec import build_codec

    return (len(build_codec("hf", folder).dictionary) // 16 + 1) * 16


def _model(family: str, vocab_size: int) -> torch.nn.Module:
    import transformers as hf

    if family in ("t5", "t5_v1_1", "byt5", "mt5"):
        v1_0 = family == "t5"
        config_class, model_class = (
            (hf.MT5Config, hf.MT5ForConditionalGeneration)
            if family == "mt5"
            else (hf.T5Config, hf.T5ForConditionalGeneration)
        )
        config = config_class(
            vocab_size=vocab_size,
            feed_forward_proj="relu" if v1_0 else "gated-gelu",
            decoder_start_token_id=0,
            tie_word_embeddings=family not in UNTIED,
            **T5_LIKE,
        )
        config.tie_word_embeddings = family not in UNTIED  # the constructor forces it to be true
        return model_class(config)
    sizes = {"vocab_size": vocab_size, "max_position_embeddings": 64, **BART_LIKE}
    if family == "bart":
        return hf.BartForConditionalGeneration(hf.BartConfig(decoder_start_token_id=2, forced_eos_token_id=2, **sizes))
    if family in ("mbart_cc25", "mbart50"):
        start = {"decoder_start_token_id": 2} if family == "mbart50" else {}
        return hf.MBartForConditionalGeneration(hf.MBartConfig(scale_embedding=True, **start, **sizes))
    if family == "pegasus":
        ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "forced_eos_token_id": 1}
        config = hf.PegasusConfig(scale_embedding=True, activation_function="relu", **ids, **sizes)
        return hf.PegasusForConditionalGeneration(config)
    config = hf.M2M100Config(scale_embedding=True, decoder_start_token_id=2, **sizes)
    return hf.M2M100ForConditionalGeneration(config)
