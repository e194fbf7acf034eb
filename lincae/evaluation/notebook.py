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
        if added.startswith(INJECTED):
            known = assigned(parameters)
            unknown = [name for name in assigned(added) if name not in known]
            if unknown:
                raise ValueError("; ".join(_complaint(name, known) for name in unknown))


def assigned(source: str) -> list[str]:
    """The names that a cell of plain assignments gives values to."""
    names = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            names += [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return names


def _complaint(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(known)}"
    return f"this notebook has no parameter {name!r}: {hint}"
