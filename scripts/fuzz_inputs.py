"""Valid manifests, poses and features, and ways to break them: the inputs of fuzz.py."""

import functools
import io
import json
import struct
import sys
import tempfile
import warnings
from pathlib import Path
from random import Random

import numpy as np
import torch
from pose_format.numpy import NumPyPoseBody
from pose_format.pose import Pose
from pose_format.pose_header import PoseHeader, PoseHeaderComponent, PoseHeaderDimensions
from pose_format.utils.openpose import OpenPose_Components

from slt_plugin.data.manifest import Row, write_manifest

# ---- mutations ----

# fmt: off
NASTY_BYTES = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b'"', "\u2028".encode(), b"\xc3", b"nan", b"-1", b"1e999",
    b"9" * 40, b"{}", b"[" * 3000, b"(" * 3000, b"\x80\x04", b"\xff" * 4, b"\0" * 8, b"\xff" * 600,
    *(struct.pack("<f", value) for value in (float("nan"), float("inf"), -1.0, 0.0, 0.1, 0.2, 3e38)),
    *(struct.pack("<I", value) for value in (1, 255, 65535, 2**31)),
]
CELLS = [
    "2.75", "12", "clip9", "b/0.npy", "Grüße!", "0.1,0.1,0.9,0.9", "de", "30",  # and now the nasty ones
    "", " ", "nan", "inf", "-inf", "-0", "0", "-1", "1", "1e400", "1e-400", "9" * 400, "1_0", "٣", "0x10", "1,5",
    "0,0,1,1", "0.2,0.2,0.1,0.1", "0,0,1", "0,0,1,nan", "-0.1,0,1,1", "\u2028", "\x85", "\x0b", "\ufeff", "\r", "\0",
    '"', '"a', "a" * 100_000, "..", "/", "id", "clip0", "text", "None", "\U0001f9cf", "a\tb", "{epoch}", "\ud800",
]
NASTY_JSON = [
    "null", "true", '"x"', '"1"', "[]", "{}", "-1", "0", "1.5", "1e308", "1e999", "NaN", "Infinity", "9" * 5000,
    "[1, 2]", "[[]]", '[{"people": []}]', "[null]", '{"people": [null]}', "[" * 100_000, '"\\ud800"', "",
]
# fmt: on


def mutate_bytes(rng: Random, data: bytes, head: int) -> bytes:
    """A few edits; a third of them within the first `head` bytes, where headers are."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randint(0, min(len(data), head if rng.random() < 1 / 3 else len(data)))
        length = rng.choice([1, 2, 4, 17, 256])
        chunk = rng.choice([*NASTY_BYTES, rng.randbytes(1), rng.randbytes(4), rng.randbytes(8)])
        same_size = ["overwrite", "flip"] * 4  # other sizes are mostly refused at once
        edit = rng.choice([*same_size, "insert", "delete", "repeat", "cut"])
        if edit == "overwrite":
            data = data[:at] + chunk + data[at + len(chunk) :]
        elif edit == "insert":
            data = data[:at] + chunk + data[at:]
        elif edit == "delete":
            data = data[:at] + data[at + length :]
        elif edit == "repeat":
            data = data[: at + length] + data[at:]
        elif edit == "cut":
            data = data[:at]
        else:
            bit = 1 << rng.randrange(8)
            data = data[:at] + bytes(byte ^ bit for byte in data[at : at + 1]) + data[at + 1 :]
    return data


def mutate_json(rng: Random, value: object) -> str:
    """JSON text of `value` with one node, found by a walk from the root, replaced by something nasty."""
    if rng.random() < 0.1:
        return rng.choice(NASTY_JSON)
    marker, node = "\x00here", value
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.25:
            break
        node = node[key]
    edit = rng.choice(["replace", "replace", "delete", "repeat"])
    if edit == "delete":
        del node[key]
    elif edit == "repeat" and isinstance(node, list):
        node.insert(key, node[key])
    else:
        node[key] = marker
    return json.dumps(value).replace(json.dumps(marker), rng.choice(NASTY_JSON))


class Hostile:
    """An object whose unpickling runs code, which leaves a mark in `sys`."""

    def __reduce__(self) -> tuple:
        return (exec, ("import sys; sys.unpickled_hostile = True",))


def hostile_ran() -> bool:
    """Whether a Hostile was unpickled since the last call."""
    return sys.__dict__.pop("unpickled_hostile", False)


def nasty_array(rng: Random, shape: tuple[int, ...]) -> np.ndarray:
    """An array that a user could have saved by mistake."""
    array = np.random.default_rng(rng.randrange(100)).normal(1.0, 0.3, shape)
    if rng.random() < 0.2:
        value = rng.choice([np.nan, np.inf, -np.inf, 1e30, 1e300, -1e5, 0.0])
        array[tuple(rng.randrange(size) for size in shape)] = value
    change = rng.choice(["none"] * 8 + ["dtype", "dtype", "shape", "value", "object"])
    if change == "dtype":
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = ["f2", "f4", ">f4", "f8", "i8", "u1", "c8", "?", "U3", "S2", "M8[s]", "f4,f4", "O"]
            return array.astype(rng.choice(names))
    if change == "shape":
        shapes = [(), (0,), (0, *shape[1:]), shape[::-1], (1, *shape), (*shape, 1), (shape[0], 0), (array.size,)]
        new = rng.choice(shapes)
        return np.resize(array, new) if 0 not in new else np.empty(new)
    if change == "value":
        array[...] = rng.choice([0.0, np.nan, 1.0, 1e38])
    if change == "object":
        return np.array([Hostile(), 1], dtype=object)
    return array.astype(rng.choice(["f2", "f4", "f8"])) if abs(array).max() < 6e4 else array


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# ---- valid material ----


@functools.cache
def manifest_bytes() -> bytes:
    rows = [
        Row("clip0", "a/0.pose", 'Hello, "world"!', 0.0, 2.5, 60, 24.0, (0.0, 0.25, 0.5, 1.0), "ase", "en", "s1", "c"),
        Row("clip1", "/abs/1.npy", "Straße — 你好", None, None, 75, 25.0, None, "gsg", "de", None, "c"),
        Row("clip2", "a/2.pt", "Three words here", 1.25, 3.0),
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder, "m.tsv"), rows)
        return Path(folder, "m.tsv").read_bytes()


@functools.cache
def pose_bytes(version: float) -> bytes:
    """4 frames of OpenPose's 137 points at 25 fps, some of them missing."""
    components = [
        PoseHeaderComponent(part.name, part.points, part.limbs[:2], part.colors[:2], part.format)
        for part in OpenPose_Components
    ]
    header = PoseHeader(version, PoseHeaderDimensions(100, 100, 100), components)
    points, dims = header.total_points(), header.num_dims()
    rng = np.random.default_rng(1)
    data = rng.uniform(0, 100, (4, 1, points, dims)).astype(np.float32)
    confidence = (rng.random((4, 1, points)) < 0.9).astype(np.float32)
    confidence[:, :, [2, 5]] = 1  # the shoulders
    file = io.BytesIO()
    Pose(header, NumPyPoseBody(25.0, np.ma.masked_array(data, np.zeros_like(data)), confidence)).write(file)
    written = file.getvalue()  # pose-format writes version 0.2 only
    if version == 0.2:
        return written
    head = struct.pack("<f", version) + written[4 : len(written) - data.nbytes - confidence.nbytes - 10]
    if version == 0.1:
        return head + struct.pack("<HHH", 25, 4, 1) + data.tobytes() + confidence.tobytes()
    frames = np.concatenate([data, confidence[..., None]], axis=-1)
    return head + struct.pack("<HH", 25, 4) + b"".join(struct.pack("<Hh", 1, 0) + frame.tobytes() for frame in frames)


