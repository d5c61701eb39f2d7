"""The page of ``slt-demo``: the one file that imports gradio (extra ``demo``), without any of its network use."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from slt_plugin.cli import demo_html
from slt_plugin.cli.demo_guard import Guard
from slt_plugin.cli.demo_service import KEEP_SECONDS, MAX_BEAM, DemoError, Service
from slt_plugin.cli.translator import Request

logger = logging.getLogger(__name__)

FONTS = ("system-ui", "sans-serif")  # of the visitor's machine: Gradio's own themes ask a server of Google's for theirs
MONO_FONTS = ("ui-monospace", "monospace")
SHUTDOWN_SECONDS = 1  # for what is being answered
BOXES = {"auto": "found by the face", "none": "centre of the frame", "given": "this one:"}
ACCEPTED = {"video": ["video"], "pose": [".pose", ".npy", ".json"], "features": [".npy", ".pt"]}
FAILED = "something went wrong inside slt-demo: its terminal says what"
DROP = {"video": "Video", "pose": "Pose file", "features": "Features"}


@dataclass(frozen=True)
class Address:
    """hosts: names that the page answers to, () for any; socket: bound, not listening yet."""

    socket: socket.socket
    hosts: tuple[str, ...]


def import_gradio(folder: Path):
    """gradio, told to keep its files in ``folder`` and to stay off the network.

    Raises:
        DemoError: not installed.
    """
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]  # GRADIO_SHARE and others would open the page to the world
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    try:
        import gradio
    except ImportError as error:
        raise DemoError(f"gradio is needed for the page ({error}): pip install 'slt-plugin[demo]'") from error
    return gradio


def serve(service: Service, folder: Path, address: Address, started: Callable[[], None]) -> None:
    """Runs the page until SIGINT or SIGTERM, which Python's handlers get afterwards.

    Args:
        folder: for Gradio's files.
        started: called once the page can be opened.

    Raises:
        DemoError: gradio is not installed.
    """
    gradio = import_gradio(folder)
    import fastapi
    import uvicorn

    blocks = build(gradio, service)
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=service.limits.upload_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gradio.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO_FONTS),
        css=demo_html.CSS,
    )

    blocks.has_launched = True  # else Gradio does not check where the files that it is told of are
    (gradio_app,) = (route.app for route in app.routes if hasattr(getattr(route, "app", None), "stop_event"))

    class Server(uvicorn.Server):
        async def startup(self, sockets=None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                started()

        async def shutdown(self, sockets=None) -> None:
            gradio_app.stop_event.set()  # each open page holds a request for as long as it is open
            logging.getLogger("uvicorn.error").disabled = True  # a translation that is cut off is no error now
            await super().shutdown(sockets=sockets)

    guarded = Guard(app, hosts=address.hosts, uploads=folder, max_upload=service.limits.upload_bytes)
    config = uvicorn.Config(
        guarded, log_level="warning", access_log=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS, ws="none"
    )
    Server(config).run(sockets=[address.socket])


def build(gr, service: Service):
    """The page's components and what they do."""
    first = next(iter(service.translators))
    translator = service.translators[first]
    limits = service.limits

    with gr.Blocks(title="slt-demo", analytics_enabled=False, delete_cache=(60, KEEP_SECONDS)) as blocks:
        gr.Markdown(
            "# Sign language translation\n"
            f"Everything stays on this machine. At most {limits.megabytes:g} MB a file, and {limits.seconds:g} s of "
            "signing at once; a file is deleted when another takes its place or the page is closed, or after "
            f"{KEEP_SECONDS // 60} minutes without use."
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                checkpoint = gr.Dropdown(list(service.translators), value=first, label="Checkpoint")
                language = gr.Dropdown(**_language(translator), label="Language")
                file = gr.File(
                    label=DROP[translator.kind], file_types=ACCEPTED[translator.kind], height=150, elem_id="slt-file"
                )
                about = gr.HTML(visible=False, padding=False)
                with gr.Row():
                    # an empty gr.Number would show 0
                    start = gr.Textbox(label="Start (s)", placeholder="0", min_width=100)
                    end = gr.Textbox(label="End (s)", placeholder="end of the file", min_width=100)
                    fps = gr.Textbox(label="Frames/s", visible=False, min_width=100)
                with gr.Group(visible=translator.kind == "video") as box_choice:
                    box = gr.Radio(
                        [(label, value) for value, label in BOXES.items()],
                        value="auto" if find_spec("dlib") else "none",
                        label="Signer box",
                    )
                    place = gr.Textbox(
                        label="x0,y0,x1,y1 in parts of width and height", placeholder="0.2,0.1,0.8,0.9", visible=False
                    )
                with gr.Accordion("Search", open=False):
                    beam = gr.Slider(1, MAX_BEAM, value=5, step=1, label="Beam")
                    n_best = gr.Slider(1, MAX_BEAM, value=3, step=1, label="Alternatives")
                    evidence = gr.Checkbox(value=True, label="Look for what each word rests on (takes longest)")
                button = gr.Button("Translate", variant="primary", interactive=False)
                status = gr.HTML(elem_id="slt-status", padding=False)
            with gr.Column(scale=2, min_width=300):
                text = gr.Textbox(label="Text", lines=2, interactive=False, buttons=["copy"], elem_id="slt-text")
                details = gr.HTML(elem_id="slt-details")

        def choose(name: str, request: gr.Request):
            chosen = service.translator(name)
            service.forget(request.session_hash)
            return {
                language: gr.Dropdown(**_language(chosen)),
                file: gr.File(value=None, label=DROP[chosen.kind], file_types=ACCEPTED[chosen.kind]),
                box_choice: gr.Group(visible=chosen.kind == "video"),
                fps: gr.Textbox("", visible=False),
                button: gr.Button(interactive=False),
                about: gr.HTML(visible=False),
                **dict.fromkeys((status, details, text), ""),
            }

        def accept(uploaded: str | None, name: str, request: gr.Request):
            cleared = {fps: gr.Textbox("", visible=False), **dict.fromkeys((status, details, text), "")}
            if uploaded is None:
                service.forget(request.session_hash)
                return {about: gr.HTML(visible=False), button: gr.Button(interactive=False), **cleared}
            try:
                medium = service.accept(request.session_hash, Path(uploaded), name)
            except DemoError as error:
                return {**cleared, **refused(str(error))}
            except Exception:
                logger.exception(FAILED)
                return {**cleared, **refused(FAILED)}
            rate = gr.Textbox(visible=service.translator(name).kind == "pose" and medium.fps is None)
            shown = gr.HTML(demo_html.medium(medium), visible=True)
            return {**cleared, about: shown, button: gr.Button(interactive=True), fps: rate}

        def refused(message: str) -> dict:
            return {about: gr.HTML(demo_html.error(message), visible=True), button: gr.Button(interactive=False)}

        def translate(
            name, wanted, start, end, fps, box, place, beam, n_best, evidence, request: gr.Request
        ) -> Iterator:
            yield {status: demo_html.status(0, "Waiting for the model"), text: "", details: ""}
            try:
                asked = Request(
                    start=_number("start", start),
                    end=_number("end", end),
                    fps=_number("frames/s", fps),
                    box=_box(box, place) if service.translator(name).kind == "video" else "none",
                    target_lang=(wanted,) if wanted else (),
                    beam=int(beam),
                    n_best=int(n_best),
                )
                for update in service.translate(request.session_hash, name, asked, evidence=evidence):
                    shown = {status: demo_html.status(update.done, update.doing) if update.doing else ""}
                    if update.result is not None:
                        shown |= {text: update.result.hypotheses[0].text, details: demo_html.result(update.result)}
                    yield shown
            except DemoError as error:
                yield {status: demo_html.error(str(error))}
            except Exception:
                logger.exception(FAILED)
                yield {status: demo_html.error(FAILED)}

        def leave(request: gr.Request) -> None:
            service.forget(request.session_hash)

        hidden = {"show_progress": "hidden", "api_visibility": "private"}
        everything = [about, button, fps, status, details, text]
        checkpoint.change(choose, checkpoint, [*everything, language, file, box_choice], **hidden)
        file.change(accept, [file, checkpoint], everything, **hidden)
        box.change(lambda chosen: gr.Textbox(visible=chosen == "given"), box, place, **hidden)
        button.click(
            translate,
            [checkpoint, language, start, end, fps, box, place, beam, n_best, evidence],
            [status, text, details],
            concurrency_limit=1,
            **hidden,
        )
        blocks.unload(leave)
    return blocks.queue(max_size=32, default_concurrency_limit=1)


def _language(translator) -> dict:
    """Choices of a dropdown that is there for models of several languages."""
    languages = list(translator.languages)
    usual = translator.language or (translator.task.example_language() if languages else None)
    return {"choices": languages, "value": usual, "visible": bool(languages)}


def _number(label: str, text: str | None) -> float | None:
    """None for a field that is empty, or not shown."""
    if not (text or "").strip():
        return None
    try:
        return float(text)
    except ValueError as error:
        raise DemoError(f"{label} {text!r}: a number is needed, such as 2.5") from error


def _box(kind: str, place: str):
    if kind != "given":
        if kind not in BOXES:
            raise DemoError(f"signer box {kind!r}: choose one of {', '.join(BOXES)}")
        return kind
    from slt_plugin.data.manifest import PARSERS

    try:
        return PARSERS["box"](place or "")
    except ValueError as error:
        raise DemoError(f"signer box: {error}") from error
