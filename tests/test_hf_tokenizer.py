import shutil

import pytest
import torch
from codec_helpers import REAL, TEXTS, configure, needs_real, shared_codec, train_spm
from tokenizers import ByteLevelBPETokenizer

from slt_plugin.text.codec import CodecError, build_codec


@pytest.mark.parametrize("name", ["bart", "t5", "bert", "byt5"])
def test_hf_index_is_the_tokenizer_id(name, tmp_path):
    from transformers import AutoTokenizer

    codec = shared_codec(name)
    for file, content in codec.state_dict()["files"].items():
        (tmp_path / file).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "the cat sat, on it!"
    assert codec.encode(text).tolist() == tokenizer(text)["input_ids"]
    assert len(codec.dictionary) == len(tokenizer)
    assert codec.dictionary.pad() == tokenizer.pad_token_id
    assert codec.dictionary.unk() == tokenizer.unk_token_id


def test_hf_special_ids():
    def ids(name):
        dictionary = shared_codec(name).dictionary
        return dictionary.bos(), dictionary.pad(), dictionary.eos(), dictionary.unk()

    assert ids("bart") == (0, 1, 2, 3)
    assert ids("t5") == (0, 0, 1, 2)  # no <s>: the decoder starts with padding
    assert ids("bert") == (2, 0, 3, 1)  # [CLS] and [SEP]


def test_hf_language_tokens():
    codec = shared_codec("m2m100")
    english = codec.language_id("en")
    assert codec.languages
    assert english == codec.language_id("__en__")
    assert english < len(codec.dictionary)
    assert codec.decode([english, *codec.encode("the cat"), english]) == "the cat"


def test_hf_ids_without_a_token(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "the": 5, "cat": 9}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **specials).save_pretrained(tmp_path)
    codec = build_codec("hf", tmp_path)
    holes = [f"<hole:{index}>" for index in (3, 4, 6, 7, 8)]
    assert codec.dictionary.symbols == ["<pad>", "</s>", "<unk>", *holes[:2], "the", *holes[2:], "cat"]
    assert codec.encode("the cat").tolist() == [5, 9, 1]
    assert codec.decode([4, 5, 9, 1]) == codec.decode_symbols(codec.dictionary.string([4, 5, 9, 1])) == "⁇ the cat"


def test_hf_spaces_before_punctuation_stay():
    text = "it is n't the cat , world !"
    for name in ("bart", "byt5", "t5"):
        codec = shared_codec(name)
        known = text.replace("'", "") if name == "t5" else text
        assert codec.decode(codec.encode(known)) == known, name


def test_hf_byte_tokens_that_are_white_space():
    codec = shared_codec("byt5")
    assert codec.dictionary[ord(" ") + 3] == "<U+0020>"
    assert codec.decode([ord("a") + 3, ord("\n") + 3, ord("\t") + 3, ord("b") + 3]) == "a b"


def test_hf_mask_and_extra_ids_decode_to_nothing():
    for name in ("bart", "t5"):
        codec = shared_codec(name)
        last = len(codec.dictionary) - 1
        assert codec.decode([last, *codec.encode("the cat"), last]) == "the cat"


def test_hf_text_that_spells_a_special_token_is_an_error():
    for name in ("bart", "t5"):
        with pytest.raises(CodecError, match=r"spells special tokens.*</s>"):
            shared_codec(name).encode("the </s> cat")


def test_hf_without_unknown_or_padding_token(tmp_path):
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=300, show_progress=False, special_tokens=["<end>", "<fill>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<end>")
    tokenizer.save_pretrained(tmp_path / "no_pad")
    with pytest.raises(CodecError, match="has no pad_token"):
        build_codec("hf", tmp_path / "no_pad")
    tokenizer.pad_token = "<fill>"
    tokenizer.save_pretrained(tmp_path / "no_unk")
    codec = build_codec("hf", tmp_path / "no_unk")
    assert codec.dictionary.unk() == codec.dictionary.pad() == codec.dictionary.bos() == 1
    ids = codec.encode("the cat 漢")
    assert codec.decode([1, *ids, len(codec.dictionary) + 1]) == codec.decode(ids) == "the cat 漢"
    assert codec.decode_symbols(codec.dictionary.string(torch.tensor([1, *ids]))) == "the cat 漢"


def test_hf_folder_that_does_not_load(tmp_path):
    with pytest.raises(CodecError, match="no tokenizer files"):
        build_codec("hf", tmp_path)
    train_spm(tmp_path / "spiece.model", vocab_size=60)
    with pytest.raises(CodecError, match=r"(?s)spiece\.model.*tokenizer_class"):
        build_codec("hf", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    configure(tmp_path, "PreTrainedTokenizerFast")
    with pytest.raises(CodecError, match="cannot load a tokenizer"):
        build_codec("hf", tmp_path)


@needs_real
def test_real_t5_gives_the_known_ids(tmp_path):
    shutil.copy(REAL / "t5/spiece.model", tmp_path)
    configure(tmp_path, "T5Tokenizer")
    codec = build_codec("hf", tmp_path)
    text = "Hello World!, how are you?"
    assert len(codec.dictionary) == 32100
    assert codec.encode(text).tolist() == [8774, 1150, 55, 6, 149, 33, 25, 58, 1]
    assert codec.decode(codec.encode(text)) == text
    assert codec.decode([0, 32099, 8774, 32120, 1]) == "Hello ⁇"  # the model's table has 32128 rows
    plain = build_codec("sentencepiece", REAL / "t5/spiece.model")
    assert plain.decode_symbols(plain.dictionary.string(plain.encode(text))) == text
