"""What ``slt-demo`` does with a file that a visitor drops on its page; the page itself is `demo_page`."""

import logging
import math
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from slt_plugin.cli.errors import one_line
from slt_plugin.cli.translator import Box, Hypothesis, Prepared, Request, TooLongError, Translator
from slt_plugin.common.errors import SltError

if TYPE_CHECKING:
    from slt_plugin.report.evidence import WordEvidence
    from slt_plugin.report.occlusion import Timeline

logger = logging.getLogger(__name__)

KEEP_SECONDS = 3600  # since its last use, a file whose visitor left without a word: a program, a browser that crashed
SWEEP_SECONDS = 60  # between two looks for such files
MAX_BEAM = 20
# Frames a second, of what a file or its visitor says: with any number, a file would be as short as one likes.
MIN_FPS, MAX_FPS = 1, 240
STEPS_PER_SECOND = 50  # of features, at most: their files tell no rate
FRAME_SIDE = 480  # pixels of the frame that the box is drawn on, at most
PICTURES = 16  # of the strip
EVIDENCE_VALUES = 50_000_000  # of a batch of copies of the file with parts hidden: 0.2 GB


class DemoError(SltError):
    """Something that a visitor can mend: the message stands on the page."""


@dataclass(frozen=True)
class Limits:
    """megabytes (1e6 bytes) of an uploaded file; seconds of signing that are translated at once.

    Features do not tell how long they are: they may have STEPS_PER_SECOND times ``seconds`` steps.
    """

    megabytes: float
    seconds: float

    @property
    def upload_bytes(self) -> int:
        return int(self.megabytes * 1e6)

    @property
    def steps(self) -> int:
        return int(self.seconds * STEPS_PER_SECOND)


@dataclass(frozen=True)
class Medium:
    """An uploaded file. seconds and fps are None where it does not say; size (width, height) for video alone.

    frames: of video and poses; steps: of features.
    """

    path: Path
    frames: int | None = None
    fps: float | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None

    @property
    def seconds(self) -> float | None:
        return None if self.frames is None or self.fps is None else self.frames / self.fps


@dataclass(frozen=True)
class Result:
    """A translation as the page shows it.

    frame: the middle frame as a data URL (video); box: the signer in it; box_source: how it was found.
    strip: see `report.strip.strip`; seconds: length of what was translated; words: None until they are looked for.
    note: why there is no strip, or no words.
    """

    hypotheses: list[Hypothesis]
    frame: str | None = None
    box: Box | None = None
    box_source: str = ""
    seconds: float | None = None
    strip: dict | None = None
    words: "list[WordEvidence] | None" = None
    note: str = ""


@dataclass(frozen=True)
class Update:
    """done: 0 to 1; doing: what is done next, "" at the end; result: as far as it is known."""

    done: float
    doing: str
    result: Result | None = None


