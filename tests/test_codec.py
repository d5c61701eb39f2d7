import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel, FairseqIncrementalDecoder
from fairseq.sequence_generator import SequenceGenerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, ByteLevelBPETokenizer

from slt_plugin.text.codec import CODEC_KINDS, CodecError, build_codec, empty_codec
from slt_plugin.text.languages import MBART_50, MBART_CC25

REAL = Path(__file__).parents[2] / "shared/realdata/tokenizers"
TEXTS = [f"hello world, the cat number {i} sat on a mat" for i in range(40)]
TEXTS += ["Über den Wolken é", "zebra quiz", "A dog ran over it. Judge my vow, fix XYZ!"]
KINDS = ("char", "bytes", "mbart", "gpt2", "bart", "t5", "bert", "m2m100", "byt5")
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    return {name: make(name, tmp_path_factory.mktemp(name)) for name in KINDS}


@pytest.fixture(params=KINDS)
def codec(request, codecs):
    return codecs[request.param]


# what holds for every kind


def test_encode_gives_int64_ids_that_end_in_eos_and_decode_back(codec):
    ids = codec.encode("the cat sat on a mat")
    assert ids.dtype == torch.long
    assert ids.dim() == 1
    assert ids[-1] == codec.dictionary.eos()
    assert (ids == codec.dictionary.eos()).sum() == 1
    assert (ids[0] == codec.dictionary.bos()) == codec.prepend_bos
    assert codec.dictionary.pad() not in ids
    assert codec.decode(ids) == "the cat sat on a mat"
    assert codec.decode(ids.tolist()) == "the cat sat on a mat"
    assert codec.encode("").tolist() == ([codec.dictionary.bos()] if codec.prepend_bos else []) + [
        codec.dictionary.eos()
    ]


def test_prepend_bos_only_where_the_model_was_trained_so(codecs):
    assert [name for name in KINDS if codecs[name].prepend_bos] == ["gpt2", "bart", "bert"]


def test_sentencepiece_targets_never_hold_the_ctc_blank(codecs):
    for name in ("char", "bytes", "mbart"):
        assert codecs[name].dictionary.bos() == 0
        assert 0 not in codecs[name].encode("<s> the cat </s> <s>")[:-1]


def test_dictionary_symbols_hold_no_space_and_are_unique(codec):
    dictionary = codec.dictionary
    assert len(dictionary) == len(dictionary.symbols) == len(dictionary.count) == len(dictionary.indices)
    assert all(symbol.split() == [symbol] for symbol in dictionary.symbols)
    for index in {dictionary.bos(), dictionary.pad(), dictionary.eos(), dictionary.unk()}:
        assert dictionary.index(dictionary[index]) == index
    assert dictionary.unk_word == dictionary[dictionary.unk()]
    assert len({dictionary.pad(), dictionary.eos()}) == 2


@few
@given(data=st.data())
def test_any_ids_decode_and_symbols_say_the_same(codec, data):
    size = len(codec.dictionary)
    ids = data.draw(st.lists(st.integers(0, size + 3), max_size=12))
    text = codec.decode(ids)
    assert "\n" not in text
    assert text == text.strip()
    strip = {codec.dictionary.eos()}
    tensor = torch.tensor(ids, dtype=torch.int32)
    for escape in (False, True):
        string = codec.dictionary.string(tensor, None, escape_unk=escape, extra_symbols_to_ignore=strip)
        assert codec.decode_symbols(string) == text


@few
@given(text=st.text(alphabet="".join(sorted(set("".join(TEXTS)))), max_size=30))
def test_round_trip_of_known_characters(codecs, text):
    plain = " ".join(text.split())
    for name in ("char", "bytes", "mbart", "gpt2", "bart", "t5", "byt5", "m2m100"):
        codec = codecs[name]
        assert codec.decode(codec.encode(plain)) == plain, name
        assert codec.decode_symbols(codec.dictionary.string(codec.encode(plain))) == plain, name


@few
@given(text=st.text(alphabet=st.characters(codec="utf-8", categories=["L", "M", "N", "P", "S", "Zs"]), max_size=20))
def test_byte_level_vocabularies_round_trip_everything(codecs, text):
    for name in ("gpt2", "bart", "byt5"):
        codec = codecs[name]
        assert codec.decode(codec.encode(text)) == text.strip(), name
        assert codec.decode_symbols(codec.dictionary.string(codec.encode(text))) == text.strip(), name


