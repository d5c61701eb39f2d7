"""Small vocabularies of every kind, made from a few sentences."""

import functools
import io
import json
import tempfile
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken, ByteLevelBPETokenizer

from slt_plugin.text.codec import TextCodec, build_codec
from slt_plugin.text.languages import MBART_CC25

REAL = Path(__file__).parents[2] / "shared/realdata/tokenizers"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real tokenizers in {REAL}")
TEXTS = [f"hello world, the cat number {i} sat on a mat" for i in range(40)]
TEXTS += ["Über den Wolken é", "zebra quiz", "A dog ran over it. Judge my vow, fix XYZ!"]
KINDS = ("char", "bytes", "mbart", "gpt2", "bart", "t5", "bert", "m2m100", "byt5")


def train_spm(path, **options):
    """The sizes are upper limits; every character of TEXTS gets a piece."""
    options.setdefault("character_coverage", 1.0)
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=writer, minloglevel=2, hard_vocab_limit=False, **options
    )
    path.write_bytes(writer.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=writer.getvalue())


def write_gpt2(folder, order=reversed):
    """GPT-2 files in fairseq's form: ids in another order, filler and <mask>-less dict.txt."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=320, show_progress=False)
    merges = Path(bpe.save_model(str(folder))[1])
    vocab = json.loads((folder / "vocab.json").read_text())
    vocab["<|endoftext|>"] = len(vocab)
    (folder / "encoder.json").write_text(json.dumps(vocab))
    merges.rename(folder / "vocab.bpe")
    (folder / "vocab.json").unlink()
    lines = [f"{index} 1\n" for index in order(range(len(vocab)))] + ["madeupword0000 0\n"]
    (folder / "dict.txt").write_text("".join(lines))
    return bpe


def write_bart(folder):
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=320, show_progress=False, special_tokens=specials)
    bpe.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    bpe.save_model(str(folder))
    configure(folder, "BartTokenizer")


def configure(folder, tokenizer_class, **more):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class, **more}))


def make(name, folder):
    if name == "char":
        train_spm(folder / "m.model", model_type="char", vocab_size=200)
        return build_codec("sentencepiece", folder / "m.model")
    if name == "bytes":
        train_spm(folder / "m.model", model_type="bpe", vocab_size=340, byte_fallback=True)
        return build_codec("sentencepiece", folder / "m.model")
    if name == "mbart":
        processor = train_spm(folder / "m.model", vocab_size=60)
        pieces = [processor.id_to_piece(index) for index in range(3, len(processor))]
        (folder / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in reversed(pieces)), encoding="utf-8")
        options = {"dictionary_path": folder / "dict.txt", "languages": MBART_CC25}
        return build_codec("sentencepiece", folder / "m.model", **options)
    if name == "gpt2":
        write_gpt2(folder)
        return build_codec("gpt2_bpe", folder)
    if name == "bart":
        write_bart(folder)
    elif name == "t5":
        train_spm(folder / "spiece.model", vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        configure(folder, "T5Tokenizer", extra_ids=4)
    elif name == "bert":
        letters = sorted({letter for text in TEXTS for letter in text.lower() if letter.isalnum() and letter.isascii()})
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "!", "cat", *letters]
        (folder / "vocab.txt").write_text("\n".join([*words, *(f"##{letter}" for letter in letters)]))
        configure(folder, "BertTokenizer")
    elif name == "m2m100":
        processor = train_spm(folder / "sentencepiece.bpe.model", vocab_size=60)
        pieces = [processor.id_to_piece(index) for index in range(3, len(processor))]
        vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{piece: index for index, piece in enumerate(pieces, 4)}}
        (folder / "vocab.json").write_text(json.dumps(vocab))
        configure(folder, "M2M100Tokenizer")
    elif name == "byt5":
        configure(folder, "ByT5Tokenizer")
    return build_codec("hf", folder)


@functools.cache
def shared_codec(name) -> TextCodec:
    """One codec a name for all tests, which must not change it."""
    with tempfile.TemporaryDirectory() as folder:
        return make(name, Path(folder))