class Service:
    """The models, and the file of each visitor.

    Args:
        translators: by the name that the page shows.
        uploads: where files arrive; none is taken from elsewhere.
        folder: where the files lie, until they are replaced, the visitor leaves, `sweep` finds them unused or the
            server stops.
        clock: seconds.
    """

    def __init__(
        self,
        translators: Mapping[str, Translator],
        limits: Limits,
        uploads: Path,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.translators, self.limits = dict(translators), limits
        self.uploads, self.folder = uploads.resolve(), folder
        self._clock = clock
        self._lock = threading.Lock()  # of the two below: the sweeper has a thread of its own, Gradio has many
        self._media: dict[str, Medium] = {}  # by session
        self._used: dict[str, float] = {}  # when, by session

    def translator(self, name: object) -> Translator:
        if not isinstance(name, str) or name not in self.translators:
            raise DemoError(f"no such checkpoint: choose one of {', '.join(self.translators)}")
        return self.translators[name]

    def accept(self, session: str, uploaded: Path, name: object) -> Medium:
        """Takes a file out of the upload folder as the one of this visitor; what cannot be read is deleted at once.

        Raises:
            DemoError: too large, or not what the checkpoint reads.
            SltError: unreadable.
        """
        self.forget(session)
        if not uploaded.resolve().is_relative_to(self.uploads) or not uploaded.is_file():
            raise DemoError("the upload is not there any more: drop the file again")
        own = self.folder / secrets.token_hex(8)
        own.mkdir()
        path = own / uploaded.name
        shutil.move(uploaded, path)
        try:
            if path.stat().st_size > self.limits.upload_bytes:
                raise DemoError(f"the file is larger than {self.limits.megabytes:g} MB, the limit of this page")
            translator = self.translator(name)
            if not translator.is_medium(path):
                raise DemoError(f"{path.name} is not what this checkpoint reads: give {translator.media_names()}")
            medium = _inspect(path, translator.kind)
        except SltError as error:
            shutil.rmtree(own, ignore_errors=True)
            raise DemoError(shown(error, path)) from error
        except BaseException:
            shutil.rmtree(own, ignore_errors=True)
            raise
        with self._lock:
            twice = self._media.pop(session, None)  # another upload of the same page was quicker
            self._media[session], self._used[session] = medium, self._clock()
        _delete(twice)
        return medium

    def forget(self, session: str) -> None:
        """Deletes the visitor's file."""
        with self._lock:
            medium = self._media.pop(session, None)
            self._used.pop(session, None)
        _delete(medium)

    def sweep(self) -> None:
        """Deletes the files that nobody has used for KEEP_SECONDS."""
        with self._lock:
            now = self._clock()
            old = [session for session, used in self._used.items() if now - used > KEEP_SECONDS]
            media = [self._media.pop(session) for session in old]
            for session in old:
                del self._used[session]
        for medium in media:
            _delete(medium)

    @contextmanager
    def sweeping(self, period: float = SWEEP_SECONDS) -> Iterator[None]:
        """Sweeps every ``period`` seconds, from a thread of its own that ends with the block."""
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(period):
                self.sweep()

        thread = threading.Thread(target=run, name="slt-demo-sweep", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def translate(self, session: str, name: object, request: Request, *, evidence: bool) -> Iterator[Update]:
        """The steps of a translation, the last one with the whole result.

        Args:
            evidence: look for the stretch that each word rests on.

        Raises:
            DemoError: see the message.
        """
        translator = self.translator(name)
        with self._lock:
            medium = self._media.get(session)
            if medium is not None:
                self._used[session] = self._clock()
        if medium is None:
            raise DemoError("there is no file yet, or it was deleted: drop one on the page")
        try:
            request = self._checked(translator, medium, request)
            yield from self._translate(translator, medium, request, evidence)
        except TooLongError as error:
            # seconds mean nothing in features
            part = "drop a part of it" if medium.steps is not None else "choose a part of it with start and end"
            raise DemoError(f"{shown(error, medium.path)}: {part}") from error
        except SltError as error:
            raise DemoError(shown(error, medium.path)) from error

    def _checked(self, translator: Translator, medium: Medium, request: Request) -> Request:
        if not (isinstance(request.beam, int) and 1 <= request.beam <= MAX_BEAM):
            raise DemoError(f"beam {request.beam}: a whole number from 1 to {MAX_BEAM} is needed")
        if not (isinstance(request.n_best, int) and 1 <= request.n_best <= request.beam):
            raise DemoError(f"{request.n_best} alternatives: a beam of {request.beam} has no more than {request.beam}")
        for label, value in (("start", request.start), ("end", request.end)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise DemoError(f"{label} {value:g}: a time in seconds is needed")
        if request.fps is not None and not MIN_FPS <= request.fps <= MAX_FPS:
            raise DemoError(f"frame rate {request.fps:g}: frames a second are needed, from {MIN_FPS} to {MAX_FPS}")
        if medium.steps is not None and medium.steps > self.limits.steps:
            raise DemoError(
                f"{medium.steps} steps are more than {self.limits.steps}, the limit of this page: features do not tell "
                f"their rate, so {STEPS_PER_SECOND} steps count as a second, of which {self.limits.seconds:g} are "
                "allowed; drop a part of it"
            )
        if translator.kind == "pose" and medium.fps is None:
            if request.fps is None:
                raise DemoError(f"{medium.path.name} does not say its frame rate: fill it in")
        else:
            request = replace(request, fps=None)  # the file's own
        start, total = request.start or 0.0, replace(medium, fps=medium.fps or request.fps).seconds
        if request.end is not None and request.end <= start:
            raise DemoError(f"end {request.end:g} is not after start {start:g}")
        if total is not None:
            if start >= total:
                raise DemoError(f"start {start:g} is after the end of the file, {total:.2f} s")
            seconds = min(total, math.inf if request.end is None else request.end) - start
            if seconds > self.limits.seconds:
                raise DemoError(
                    f"{seconds:.1f} s of signing are more than {self.limits.seconds:g} s, the limit of this page: "
                    "choose a part with start and end"
                )
        translator.check(request)
        return request

    def _translate(self, translator: Translator, medium: Medium, request: Request, evidence: bool) -> Iterator[Update]:
        looking = "Looking for the signer" if request.box == "auto" else "Opening the file"
        yield Update(0.05, looking)
        prepared = translator.prepare(medium.path, request)
        yield Update(0.15, "Reading the file")
        sample = translator.models.on_device(prepared.sample)
        yield Update(0.3, "Translating")
        result = Result(translator.decode(prepared, request)[0])
        row = prepared.rows[0]
        if medium.size is not None:
            box = prepared.box or _centre(medium.size)
            frame = _middle_frame(medium.path, request)
            result = replace(result, frame=frame, box=box, box_source=_how_found(prepared, request))
        yield Update(0.5, "Drawing the strip", result)
        from slt_plugin.report.evidence import FEWEST_STEPS
        from slt_plugin.report.strip import strip

        kind = translator.kind
        timeline = _timeline(translator, prepared, medium, sample)
        result = replace(
            result,
            # the visitor's own video on the visitor's own screen: nothing is blurred
            strip=strip(row, Path("/"), kind, frames=True, blur_faces=False, steps=PICTURES),
            seconds=None if timeline is None else timeline.seconds,
            note="features have no pictures, so there is no strip" if kind == "features" else "",
        )
        if evidence and timeline is not None and len(timeline.times.unique()) < FEWEST_STEPS:
            result = replace(result, note="the file is too short to look for what each word rests on")
        elif evidence and timeline is not None:
            yield Update(0.6, "Looking for what each word rests on", result)
            result = replace(result, words=_words(translator, sample, result.hypotheses[0], timeline))
        elif evidence:
            result = replace(result, note="the file does not tell its times, so words have no stretches")
        yield Update(1.0, "", result)


def _inspect(path: Path, kind: str) -> Medium:
    from slt_plugin.data import features, pose_files, video

    if kind == "features":
        return Medium(path, steps=features.feature_steps(features.choose_copy(path, None)))
    if kind == "video":
        info = video.probe(path)
        medium = Medium(path, info.num_frames, info.fps, (info.width, info.height))
    else:
        file = pose_files.open_pose(path)
        medium = Medium(path, file.shape[0], file.fps)
    if medium.fps is not None and medium.fps > MAX_FPS:
        raise DemoError(f"{path.name} says {medium.fps:g} frames a second: at most {MAX_FPS} are taken")
    return medium


def _delete(medium: Medium | None) -> None:
    if medium is not None:
        shutil.rmtree(medium.path.parent, ignore_errors=True)


def shown(error: BaseException, path: Path) -> str:
    """The message without the folder of this server that the file lies in."""
    message = one_line(error).replace(str(path.resolve()), path.name).replace(str(path), path.name)
    return re.sub(rf"^{re.escape(path.name)}: ", "", message)


def _how_found(prepared: Prepared, request: Request) -> str:
    if request.box == "auto":
        return "around the face" if prepared.face_found else "no face was found: the middle of the frame"
    return "as given" if request.box != "none" else "not looked for: the centre square of the frame"


def _centre(size: tuple[int, int]) -> Box:
    """The centre square of the short side, which a model sees of a frame without a box."""
    width, height = size
    x, y = min(width, height) / width / 2, min(width, height) / height / 2
    return 0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y


def _middle_frame(path: Path, request: Request) -> str:
    """A JPEG as data URL."""
    from PIL import Image

    from slt_plugin.data import video
    from slt_plugin.report.strip import data_url

    count = video.probe(path, request.start, request.end, fps=request.fps).num_frames
    clip = video.decode_clip(path, request.start, request.end, [count // 2], fps=request.fps)
    picture = Image.fromarray(clip.frames[0].numpy())
    picture.thumbnail((FRAME_SIDE, FRAME_SIDE), Image.Resampling.LANCZOS)
    return data_url(picture)


def _timeline(translator: Translator, prepared: Prepared, medium: Medium, sample: dict) -> "Timeline | None":
    """When each step of the source is; None where neither file nor visitor tell a frame rate."""
    import torch

    from slt_plugin.data.step_times import step_times
    from slt_plugin.report.occlusion import Timeline

    steps, row = sample["net_input"]["src_tokens"].size(1), prepared.rows[0]
    if translator.source is None:
        found = step_times(prepared.dataset.source, row, steps)
        return None if found is None else Timeline(*found)
    seconds = min(medium.seconds, math.inf if row.end is None else row.end) - (row.start or 0.0)
    return Timeline(torch.arange(steps, dtype=torch.float64) * (seconds / steps), seconds)


def _words(translator: Translator, sample: dict, best: Hypothesis, timeline: "Timeline") -> "list[WordEvidence]":
    from slt_plugin.report.evidence import explain

    source = sample["net_input"]["src_tokens"]
    max_steps = max(1, EVIDENCE_VALUES // max(1, source[0, 0].numel()))
    found = explain(
        translator.models.models, sample, best.tokens, translator.task.codec.decode, timeline, max_steps=max_steps
    )
    return found.words
