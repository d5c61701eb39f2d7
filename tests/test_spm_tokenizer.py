import pytest
from codec_helpers import REAL, needs_real, shared_codec, train_spm

from slt_plugin.text.codec import CodecError, build_codec
from slt_plugin.text.languages import MBART_50, MBART_CC25


def test_sentencepiece_targets_never_hold_the_ctc_blank():
    for name in ("char", "bytes", "mbart"):
        assert shared_codec(name).dictionary.bos() == 0
        assert 0 not in shared_codec(name).encode("<s> the cat </s> <s>")[:-1]


def test_sentencepiece_layout_and_ids(tmp_path):
    processor = train_spm(tmp_path / "m.model", model_type="bpe", vocab_size=80)  # unk 0, <s> 1, </s> 2
    codec = build_codec("sentencepiece", str(tmp_path / "m.model"))
    pieces = [processor.id_to_piece(index) for index in range(3, len(processor))]
    assert codec.dictionary.symbols == ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    assert codec.kind == "sentencepiece"
    ids = processor.encode("hello cat 漢")
    assert codec.encode("hello cat 漢").tolist() == [3 if index == 0 else index + 1 for index in ids] + [2]
    assert codec.decode(codec.encode("hello 漢 cat")) == "hello ⁇ cat"
    assert not codec.languages
    assert codec.language_id("en_XX") is None


def test_sentencepiece_pieces_with_spaces_or_the_names_of_specials(tmp_path):
    train_spm(tmp_path / "m.model", vocab_size=70, user_defined_symbols=["<pad>", "a b", "a\u3000b", "new\nline"])
    codec = build_codec("sentencepiece", tmp_path / "m.model")
    assert codec.dictionary.symbols[4:8] == ["<pad>#4", "a<U+0020>b", "a<U+3000>b", "new<U+000A>line"]
    ids = codec.encode("<pad> new\nline")
    assert codec.dictionary.pad() not in ids
    assert codec.decode_symbols(codec.dictionary.string(ids)) == codec.decode(ids) == "<pad> new line"


def test_fairseq_dictionary_orders_the_symbols():
    codec = shared_codec("mbart")
    symbols = codec.dictionary.symbols
    lines = codec.state_dict()["files"]["dict.txt"].decode().splitlines()
    assert symbols[4 : 4 + len(lines)] == [line.rsplit(" ", 1)[0] for line in lines]
    assert symbols[4 + len(lines) :] == [f"[{code}]" for code in MBART_CC25] + ["<mask>"]
    assert codec.language_id("de_DE") == codec.language_id("[de_DE]") == symbols.index("[de_DE]")
    assert codec.decode([codec.language_id("de_DE"), *codec.encode("the cat"), len(symbols) - 1]) == "the cat"


def test_dictionary_that_already_ends_in_the_languages(tmp_path):
    processor = train_spm(tmp_path / "m.model", vocab_size=60)
    pieces = [processor.id_to_piece(index) for index in range(3, len(processor))]
    tail = ["[en_XX]", "[de_DE]", "<mask>"]
    (tmp_path / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in [*pieces, *tail]))
    options = {"dictionary_path": tmp_path / "dict.txt"}
    codec = build_codec("sentencepiece", tmp_path / "m.model", languages=("en_XX", "de_DE"), **options)
    bare = build_codec("sentencepiece", tmp_path / "m.model", **options)
    assert codec.dictionary.symbols[-3:] == tail
    assert codec.dictionary.symbols == bare.dictionary.symbols
    assert bare.language_id("de_DE") == len(bare.dictionary) - 2
    assert bare.decode([len(bare.dictionary) - 1, len(bare.dictionary) - 2]) == ""
    with pytest.raises(CodecError, match="does not end in"):
        build_codec("sentencepiece", tmp_path / "m.model", languages=("de_DE", "en_XX"), **options)


def test_characters_that_only_the_dictionary_knows(tmp_path, caplog):
    """fairseq-preprocess puts characters unknown to the model into the dictionary; and leaves unused pieces out."""
    processor = train_spm(tmp_path / "m.model", vocab_size=60)
    pieces = [processor.id_to_piece(index) for index in range(3, len(processor) - 1)]
    (tmp_path / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in [*pieces, "漢", "madeupword0000"]))
    codec = build_codec("sentencepiece", tmp_path / "m.model", dictionary_path=tmp_path / "dict.txt")
    assert codec.decode(codec.encode("a 漢")) == "a 漢"
    assert codec.decode([codec.dictionary.index("madeupword0000")]) == "⁇"
    assert f"1 of {len(pieces) + 1} pieces" in caplog.text


@pytest.mark.parametrize("languages", [("english",), ("en_XX", "[en_XX]")])
def test_wrong_languages_are_refused(tmp_path, languages):
    train_spm(tmp_path / "m.model", vocab_size=60)
    with pytest.raises(CodecError, match="different codes like en_XX"):
        build_codec("sentencepiece", tmp_path / "m.model", languages=languages)


def test_mbart_languages_are_those_of_transformers():
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES as CC25
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as ML50

    assert list(MBART_CC25) == list(CC25)
    assert list(MBART_50) == list(ML50)


def test_dictionary_of_another_model(tmp_path):
    train_spm(tmp_path / "m.model", vocab_size=60)
    (tmp_path / "dict.txt").write_text("".join(f"word{i} 1\n" for i in range(60)))
    with pytest.raises(CodecError, match="do not belong together"):
        build_codec("sentencepiece", tmp_path / "m.model", dictionary_path=tmp_path / "dict.txt")


@needs_real
def test_real_mbart_has_one_layout_in_fairseq_and_transformers():
    folder = REAL / "gfslt_mbart_trimmed"
    ours = build_codec("sentencepiece", folder / "sentencepiece.bpe.model", languages=MBART_CC25)
    theirs = build_codec("hf", folder)
    assert len(ours.dictionary) == len(theirs.dictionary) == 2454
    assert ours.dictionary.symbols == [
        f"[{symbol}]" if symbol in MBART_CC25 else symbol for symbol in theirs.dictionary.symbols
    ]
    text = "im norden regnet es morgen und Xq"
    assert ours.encode(text).equal(theirs.encode(text))
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)) == "im norden regnet es morgen und ⁇"
    german = theirs.language_id("de_DE")
    assert german == ours.language_id("de_DE") == 2430
    assert theirs.decode([german, *theirs.encode("im norden"), german]) == "im norden"
