"""Tasks as the rows that verl's data loader reads.

Invariant: a row names a task by domain, split, id and content, and holds nothing that solves it; which tasks
may be trained on was decided before (`pipeline.open_run`), and rows are written of those only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...domain import Domain, Task
from ...errors import MuaError
from .groups import AGENT


def rows(domain: Domain, tasks: Sequence[Task], split: str, held_out: bool) -> list[dict[str, Any]]:
    """A row a task. verl wants a prompt; the real one is rendered where the episode is played, so this one
    only says which task it is. verl's own reward (`reward_model`) is not used: ours comes with the episode.
    """
    return [
        {
            "data_source": domain.name,
            "agent_name": AGENT,
            "prompt": [{"role": "user", "content": f"{domain.name} {split} {task.id}"}],
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {
                "index": index,
                "domain": domain.name,
                "split": split,
                "task_id": task.id,
                "kind": task.kind,
                "fingerprint": task.fingerprint,
                "held_out": held_out,
            },
        }
        for index, task in enumerate(tasks)
    ]


def write(path: Path, table: Sequence[dict[str, Any]]) -> None:
    """Writes rows as Parquet, whole or not at all. Raises MuaError without pyarrow, which verl brings."""
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MuaError(NOT_INSTALLED) from None
    fresh = path.with_name(f".{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(table)), fresh)
    fresh.replace(path)


NOT_INSTALLED = (
    "verl is not installed. It pins other versions than mua alone needs, so give it an environment of its "
    "own: pip install 'mua[verl]' there, and vLLM or SGLang (docs/scale-out.md)."
)
