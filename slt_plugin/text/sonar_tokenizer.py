"""The vocabulary of SONAR, which is NLLB-200's: SentencePiece pieces, 202 languages, three tags of training data."""

from __future__ import annotations

from collections.abc import Sequence

from slt_plugin.text.errors import CodecError
from slt_plugin.text.languages import NLLB_200
from slt_plugin.text.spm_tokenizer import MODEL_FILE, load_processor
from slt_plugin.text.vocabulary import BOS, EOS, FAIRSEQ_SPECIALS, PAD, UNK, Vocabulary, printable_symbols

# where a training sentence came from (NLLB Team, 2022, section 6): no text of ours begins with them
DATA_TAGS = ("<MINED_DATA>", "<MMT_BT_DATA>", "<SMT_BT_DATA>")


class SonarTokenizer:
    """``<s> <pad> </s> <unk>``, the model's pieces without its own three, ``__xxx_Xxxx__`` of NLLB_200, the tags.

    A target is ``__language__ pieces </s>`` after the start token ``</s>``: the language is the first token to be
    written, which generation is given as a prefix.
    """

    prepend_bos = False

    def __init__(self, files: dict[str, bytes], languages: Sequence[str] = ()):
        del languages  # build_codec refuses them: they are NLLB's
        self._processor = load_processor(files[MODEL_FILE])
        specials = [i for i in range(len(self._processor)) if self._is_special(i)]
        if specials != [0, 1, 2]:
            raise CodecError(
                f"the SentencePiece model has its control and unknown pieces at {specials}, SONAR's "
                "(sentencepiece.source.256000.model) at [0, 1, 2]: give that file"
            )
        pieces = [self._processor.id_to_piece(index) for index in range(3, len(self._processor))]
        symbols = printable_symbols(
            [*FAIRSEQ_SPECIALS, *pieces, *(f"__{language}__" for language in NLLB_200), *DATA_TAGS]
        )
        codes = {code: index for index, code in enumerate(NLLB_200, len(FAIRSEQ_SPECIALS) + len(pieces))}
        tags = range(len(symbols) - len(DATA_TAGS), len(symbols))
        self.vocabulary = Vocabulary(
            symbols=symbols,
            bos=BOS,
            pad=PAD,
            eos=EOS,
            unk=UNK,
            nspecial=len(FAIRSEQ_SPECIALS),
            silent=frozenset({BOS, PAD, EOS, *codes.values(), *tags}),
            languages=codes,
            language_is_prefix=True,
        )

    def _is_special(self, index: int) -> bool:
        return self._processor.is_control(index) or self._processor.is_unknown(index)

    def encode(self, text: str) -> list[int]:
        # piece 3 is id 4: fairseq has four specials where the model has three
        return [UNK if self._processor.is_unknown(index) else index + 1 for index in self._processor.encode(text)]

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode([self._processor.unk_id() if index == UNK else index - 1 for index in ids])
