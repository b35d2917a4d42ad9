"""Figures of a run for TensorBoard, Weights & Biases and Trackio, by their own libraries.

The run folder has everything (`metrics.jsonl`); these get its numbers as well, when asked.

Invariants:
- A tracker never ends a run: the first thing that goes wrong with one is a warning, and it gets no more.
- A resumed run continues what it began. A step is sent once: those that are played again are the same.
- What is sent are the step's numbers and the configuration as the run folder has it, without secrets.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..runfolder import RunFolder

log = logging.getLogger(__name__)

Log = Callable[[int, dict[str, float]], None]
"""(step, numbers by name) → sent."""


class Trackers:
    """The trackers `names` of a run. `log` is called with each step's line of metrics."""

    def __init__(self, names: Sequence[str], run: RunFolder, project: str):
        self._run = run
        before: dict[str, Any] = {}
        try:
            before = json.loads((run.path / "track.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as exc:
            log.warning("%s/track.json cannot be read (%s): tracking begins anew", run.path, exc)
        self._id: str = before.get("id") or f"{run.path.absolute().name}-{uuid.uuid4().hex[:8]}"
        self._sent: dict[str, int] = before.get("sent", {})
        """The last step that each tracker got."""
        config = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
        self._closing = contextlib.ExitStack()
        self._logs: dict[str, Log] = {}
        for name in names:
            with self._harmless(name):
                self._logs[name] = self._closing.enter_context(
                    OPEN[name](run.path, project, self._id, config)
                )
        self._remember()

    def log(self, line: Mapping[str, Any]) -> None:
        """Sends the numbers of a step."""
        numbers = dict(_numbers(line))
        for name in list(self._logs):
            if line["step"] > self._sent.get(name, 0):
                with self._harmless(name):
                    self._logs[name](line["step"], numbers)
                    self._sent[name] = line["step"]
        self._remember()

    def close(self) -> None:
        """Lets the libraries finish what they have not written yet."""
        with self._harmless("its end"):
            self._closing.close()

    def _remember(self) -> None:
        if self._logs:
            self._run.write_json("track.json", {"id": self._id, "sent": self._sent})

    @contextlib.contextmanager
    def _harmless(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            self._logs.pop(name, None)
            words = " ".join(str(exc).split())[:300]
            log.warning("tracking by %s has failed and ends here (%s: %s)", name, type(exc).__name__, words)


def _numbers(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of a line, nested ones as `tool_calls/renew_loan`; lists by their length."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _numbers(item, f"{prefix}{key}/")
        elif isinstance(item, list):
            yield f"{prefix}{key}", len(item)
        elif isinstance(item, int | float) and math.isfinite(item) and key != "step":
            yield f"{prefix}{key}", item


@contextlib.contextmanager
def _tensorboard(folder: Path, project: str, name: str, config: Mapping[str, Any]) -> Iterator[Log]:
    """Event files in the run folder's `tensorboard/`."""
    from torch.utils.tensorboard import SummaryWriter

    place = folder / "tensorboard"
    fresh = not place.exists()
    with SummaryWriter(str(place)) as writer:
        if fresh:
            writer.add_text("config", "```yaml\n" + yaml.safe_dump(dict(config), sort_keys=False) + "```")

        def send(step: int, numbers: dict[str, float]) -> None:
            for key, value in numbers.items():
                writer.add_scalar(key, value, step)
            writer.flush()

        yield send


@contextlib.contextmanager
def _wandb(folder: Path, project: str, name: str, config: Mapping[str, Any]) -> Iterator[Log]:
    """Files in the run folder's `wandb/`, sent where there is a key; else `wandb sync` sends them later."""
    import wandb  # pyright: ignore[reportMissingImports]

    mode: Any = os.environ.get("WANDB_MODE")
    if mode is None and not wandb.api.api_key:  # it would ask for one
        log.warning("there is no key of W&B: the figures stay in %s/wandb until `wandb sync`", folder)
        mode = "offline"
    settings = wandb.Settings(
        console="off", silent=True, save_code=False, disable_code=True, disable_git=True, x_disable_meta=True
    )
    run = wandb.init(
        project=project,
        id=name,
        name=name,
        dir=str(folder),
        config=dict(config),
        resume=None if mode == "offline" else "allow",  # offline, `wandb sync` puts the parts together by id
        mode=mode,
        settings=settings,
    )
    try:
        yield lambda step, numbers: run.log(numbers, step=step)
    finally:
        run.finish()


@contextlib.contextmanager
def _trackio(folder: Path, project: str, name: str, config: Mapping[str, Any]) -> Iterator[Log]:
    """Trackio's own database, where `trackio show` looks for it (TRACKIO_DIR moves it)."""
    import trackio  # pyright: ignore[reportMissingImports]

    with contextlib.redirect_stdout(None):  # its hints would break the display
        run = trackio.init(
            project=project,
            name=name,
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    try:
        yield lambda step, numbers: run.log(numbers, step=step)
    finally:
        with contextlib.redirect_stdout(None):
            trackio.finish()


OPEN = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
