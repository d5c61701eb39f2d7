"""Public pretrained files that this project reads: where they are, under which licence, and which were never released.

Standard library only: the download script and the importer share it.
"""

import re
from dataclasses import dataclass

BASE_URL = "https://dl.fbaipublicfiles.com/"
NON_COMMERCIAL = "CC BY-NC 4.0"
SPM_FILE = "SONAR/sentencepiece.source.256000.model"


@dataclass(frozen=True)
class Release:
    """One pretrained model.

    files: paths under ``BASE_URL``; the first holds the weights.
    licence_source: where the licence is stated.
    """

    files: tuple[str, ...]
    content: str
    licence: str
    licence_source: str


_SSVP_SLT = "the licence of facebookresearch/ssvp_slt, whose examples/sonar/demo.sh downloads the file"
_SONAR = "the model card of facebook/SONAR on Hugging Face"
_HIERA = "LICENSE.models of facebookresearch/hiera"

# File lists: examples/sonar/demo.sh of facebookresearch/ssvp_slt, README.md of facebookresearch/SONAR and of
# facebookresearch/hiera. Nobody states sizes or checksums: the server tells the size, and the checksum is recorded.
RELEASES = {
    "sonar_signhiera": Release(
        ("SONAR/asl/dm_70h_ub_signhiera.pth",),
        "SignHiera base 128x224, pretrained on DailyMoth-70h: video -> features",
        NON_COMMERCIAL,
        _SSVP_SLT,
    ),
    "sonar_encoder": Release(
        ("SONAR/asl/dm_70h_ub_sonar_encoder.pth",),
        "SONAR's ASL encoder: SignHiera features -> sentence embedding",
        NON_COMMERCIAL,
        _SSVP_SLT,
    ),
    "sonar_decoder": Release(
        ("SONAR/sonar_text_decoder.pt", SPM_FILE),
        "SONAR's text decoder and its SentencePiece model: sentence embedding -> text in 202 languages",
        NON_COMMERCIAL,
        _SONAR,
    ),
    "sonar_text_encoder": Release(
        ("SONAR/sonar_text_encoder.pt", SPM_FILE),
        "SONAR's text encoder and its SentencePiece model: text -> sentence embedding, the teacher of the ASL encoder",
        NON_COMMERCIAL,
        _SONAR,
    ),
    "hiera_mae_k400": Release(
        ("hiera/mae_hiera_base_16x224.pth",),
        "Hiera base 16x224, masked autoencoder on Kinetics-400: the start of SSVP-SLT's pretraining",
        NON_COMMERCIAL,
        _HIERA,
    ),
    "hiera_k400": Release(
        ("hiera/hiera_base_16x224.pth",),
        "Hiera base 16x224, classifier of Kinetics-400",
        NON_COMMERCIAL,
        _HIERA,
    ),
}

NEVER_RELEASED = (
    "SSVP-SLT's base, large and CLIP weights for How2Sign and YouTube-ASL were never released (people ask for them in "
    "issues 11 and 12 of facebookresearch/ssvp_slt). Use sonar_signhiera, the same base encoder pretrained on "
    "DailyMoth-70h, or start a pretraining of your own from hiera_mae_k400"
)
# how people ask for these weights
_UNRELEASED = re.compile(r".*(?:how2sign|h2s|youtube|yt_?asl|ssvp).*|(?:mae_?)?(?:base|large)?_?(?:clip|flip)?")


def was_never_released(name: str) -> bool:
    """Whether ``name`` asks for one of the weights of the SSVP-SLT paper that nobody can download."""
    return name != "" and _UNRELEASED.fullmatch(name.lower()) is not None


def release_of(filename: str) -> tuple[str, Release] | None:
    """(name, release) of a released file of this name."""
    for name, release in RELEASES.items():
        if any(path.rsplit("/", 1)[-1] == filename for path in release.files):
            return name, release
    return None