def test_specials_decode_to_nothing_and_unknown_ids_show(codec):
    dictionary = codec.dictionary
    words = codec.encode("the cat").tolist()
    middle = [dictionary.pad(), dictionary.eos(), dictionary.bos()]
    assert codec.decode([*middle, *words, *middle, *middle]) == "the cat"
    assert codec.decode(middle) == codec.decode([]) == codec.decode_symbols("") == ""
    assert codec.decode([*words, dictionary.unk()]) == "the cat ⁇"
    assert codec.decode([*words, len(dictionary) + 5]) == "the cat ⁇"
    assert codec.decode([-1]) == "⁇"
    assert codec.decode_symbols(dictionary.string([dictionary.unk()], escape_unk=True)) == "⁇"


def test_state_survives_weights_only_and_fills_the_dictionary_in_place(codec):
    buffer = io.BytesIO()
    torch.save({"task_state": codec.state_dict()}, buffer)
    buffer.seek(0)
    fresh = empty_codec()
    held = fresh.dictionary
    fresh.load_state_dict(torch.load(buffer, weights_only=True)["task_state"])
    assert fresh.dictionary is held
    assert held.symbols == codec.dictionary.symbols
    for special in ("bos", "pad", "eos", "unk"):
        assert getattr(held, special)() == getattr(codec.dictionary, special)()
    assert (fresh.kind, fresh.lowercase, fresh.prepend_bos) == (codec.kind, codec.lowercase, codec.prepend_bos)
    assert fresh.encode("the cat").equal(codec.encode("the cat"))
    assert fresh.state_dict() == codec.state_dict()


def test_pickles_for_loader_workers_with_its_dictionary(codec):
    copy, dictionary = pickle.loads(pickle.dumps((codec, codec.dictionary)))  # noqa: S301
    assert copy.dictionary is dictionary
    assert dictionary == codec.dictionary
    assert copy.encode("the cat").equal(codec.encode("the cat"))


class CountingDecoder(FairseqIncrementalDecoder):
    """Prefers a fixed pseudo-random symbol at every step, padding and specials included."""

    def forward(self, prev_output_tokens, encoder_out=None, incremental_state=None):
        shape = (*prev_output_tokens.shape, len(self.dictionary))
        steps = torch.arange(shape[1]).view(1, -1, 1)
        scores = torch.sin((torch.arange(shape[2]) + 1.0) * (steps + 1) * 12.9898)
        return scores.expand(shape) * 5, None

    def max_positions(self):
        return 50


class NoEncoder(FairseqEncoder):
    def forward(self, src_tokens, src_lengths):
        return src_tokens

    forward_torchscript = None

    def reorder_encoder_out(self, encoder_out, new_order):
        return encoder_out


def test_generator_output_decodes(codec):
    encoder = NoEncoder(codec.dictionary)
    encoder.forward_torchscript = lambda inputs: inputs["src_tokens"]
    model = FairseqEncoderDecoderModel(encoder, CountingDecoder(codec.dictionary))
    generator = SequenceGenerator([model], codec.dictionary, beam_size=3, max_len_b=6)
    source = torch.full((2, 4), 5)
    sample = {"net_input": {"src_tokens": source, "src_lengths": torch.tensor([4, 4])}}
    hypotheses = [beam["tokens"] for sentence in generator.generate([model], sample) for beam in sentence]
    assert hypotheses
    for tokens in hypotheses:
        strip = generator.symbols_to_strip_from_output
        string = codec.dictionary.string(tokens.int(), None, extra_symbols_to_ignore=strip)
        assert codec.decode_symbols(string) == codec.decode(tokens)


# SentencePiece


def test_sentencepiece_layout_and_ids(tmp_path):
    processor = train_spm(tmp_path / "m.model", model_type="bpe", vocab_size=80)  # unk 0, <s> 1, </s> 2
    codec = build_codec("sentencepiece", str(tmp_path / "m.model"))
    pieces = [processor.id_to_piece(index) for index in range(3, len(processor))]
    assert codec.dictionary.symbols == ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    assert codec.kind == "sentencepiece"
    ids = processor.encode("hello cat 漢")
    assert codec.encode("hello cat 漢").tolist() == [3 if index == 0 else index + 1 for index in ids] + [2]
    assert codec.decode(codec.encode("hello 漢 cat")) == "hello ⁇ cat"
    assert not codec.has_languages
    assert codec.language_id("en_XX") is None


def test_sentencepiece_pieces_with_spaces_or_the_names_of_specials(tmp_path):
    train_spm(tmp_path / "m.model", vocab_size=70, user_defined_symbols=["<pad>", "a b", "a\u3000b", "new\nline"])
    codec = build_codec("sentencepiece", tmp_path / "m.model")
    assert codec.dictionary.symbols[4:8] == ["<pad>#4", "a<U+0020>b", "a<U+3000>b", "new<U+000A>line"]
    ids = codec.encode("<pad> new\nline")
    assert codec.dictionary.pad() not in ids
    assert codec.decode_symbols(codec.dictionary.string(ids)) == codec.decode(ids) == "<pad> new line"


