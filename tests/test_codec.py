import io
import pickle

import pytest
import torch
from codec_helpers import KINDS, TEXTS, shared_codec, train_spm
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel, FairseqIncrementalDecoder
from fairseq.sequence_generator import SequenceGenerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slt_plugin.text.codec import CODEC_KINDS, CodecError, build_codec, empty_codec
from slt_plugin.text.languages import MBART_50, NLLB_200, code_of_family

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=KINDS)
def codec(request):
    return shared_codec(request.param)


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


def test_prepend_bos_only_where_the_model_was_trained_so():
    assert [name for name in KINDS if shared_codec(name).prepend_bos] == ["gpt2", "bart", "bert"]


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
@given(text=st.text(alphabet="".join(sorted(set("".join(TEXTS)) - {"<"})), max_size=30))
def test_round_trip_of_known_characters(text):
    plain = " ".join(text.split())
    for name in ("char", "bytes", "mbart", "gpt2", "bart", "t5", "byt5", "m2m100"):
        codec = shared_codec(name)
        assert codec.decode(codec.encode(plain)) == plain, name
        assert codec.decode_symbols(codec.dictionary.string(codec.encode(plain))) == plain, name


# without "<": Hypothesis tries the strings that it finds in our sources, so "<s>" too, which the codec refuses
EVERYTHING = st.characters(codec="utf-8", categories=["L", "M", "N", "P", "S", "Zs"], exclude_characters="<")


@few
@given(text=st.text(alphabet=EVERYTHING, max_size=20))
def test_byte_level_vocabularies_round_trip_everything(text):
    for name in ("gpt2", "bart", "byt5"):
        codec = shared_codec(name)
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


def test_lowercase(tmp_path):
    train_spm(tmp_path / "m.model", model_type="char", vocab_size=100)
    codec = build_codec("sentencepiece", tmp_path / "m.model", lowercase=True)
    assert codec.decode(codec.encode("The CAT")) == "the cat"
    assert shared_codec("char").decode(shared_codec("char").encode("A XYZ")) == "A XYZ"
    restored = empty_codec()
    restored.load_state_dict(codec.state_dict())
    assert restored.lowercase is True


def test_unknown_language_lists_near_ones():
    with pytest.raises(CodecError, match=r"'en_UK'.*did you mean.*en_XX"):
        shared_codec("mbart").language_id("en_UK")
    with pytest.raises(CodecError, match="Choose from af, am"):
        shared_codec("m2m100").language_id("q")


def test_unknown_kind_and_missing_files(tmp_path):
    with pytest.raises(CodecError, match=rf"did you mean 'sentencepiece'\? Choose from {', '.join(CODEC_KINDS)}"):
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


def test_empty_codec_says_so():
    codec = empty_codec()
    assert codec.kind == ""
    assert len(codec.dictionary) == 4
    for use in (lambda: codec.encode("a"), lambda: codec.decode([1]), codec.state_dict, lambda: codec.prepend_bos):
        with pytest.raises(CodecError, match="no vocabulary yet"):
            use()
    assert pickle.loads(pickle.dumps(codec)).kind == ""  # noqa: S301


def test_bad_states_are_refused_and_change_nothing(tmp_path):
    codec = empty_codec()
    state = shared_codec("char").state_dict()
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
        codec.load_state_dict(shared_codec("bytes").state_dict())
    with pytest.raises(CodecError, match="lowercase=True"):
        codec.load_state_dict({**state, "lowercase": True})
    assert codec.state_dict() == state


def test_joined_symbols_are_refused():
    codec = shared_codec("char")
    joined = codec.dictionary.string(codec.encode("the cat"), "sentencepiece")
    with pytest.raises(CodecError, match="--post-process"):
        codec.decode_symbols(joined)


@pytest.mark.parametrize(
    ("language", "mbart", "nllb", "m2m"),
    [
        ("en", "en_XX", "eng_Latn", "en"),
        ("de", "de_DE", "deu_Latn", "de"),
        ("eng", None, "eng_Latn", None),
        ("zh", "zh_CN", None, "zh"),  # NLLB: in two scripts
        ("ar", "ar_AR", "arb_Arab", "ar"),
        ("en_UK", None, None, None),  # a region is not passed over
        ("eng_Latn", None, "eng_Latn", None),
        ("xx", None, None, None),
    ],
)
def test_what_families_call_a_language(language, mbart, nllb, m2m):
    assert code_of_family(language, MBART_50) == mbart
    assert code_of_family(language, NLLB_200) == nllb
    assert code_of_family(language, ("ar", "de", "en", "zh")) == m2m
