"""The page: a video, sliders, what is kept of it, and questions about it. Needs Gradio (the extra `app`).

Notable design decisions:
- nothing but this machine is ever asked: no analytics, no fonts or scripts of others, and addresses in place of files
  are refused before Gradio would fetch them;
- one job at a time, whoever asks; the others wait in a queue of a bounded length;
- what a user did wrong is one line in the page, without the server's paths. What is a fault of ours has its traceback
  in the terminal only.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported: it asks for its newest version otherwise

import gradio as gr
from starlette.middleware import Middleware

from ..common.compute.cancelling import Cancellation, cancellable
from . import fragments
from .config import AppConfig
from .examples import Example
from .isolation import Isolation
from .lines import one_line
from .looker import SLIDERS, Looker, Reply, Seen

STATIC = Path(__file__).resolve().parent / "static"
TITLE = "AutoGaze"
INTRODUCTION = (
    "A selector looks at every frame and keeps the few patches worth looking at; "
    "the vision tower and the LLM see only those."
)
STEPS = ("Drop a video, or take an example.", "Press Gaze.", "Click the chart to see a frame. Ask a question.")
PROGRESS = gr.Progress()  # of whatever event is under way where it is called
ONE_JOB = "model"  # all that looks or answers waits for each other
OTHER_QUESTIONS = ("What happens in this video?", "What does the sign say?")

PageOutputs = tuple[Any, Any, Any, Any]
"""What is shown after an event: the viewer, the json, what the viewer shows then, the answers."""


class Page:
    """note: what the model can read, for who does not know."""

    def __init__(self, looker: Looker, examples: Sequence[Example], note: str, title: str) -> None:
        self.looker, self.examples, self.note, self.title = looker, examples, note, title
        self._running: dict[str, Cancellation] = {}  # by session

    # -- what the buttons do -------------------------------------------------------------------------------------

    def gaze(self, request: gr.Request, video: str | None, selector: str, *values: float) -> PageOutputs:
        with self._wanted(request) as wanted:
            seen, refusal = self._look(wanted, video, selector, values)
        if seen is None:
            return fragments.notice(refusal), {"error": refusal}, "", ""
        return fragments.viewer(seen), seen.facts, seen.key, ""

    def ask(
        self,
        request: gr.Request,
        video: str | None,
        question: str,
        dense: bool,
        shown: str,
        selector: str,
        *values: float,
    ) -> Iterator[PageOutputs]:
        """As `gaze`; the answers again and again, as they are written."""
        if not question.strip():
            refusal = "the question has no text"
            yield gr.skip(), {"error": refusal}, gr.skip(), fragments.notice(refusal)
            return
        with self._wanted(request) as wanted:
            seen, refusal = self._look(wanted, video, selector, values)
            if seen is None:
                yield fragments.notice(refusal), {"error": refusal}, "", ""
                return
            yield from self._answer(wanted, seen, str(video), question, dense, shown)

    def _answer(
        self, wanted: Cancellation, seen: Seen, video: str, question: str, dense: bool, shown: str
    ) -> Iterator[PageOutputs]:
        askers: dict[str, Callable[[], Iterator[Reply]]] = {"gaze": lambda: self.looker.ask(seen, question)}
        if dense:
            askers["dense"] = lambda: self.looker.ask_dense(video, seen, question)
        replies = {name: Reply() for name in askers}
        written = fragments.answers(question, replies, seen.facts, self.note)
        yield gr.skip() if seen.key == shown else fragments.viewer(seen), seen.facts, seen.key, written
        for name, asker in askers.items():
            try:
                for reply in asker():
                    wanted.check()
                    replies[name] = reply
                    yield gr.skip(), gr.skip(), gr.skip(), fragments.answers(question, replies, seen.facts, self.note)
            except Exception as error:
                replies[name] = Reply(refusal=one_line(error, video))
        answers = {
            name: {"error": reply.refusal} if reply.refusal else {"text": reply.text, **reply.stats}
            for name, reply in replies.items()
        }
        facts = {**seen.facts, "question": question, "answers": answers}
        yield gr.skip(), facts, gr.skip(), fragments.answers(question, replies, seen.facts, self.note)

    def stop(self, request: gr.Request) -> None:
        """Ends what this browser has asked for, at the next tile or word."""
        running = self._running.get(str(request.session_hash))
        if running is not None:
            running.cancel()

    @contextmanager
    def _wanted(self, request: gr.Request) -> Iterator[Cancellation]:
        """What `stop` ends."""
        session, wanted = str(request.session_hash), Cancellation()
        self._running[session] = wanted
        try:
            yield wanted
        finally:
            if self._running.get(session) is wanted:
                del self._running[session]

    def _look(
        self, wanted: Cancellation, video: str | None, selector: str, values: Sequence[float]
    ) -> tuple[Seen | None, str]:
        """What was seen, or why nothing was."""
        if not video:
            return None, "there is no video yet: drop one, or take an example"

        def report(done: int, total: int) -> None:
            PROGRESS((done, total), desc="gazing", unit="frames")

        try:
            with cancellable(wanted):
                return self.looker.look(video, selector, dict(zip(SLIDERS, values, strict=True)), report), ""
        except Exception as error:
            return None, one_line(error, video)

    # -- what it looks like --------------------------------------------------------------------------------------

    def blocks(self) -> gr.Blocks:
        with gr.Blocks(title=self.title, analytics_enabled=False, delete_cache=(600, 3600), fill_width=True) as page:
            gr.HTML(self._head(), elem_id="head")
            with gr.Row(equal_height=False):
                with gr.Column(scale=0, min_width=340, elem_id="choices"):
                    video = self._video()
                    selector, sliders = self._choices()
                    with gr.Row():
                        go = gr.Button("Gaze", variant="primary", scale=3, min_width=120, elem_id="go")
                        stop = gr.Button("Stop", scale=1, min_width=70, elem_id="stop")
                with gr.Column(scale=1, min_width=520, elem_id="results"):
                    viewer = gr.HTML(
                        fragments.steps(STEPS),
                        elem_id="viewer",
                        js_on_load=(STATIC / "page.js").read_text(encoding="utf-8"),
                    )
                    question, ask, dense = self._asking()
                    answers = gr.HTML("", elem_id="answers")
                    with gr.Accordion("Numbers and settings as json", open=False, elem_id="details"):
                        facts = gr.JSON(show_label=False, elem_id="facts")
            shown = gr.State("")
            outputs = [viewer, facts, shown, answers]
            alike: dict[str, Any] = {
                "outputs": outputs,
                "concurrency_id": ONE_JOB,
                "concurrency_limit": 1,
                "show_progress_on": [viewer],
            }
            go.click(_named(self.gaze), [video, selector, *sliders], api_name="gaze", **alike)
            asked = [video, question, dense, shown, selector, *sliders]
            ask.click(_named(self.ask), asked, api_name="ask", **alike)
            question.submit(_named(self.ask), asked, api_visibility="private", **alike)
            stop.click(self.stop, queue=False, api_visibility="private", show_progress="hidden")
            page.unload(self.stop)
            selector.change(
                lambda name: self.looker.usual("loss", name),
                [selector],
                [sliders[list(SLIDERS).index("loss")]],
                api_visibility="private",
                show_progress="hidden",
            )
        return page

    def _head(self) -> str:
        note = f'<p class="ag-note">{fragments.escape(self.note)}</p>' if self.note else ""
        return f"<h1>{TITLE}</h1><p>{INTRODUCTION}</p>{note}"

    def _video(self) -> gr.Video:
        """What is looked at: uploaded, or one of the examples below it."""
        video = gr.Video(label="Video", sources=["upload"], height=230, elem_id="video")
        gr.Examples(
            [[str(one.path)] for one in self.examples],
            [video],
            label="Examples, made by this package",
            example_labels=[one.path.stem for one in self.examples],
            elem_id="examples",
            api_visibility="private",
        )
        return video

    def _asking(self) -> tuple[gr.Textbox, gr.Button, gr.Checkbox]:
        """The question, the button that asks it, and whether the dense model is asked, too."""
        with gr.Row(elem_id="asking"):
            question = gr.Textbox(label="Question", placeholder=self._questions()[0], scale=1, elem_id="question")
            ask = gr.Button("Ask", variant="primary", scale=0, min_width=120, elem_id="ask")
        dense = gr.Checkbox(
            True, label="Ask the dense model, too, which sees whole frames", container=False, elem_id="dense"
        )
        gr.Examples(
            [[text] for text in self._questions()],
            [question],
            label="Questions to try",
            elem_id="questions",
            api_visibility="private",
        )
        return question, ask, dense

    def _questions(self) -> Sequence[str]:
        """The examples' are for a model that reads what they show and little else."""
        own = [text for one in self.examples for text in one.questions]
        return own if self.note and own else OTHER_QUESTIONS

    def _choices(self) -> tuple[gr.Dropdown, list[gr.Slider]]:
        names = self.looker.selectors
        selector = gr.Dropdown(names, value=names[0], label="selector", elem_id="selector")
        sliders = []
        for name, one in SLIDERS.items():
            least, most, step = self.looker.range_of(name)
            sliders.append(
                gr.Slider(
                    least,
                    most,
                    value=self.looker.usual(name, names[0]),
                    step=step,
                    label=name.replace("_", " "),
                    info=one.help,
                    elem_id=name,
                )
            )
        return selector, sliders


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its `*values` called as the sliders are: Gradio's clients give arguments by these names."""
    parameters: list[inspect.Parameter] = []
    for one in inspect.signature(function, eval_str=True).parameters.values():
        several = one.kind is inspect.Parameter.VAR_POSITIONAL
        names = list(SLIDERS) if several else [one.name]
        parameters += [one.replace(name=name, kind=one.POSITIONAL_OR_KEYWORD) for name in names]

    def now(*given: Any) -> Any:
        return function(*given)

    def piece_by_piece(*given: Any) -> Iterator[Any]:
        yield from function(*given)

    named: Any = piece_by_piece if inspect.isgeneratorfunction(function) else now
    named.__signature__ = inspect.Signature(parameters)
    named.__annotations__ = {one.name: one.annotation for one in parameters}  # by these it finds the request
    return named


def theme() -> gr.themes.Base:
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    look = gr.themes.Default(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=fonts,
        font_mono=("ui-monospace", "Consolas", "monospace"),
    )
    # Small print that can be read: Gradio's own is paler than 4.5 to 1.
    return look.set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")


def launch(page: Page, config: AppConfig, port: int, allowed: Path) -> tuple[gr.Blocks, str]:
    """Starts to serve, in threads of its own. port: a free one; allowed: the folder of files that may be given out.
    -> what is to be closed, and the address."""
    blocks = page.blocks()
    blocks.queue(max_size=config.waiting, default_concurrency_limit=1, api_open=False)
    _, address, _ = blocks.launch(
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=config.open,
        server_name=config.host,
        server_port=port,
        max_file_size=config.max_upload * 10**6,
        allowed_paths=[str(allowed)],
        strict_cors=True,
        ssr_mode=False,
        footer_links=[],
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(Isolation)]},
        theme=theme(),
        css=(STATIC / "page.css").read_text(encoding="utf-8"),
    )
    return blocks, address