def test_lowercase(codecs, tmp_path):
    train_spm(tmp_path / "m.model", model_type="char", vocab_size=100)
    codec = build_codec("sentencepiece", tmp_path / "m.model", lowercase=True)
    assert codec.decode(codec.encode("The CAT")) == "the cat"
    assert codecs["char"].decode(codecs["char"].encode("A XYZ")) == "A XYZ"
    restored = empty_codec()
    restored.load_state_dict(codec.state_dict())
    assert restored.lowercase is True


def test_fairseq_dictionary_orders_the_symbols(codecs):
    codec = codecs["mbart"]
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


def test_unknown_language_lists_near_ones(codecs):
    with pytest.raises(CodecError, match=r"'en_UK'.*did you mean.*en_XX"):
        codecs["mbart"].language_id("en_UK")
    with pytest.raises(CodecError, match="It has af, am"):
        codecs["m2m100"].language_id("q")


def test_mbart_languages_are_those_of_transformers():
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES as CC25
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as ML50

    assert list(MBART_CC25) == list(CC25)
    assert list(MBART_50) == list(ML50)


# GPT-2 BPE


def test_gpt2_ids_are_those_of_the_tokenizers_library(tmp_path):
    bpe = write_gpt2(tmp_path)
    codec = build_codec("gpt2_bpe", tmp_path)
    text = "hello world, it's the 12th  Über-cat! 漢"
    ids = codec.encode(text).tolist()
    assert [int(codec.dictionary[index]) for index in ids[1:-1]] == bpe.encode(text).ids
    assert (ids[0], ids[-1]) == (0, 2)
    assert codec.dictionary.symbols[-2:] == ["madeupword0000", "<mask>"]
    end_of_text = codec.dictionary.index(str(len(bpe.get_vocab())))
    assert codec.decode([len(codec.dictionary) - 1, end_of_text, *ids]) == text


def test_gpt2_dictionary_with_its_own_mask_keeps_its_size(tmp_path):
    write_gpt2(tmp_path)
    before = len(build_codec("gpt2_bpe", tmp_path).dictionary)
    with (tmp_path / "dict.txt").open("a") as file:
        file.write("<mask> 0\n")
    assert len(build_codec("gpt2_bpe", tmp_path).dictionary) == before


