"""Parameters that do not exist, of which papermill only warns, and numbers in sentences."""

import ast
import difflib
import itertools
from collections.abc import Sequence

import pandas as pd

INJECTED = "# Parameters\n"  # papermill begins the cell that it adds with this line


def check_parameters(history: Sequence[str] | None = None) -> None:
    """Raises ValueError where papermill was given parameters that the notebook does not have.

    `history`: the sources of the cells that ran so far, in order: the parameters' cell and, behind it, the
    cell that papermill adds. None: those of the notebook that calls this.
    """
    if history is None:
        from IPython import get_ipython

        history = get_ipython().user_ns["In"]
    cells = [source for source in history if source.strip()]
    for parameters, added in itertools.pairwise(cells):
        if not added.startswith(INJECTED):
            continue
        known = _assigned(parameters)
        for name in _assigned(added):
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(known)}"
                raise ValueError(f"this notebook has no parameter {name!r}: {hint}")


def _assigned(source: str) -> list[str]:
    """The names that a cell of plain assignments gives values to."""
    assignments = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return [name.id for node in assignments for name in node.targets if isinstance(name, ast.Name)]


def in_words(values: pd.Series, unit: str = " dB", digits: int = 1) -> str:
    """Values and their labels as Markdown, for a sentence: "18.7 dB (`desk/lin-cae`), 4.0 dB (`stft`)"."""
    return ", ".join(f"{value:.{digits}f}{unit} (`{label}`)" for label, value in values.items())
