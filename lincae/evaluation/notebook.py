"""What papermill leaves to a notebook: it only warns of a parameter that does not exist."""

import ast
import difflib
import itertools
from collections.abc import Sequence

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