def test_gpt2_half_characters_do_not_crash(codecs):
    codec = codecs["gpt2"]
    ids = codec.encode("漢").tolist()[1:-1]
    assert len(ids) == 3
    assert codec.decode([ids[0], codec.dictionary.unk(), *ids]) == "� ⁇ 漢"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dict.txt", "hello 1\n", "is not the dictionary of this GPT-2 vocabulary"),
        ("dict.txt", "1 1\n1 1\n", "not a fairseq dictionary"),
        ("dict.txt", "1\n", "not a fairseq dictionary"),
        ("encoder.json", "{", "cannot be read"),
        ("encoder.json", "[1]", "one JSON object"),
        ("encoder.json", '{"a": 0}', "do not belong together"),
        ("vocab.bpe", "#version: 0.2\na b c\n", "line 2"),
    ],
)
def test_gpt2_damaged_files(tmp_path, name, content, message):
    write_gpt2(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(CodecError, match=message):
        build_codec("gpt2_bpe", tmp_path)


# Hugging Face


@pytest.mark.parametrize("name", ["bart", "t5", "bert", "byt5"])
def test_hf_index_is_the_tokenizer_id(codecs, name, tmp_path):
    from transformers import AutoTokenizer

    codec = codecs[name]
    for file, content in codec.state_dict()["files"].items():
        (tmp_path / file).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "the cat sat, on it!"
    assert codec.encode(text).tolist() == tokenizer(text)["input_ids"]
    assert len(codec.dictionary) == len(tokenizer)
    assert codec.dictionary.pad() == tokenizer.pad_token_id
    assert codec.dictionary.unk() == tokenizer.unk_token_id


def test_hf_special_ids(codecs):
    def ids(name):
        dictionary = codecs[name].dictionary
        return dictionary.bos(), dictionary.pad(), dictionary.eos(), dictionary.unk()

    assert ids("bart") == (0, 1, 2, 3)
    assert ids("t5") == (0, 0, 1, 2)  # no <s>: the decoder starts with padding
    assert ids("bert") == (2, 0, 3, 1)  # [CLS] and [SEP]


def test_hf_language_tokens(codecs):
    codec = codecs["m2m100"]
    english = codec.language_id("en")
    assert codec.has_languages
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


def test_hf_byte_tokens_that_are_white_space(codecs):
    codec = codecs["byt5"]
    assert codec.dictionary[ord(" ") + 3] == "<U+0020>"
    assert codec.decode([ord("a") + 3, ord("\n") + 3, ord("\t") + 3, ord("b") + 3]) == "a b"


def test_hf_mask_and_extra_ids_decode_to_nothing(codecs):
    for name in ("bart", "t5"):
        codec = codecs[name]
        last = len(codec.dictionary) - 1
        assert codec.decode([last, *codec.encode("the cat"), last]) == "the cat"


def test_hf_text_that_spells_a_special_token_is_an_error(codecs):
    for name in ("bart", "t5"):
        with pytest.raises(CodecError, match=r"spells special tokens.*</s>"):
            codecs[name].encode("the </s> cat")


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


# errors of every kind


def test_unknown_kind_and_missing_files(tmp_path):
    with pytest.raises(CodecError, match=rf"did you mean sentencepiece\?.*{', '.join(CODEC_KINDS)}"):
        build_codec("sentencepeice", tmp_path)
    with pytest.raises(CodecError, match=r"nope\.model: No such file"):
        build_codec("sentencepiece", tmp_path / "nope.model")
    with pytest.raises(CodecError, match="is a directory"):
        build_codec("sentencepiece", tmp_path)
    with pytest.raises(CodecError, match=r"missing: encoder\.json, vocab\.bpe, dict\.txt"):
        build_codec("gpt2_bpe", tmp_path)
    with pytest.raises(CodecError, match="does not exist"):
        build_codec("hf", tmp_path / "nope")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CodecError, match="is a file"):
        build_codec("hf", tmp_path / "file")
    with pytest.raises(CodecError, match="file: not a SentencePiece model"):
        build_codec("sentencepiece", tmp_path / "file")
    (tmp_path / "file").write_bytes(b"not a model")
    with pytest.raises(CodecError, match="file: not a SentencePiece model"):
        build_codec("sentencepiece", tmp_path / "file")
    with pytest.raises(CodecError, match="belong to kind sentencepiece"):
        build_codec("hf", tmp_path, languages=("en_XX",))


def test_dictionary_of_another_model(tmp_path):
    train_spm(tmp_path / "m.model", vocab_size=60)
    (tmp_path / "dict.txt").write_text("".join(f"word{i} 1\n" for i in range(60)))
    with pytest.raises(CodecError, match="do not belong together"):
        build_codec("sentencepiece", tmp_path / "m.model", dictionary_path=tmp_path / "dict.txt")


def test_empty_codec_says_so():
    codec = empty_codec()
    assert codec.kind == ""
    assert len(codec.dictionary) == 4
    for use in (lambda: codec.encode("a"), lambda: codec.decode([1]), codec.state_dict, lambda: codec.prepend_bos):
        with pytest.raises(CodecError, match="no vocabulary yet"):
            use()
    assert pickle.loads(pickle.dumps(codec)).kind == ""  # noqa: S301


def test_bad_states_are_refused_and_change_nothing(codecs, tmp_path):
    codec = empty_codec()
    state = codecs["char"].state_dict()
    with pytest.raises(CodecError, match="no codec state"):
        codec.load_state_dict({})
    with pytest.raises(CodecError, match=r"lacks sentencepiece\.model"):
        codec.load_state_dict({**state, "files": {}})
    with pytest.raises(CodecError, match="outside its folder"):
        codec.load_state_dict({**state, "kind": "hf", "files": {"../evil": b""}})
    assert codec.kind == ""
    assert len(codec.dictionary) == 4
    codec.load_state_dict(state)
    codec.load_state_dict(state)
    with pytest.raises(CodecError, match=r"not the one of this run|one of this run"):
        codec.load_state_dict(codecs["bytes"].state_dict())
    with pytest.raises(CodecError, match="lowercase=True"):
        codec.load_state_dict({**state, "lowercase": True})
    assert codec.state_dict() == state


def test_joined_symbols_are_refused(codecs):
    codec = codecs["char"]
    joined = codec.dictionary.string(codec.encode("the cat"), "sentencepiece")
    with pytest.raises(CodecError, match="--post-process"):
        codec.decode_symbols(joined)


# real vocabularies


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real tokenizers in {REAL}")
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


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real tokenizers in {REAL}")
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
