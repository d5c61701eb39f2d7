import pytest
from codec_helpers import shared_codec, write_gpt2

from slt_plugin.text.codec import CodecError, build_codec


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


def test_gpt2_half_characters_do_not_crash():
    codec = shared_codec("gpt2")
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
