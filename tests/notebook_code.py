"""Code of the committed notebooks, as a reader sees it."""

import ast
from pathlib import Path
from typing import Any

import nbformat

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def defined_in(notebook: str, function: str, names: dict[str, Any]) -> dict[str, Any]:
    """`names`, and what the cell of a notebook that defines `function` defines and assigns before its first
    other statement."""
    cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    (tree,) = (ast.parse(c.source) for c in cells if c.cell_type == "code" and f"def {function}(" in c.source)
    last = max(k for k, node in enumerate(tree.body) if isinstance(node, ast.FunctionDef))
    tree.body = tree.body[: last + 1]
    exec(compile(tree, notebook, "exec"), names)
    return names
