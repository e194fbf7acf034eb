"""What a function or an object is made of, as a hash.

It looks at what Python shows: the code of functions, their defaults, the variables of enclosing functions and
the global names that they use, the weights and attributes of modules and objects. Code of installed packages
counts by its name and version. What an extension hides cannot be told.
"""

import dis
import functools
import hashlib
import importlib.metadata
import logging
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, Path)
INSTALLED = (
    *(sysconfig.get_path(key) for key in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parents[1]),
    "<frozen",
)
WRAPPED = ("_orig_mod", "_torchdynamo_orig_callable")
"""Where torch.compile keeps what it was given."""


class UnknownContentError(ValueError):
    """Something whose content cannot be told; the message names its type."""


def content_hash(value: Any) -> str:
    """A sha256 (hex) that is equal for equal code and values, in another process too. Raises
    UnknownContentError for what holds an object that Python cannot look into."""
    digest = hashlib.sha256()
    _add(value, digest, {})
    return digest.hexdigest()


def _add(value: Any, digest: Any, seen: dict[int, tuple[int, Any]]) -> None:
    digest.update(f"<{type(value).__module__}.{type(value).__qualname__}>".encode())
    if isinstance(value, PLAIN):
        digest.update(repr(value).encode())
    elif isinstance(value, torch.Tensor | np.ndarray | np.generic):
        array = torch.as_tensor(value).detach().cpu().contiguous().numpy()
        digest.update(f"{value.dtype}{array.shape}".encode() + array.tobytes())
    elif isinstance(value, list | tuple):
        digest.update(str(len(value)).encode())
        for part in value:
            _add(part, digest, seen)
    elif isinstance(value, set | frozenset):
        _add(sorted(value, key=repr), digest, seen)
    elif isinstance(value, Mapping):
        _add(list(value.items()), digest, seen)
    elif id(value) in seen:
        digest.update(str(seen[id(value)][0]).encode())
    else:
        # The value is kept beside its number, so that no other object takes its id meanwhile.
        seen[id(value)] = (len(seen), value)
        _add(_parts(value), digest, seen)


def _parts(value: Any) -> list[Any]:
    """What there is to say of a function, a class, a module of either kind or another object."""
    for name in WRAPPED:
        if name in getattr(value, "__dict__", {}):
            return [vars(value)[name]]
    for kinds, parts in PARTS:
        if isinstance(value, kinds):
            return parts(value)
    return _object_parts(value)


def _function_parts(function: types.FunctionType) -> list[Any]:
    code = function.__code__
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    parts = [function.__defaults__, function.__kwdefaults__, cells]
    if code.co_filename.startswith(INSTALLED):
        return [function.__qualname__, _version(function.__module__ or ""), *parts]
    known = function.__globals__
    return [_code_parts(code), {name: known[name] for name in sorted(_names_of(code) & set(known))}, *parts]


def _code_parts(code: types.CodeType) -> list[Any]:
    constants = [_code_parts(part) if isinstance(part, types.CodeType) else part for part in code.co_consts]
    return [code.co_code, code.co_names, constants]


def _names_of(code: types.CodeType) -> set[str]:
    """The global names that some code and the functions within it use."""
    names = {
        step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            names |= _names_of(part)
    return names


def _class_parts(kind: type) -> list[Any]:
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if kind.__module__ in sys.builtin_module_names or (file and file.startswith(INSTALLED)):
        return [kind.__qualname__, _version(kind.__module__)]
    described = (types.FunctionType, classmethod, staticmethod, property, *PLAIN)
    own = {name: part for name, part in vars(kind).items() if isinstance(part, described)}
    return [kind.__qualname__, kind.__bases__, own]


def _module_parts(module: types.ModuleType) -> list[Any]:
    file = getattr(module, "__file__", None)
    known = file is None or file.startswith(INSTALLED)
    return [module.__name__, _version(module.__name__) if known else Path(file).read_bytes()]


def _builtin_parts(function: types.BuiltinFunctionType) -> list[Any]:
    owner = function.__self__
    return [function.__qualname__, None if isinstance(owner, types.ModuleType) else owner]


def _object_parts(value: Any) -> list[Any]:
    if callable(getattr(value, "fingerprint", None)):
        return [value.fingerprint()]
    if isinstance(value, torch.jit.ScriptModule):
        return [str(value.inlined_graph), dict(value.state_dict())]
    if not hasattr(value, "__dict__"):
        raise UnknownContentError(f"a {type(value).__name__} has no content that can be told")
    if not isinstance(value, torch.nn.Module):
        return [type(value), vars(value)]

    attributes = {}
    for name, part in vars(value).items():
        if name.startswith("_forward_"):
            # Hooks by a number that counts all hooks of the process: it says nothing of the module.
            attributes[name] = list(part.values())
        elif name != "training" and not name.endswith(("hook", "hooks")):
            attributes[name] = part
    return [type(value), attributes]


PARTS = (
    (types.FunctionType, _function_parts),
    (types.BuiltinFunctionType, _builtin_parts),
    (types.MethodType, lambda method: [method.__func__, method.__self__]),
    (classmethod | staticmethod, lambda method: [method.__func__]),
    (property, lambda accessor: [accessor.fget, accessor.fset]),
    (functools.partial, lambda partial: [partial.func, partial.args, partial.keywords]),
    (type, _class_parts),
    (types.ModuleType, _module_parts),
    (logging.Logger, lambda logger: [logger.name]),
)
"""The kinds of values that have parts of their own, and how to find those."""


@functools.cache
def _version(module: str) -> str:
    package = module.partition(".")[0]
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return sys.version
