"""The command line: one thin function a command, in the module named after what it does.

Invariant: nothing heavy is imported before a command needs it (`mua --help` answers at once), and whatever
a person can mend ends as one paragraph on standard error, without a traceback.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from typing import Annotated

import typer

from .. import __version__
from ..errors import MuaError
from . import (
    benchmarks,
    coldstart,
    compare,
    domains,
    evaluate,
    export,
    plan,
    play,
    report,
    serve,
    stored,
    tasks,
    train,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback is a bug in mua; it is shown as Python shows it
    rich_markup_mode=None,
    help="Trains and evaluates language-model agents that work with a person over tools.",
)

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    # Spinning threads stand still wherever another process wants their core. Small models have one thread.
    "OMP_WAIT_POLICY": "PASSIVE",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
"""What is wrong with a path that somebody named, wherever it is met."""


def main() -> None:
    """The entry point `mua`."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries; what concerns the person is said in mua's own words
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding lacks is written as escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except MuaError as exc:
        _fail(str(exc))
    except BrokenPipeError:  # `mua score … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno in _PLACE and exc.filename:
            _fail(f"{exc.filename} cannot be used: {exc.strerror}; check the path, or name another.")
        if not _disk_full(exc):
            raise
        _fail(
            f"there is no room left to write: {exc}. What was written before is whole. Make room on the disk "
            "(or raise the limit on file sizes), then run the same command again to go on."
        )


def _fail(text: str) -> None:
    from ..display import error

    error(text)
    sys.exit(1)


def _disk_full(exc: BaseException | None) -> bool:
    """Also where a library has wrapped the system's error into its own."""
    while exc is not None:
        if isinstance(exc, OSError) and exc.errno in _FULL:
            return True
        if any(f"os error {number}" in str(exc) for number in _FULL):  # safetensors
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


# In the order in which `mua --help` lists them.
for _name, _command in {
    "quickstart": train.quickstart,
    "coldstart": coldstart.coldstart,
    "sft": train.sft,
    "train": train.train,
    "ablate": train.ablate,
    "eval": evaluate.evaluate,
    "compare": compare.compare,
    "export": export.export,
    "report": report.report,
    "plan": plan.plan,
    "view": report.view,
    "serve": serve.serve,
    "play": play.play,
    "import": stored.import_,
    "audit": stored.audit,
    "score": stored.score,
    "tasks": tasks.tasks,
}.items():
    app.command(_name)(_command)
for _name, _group in {
    "users": compare.users,
    "benchmarks": benchmarks.benchmarks,
    "env": export.environments,
    "domain": domains.domains,
}.items():
    app.add_typer(_group, name=_name)
