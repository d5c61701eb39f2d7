"""A running slt-demo over tiny models, and what is asked of it without a browser."""

import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import letter_pose
from test_translate import CLIPS, write_checkpoint
from video_helpers import write_video

from slt_plugin.checkpoints.provenance import sha256_of

START_SECONDS = 120
# every attempt of the server's Python to reach another machine is written down (and fails)
NO_NETWORK = """
import os, socket
def _local(address):
    return not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost", None, "0.0.0.0")
def _deny(what, address):
    with open(os.environ["OUTSIDE"], "a") as file:
        file.write(f"{what} {address}\\n")
    raise OSError("no network in this test")
_connect, _resolve = socket.socket.connect, socket.getaddrinfo
def connect(self, address):
    return _connect(self, address) if _local(address) else _deny("connect", address)
def resolve(host, *args, **kwargs):
    return _resolve(host, *args, **kwargs) if _local((host,)) else _deny("resolve", host)
socket.socket.connect, socket.getaddrinfo = connect, resolve
"""


def write_demo_files(root: Path, spm: Path) -> Path:
    """Checkpoints ``<kind>/best.pt`` of video, poses, several languages, and features with their encoder; and files."""
    for name in ("video", "pose", "languages", "features"):
        (root / name).mkdir()
    hiera = write_checkpoint(root / "video" / "best.pt", spm, source="video", **CLIPS).encoder.source_encoder.hiera
    torch.save({"model": hiera.state_dict()}, root / "features" / "hiera.pt")
    made = {"checkpoint_sha256": sha256_of(root / "features" / "hiera.pt"), "variant": "tiny_32x64", "num_frames": 32,
            "sampling_rate": 1, "target_fps": 25, "stride": 16, "size": 64, "dtype": "fp32"}  # fmt: skip
    write_checkpoint(root / "features" / "best.pt", spm, made, encoder="none", source="features",
                     feature_channels=hiera.feature_dim)  # fmt: skip
    write_checkpoint(root / "pose" / "best.pt", spm, encoder="pose", pose_parts="body,right_hand")
    write_checkpoint(root / "languages" / "best.pt", spm, source="video", codec_languages="mbart_cc25", **CLIPS)
    write_video(root / "clip.mp4", 40, size=(96, 64))
    write_video(root / "long.mp4", 60)
    (root / "broken.mp4").write_bytes((root / "clip.mp4").read_bytes()[:300])
    np.save(root / "pose.npy", np.concatenate([letter_pose(c, 8, np.random.default_rng(0)) for c in "abba"]))
    return root


@dataclass
class Demo:
    """A running server. temporary: the folder that all its temporary files are in; outside: see NO_NETWORK."""

    process: subprocess.Popen
    url: str
    temporary: Path
    outside: Path
    log: Path

    @property
    def port(self) -> int:
        return int(re.search(r":(\d+)/", self.url)[1])

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, dict]:
        """Status, text and headers; the path goes out as it is given, ``..`` and all."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace"), dict(response.getheaders())
        finally:
            connection.close()

    def upload(self, name: str, content: bytes) -> tuple[int, str]:
        """What the page's file field sends."""
        boundary = secrets.token_hex(8)
        disposition = f'Content-Disposition: form-data; name="files"; filename="{name}"'
        begin = f"--{boundary}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"
        body = begin.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        return self.request("POST", "/gradio_api/upload", body, content_type=kind)[:2]

    def call(self, target: str, data: list) -> tuple[int, str]:
        """Starts what happens on the page at ``target`` ("change of File"), as if it had sent ``data``.

        Returns:
            The status, and all that the server says until it is done (or why it does not begin).
        """
        config = json.loads(self.request("GET", "/config")[1])
        event, component = target.split(" of ")
        labels = {c["id"]: c["props"].get("label") or c["props"].get("value") for c in config["components"]}
        number = next(
            d["id"]
            for d in config["dependencies"]
            if any(labels.get(i) == component and e == event for i, e in d["targets"])
        )
        session = secrets.token_hex(5)
        body = json.dumps({"data": data, "fn_index": number, "session_hash": session, "trigger_id": None})
        status, text, _ = self.request("POST", "/gradio_api/queue/join", body.encode(), content_type="application/json")
        if status != 200:
            return status, text
        return status, self.request("GET", f"/gradio_api/queue/data?session_hash={session}")[1]

    def files(self) -> list[str]:
        """Names of what visitors uploaded and the server still has."""
        return sorted(
            path.name
            for path in self.temporary.rglob("*")
            if path.is_file() and path.suffix in (".mp4", ".npy", ".txt")
        )

    def wait_for_files(self, expected: list[str], seconds: float = 20) -> None:
        until = time.monotonic() + seconds
        while self.files() != expected and time.monotonic() < until:
            time.sleep(0.05)
        assert self.files() == expected


@contextmanager
def running_demo(folder: Path, *words) -> Iterator[Demo]:
    """``slt-demo`` on a free port, in an environment that would open it to the world if Gradio listened to it."""
    (folder / "site").mkdir()
    (folder / "tmp").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    (folder / "outside").touch()
    hostile = {
        "GRADIO_SHARE": "true", "GRADIO_ALLOWED_PATHS": "/", "GRADIO_ANALYTICS_ENABLED": "True",
        "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_MCP_SERVER": "True", "HTTP_PROXY": "http://10.0.0.1:3128",
    }  # fmt: skip
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "slt-demo", *map(str, words), "--port", "0", "--cpu"],
            stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, cwd=folder,
            env={**os.environ, **hostile, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "site"),
                 "OUTSIDE": str(folder / "outside"), "TMPDIR": str(folder / "tmp")},
        )  # fmt: skip
    try:
        until = time.monotonic() + START_SECONDS
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"slt-demo did not start: {log.read_text()[-4000:]}")
            time.sleep(0.05)
        yield Demo(process, found[0], folder / "tmp", folder / "outside", log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