def openpose_frame(number: int) -> dict:
    def keypoints(count: int) -> list[float]:
        return [float(i % 7 + number + 1) for i in range(count * 3)]

    counts = {"pose": 25, "face": 70, "hand_left": 21, "hand_right": 21}
    person = {"person_id": [-1]} | {f"{part}_keypoints_2d": keypoints(count) for part, count in counts.items()}
    return {"version": 1.3, "people": [person] if number != 1 else []}


def mmpose_frames() -> list[dict]:
    points = [[float(i % 11), float(i % 5)] for i in range(133)]
    instance = {"keypoints": points, "keypoint_scores": [0.5] * 133}
    return [{"frame_id": i, "instances": [instance] if i != 1 else []} for i in range(3)]


# ---- broken files ----


def write_openpose(rng: Random, path: Path) -> None:
    path.mkdir()
    numbers = rng.choice([range(3), range(3), range(7, 10), [0, 2], [], [5]])
    for number in numbers:
        text = json.dumps(openpose_frame(number)) if number != 2 else mutate_json(rng, openpose_frame(number))
        (path / f"clip_{number:012d}_keypoints.json").write_text(text, encoding="utf-8")
    if numbers and rng.random() < 0.5:
        file = path / f"clip_{numbers[0]:012d}_keypoints.json"
        file.write_bytes(mutate_bytes(rng, file.read_bytes(), head=60))
    if rng.random() < 0.1:
        (path / rng.choice(["other_000000000000_keypoints.json", "notes.txt"])).write_text("{}")


def write_npy(rng: Random, path: Path, shape: tuple[int, ...]) -> None:
    array = nasty_array(rng, shape)
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype.kind == "f" and rng.random() < 0.8:
        array[..., 2] = np.minimum(array[..., 2], 1)  # confidences, but for the others, as of x, y, z
    data = npy_bytes(array)
    path.write_bytes(mutate_bytes(rng, data, head=128) if rng.random() < 0.5 else data)


def pt_bytes(rng: Random, shape: tuple[int, ...]) -> bytes:
    """What torch.save makes of a tensor, or of something else that a user could have saved by mistake."""
    array = nasty_array(rng, shape)
    change = rng.choice(["none"] * 6 + ["bf16", "bf16", "dict", "list", "sparse", "hostile", "grad"])
    value: object = torch.from_numpy(array.copy()) if array.dtype.isnative and array.dtype.kind in "fiu?c" else array
    if isinstance(value, torch.Tensor):
        changes = {
            "bf16": lambda: value.to(torch.bfloat16),
            "dict": lambda: {"features": value},
            "list": lambda: [value],
            "sparse": lambda: value.to_sparse(),
            "grad": lambda: value.clone().requires_grad_() if value.is_floating_point() else value,
        }
        value = changes.get(change, lambda: value)()
    if change == "hostile":
        value = Hostile()
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=rng.random() < 0.7)
    return file.getvalue()
