"""Reads files of ``torch.save`` as data: no class or function that a file names is imported or called.

Checkpoints of training scripts often contain more than tensors: an ``argparse.Namespace``, a NumPy number, a path, a
configuration object. While the file is read, the name of each such class is bound to an inert class
(``torch.serialization.safe_globals``), so that the tensors can be loaded. The file is checked before it is loaded: the
declared sizes must fit the file's size.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Self

import torch

MAX_PICKLE_BYTES: Final = 16 << 20
"""Largest size of the pickled part; about 200 bytes per tensor are usual."""
MAX_OPERATIONS: Final = 4_000_000
MAX_DEPTH: Final = 1000
_SMALL_BYTES: Final = 64 << 20
_MAX_EXPANSION: Final = 4
"""Largest ratio of declared size to file size above ``_SMALL_BYTES``; ``torch.save`` does not compress."""
_WINDOW: Final = 16
_LEGACY_PICKLES: Final = 5
"""Number of pickles in the legacy format: magic number, protocol, system information, objects, storage keys."""
_LEGACY_MAGIC: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_FORBIDDEN_MODULES: Final = frozenset({
    "os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "ctypes", "importlib", "runpy", "pty", "commands",
    "code", "webbrowser", "pickle", "marshal", "types", "operator", "timeit", "pdb", "bdb",
})  # fmt: skip
_HARMLESS_BUILTINS: Final = frozenset({
    "set", "frozenset", "complex", "slice", "range", "object", "int", "float", "str", "list", "dict", "tuple", "bool",
    "bytes", "getattr", "type",
})  # fmt: skip


class CheckpointError(ValueError):
    """A file cannot be read; the message continues a sentence that starts with the file's name."""


class StandIn:
    """An inert object that replaces an object of another class; ignores all arguments."""

    def __new__(cls, *_args: object, **_options: object) -> Self:
        """Ignore the arguments."""
        return object.__new__(cls)

    def __init__(self, *_args: object, **_options: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


def class_name(value: object) -> str:
    """Return the name of a value's class; for a ``StandIn``, the name of the class that it replaces."""
    return type(value).__qualname__ if isinstance(value, StandIn) else type(value).__name__


def read_checkpoint(path: Path) -> Any:  # noqa: ANN401 - a file may hold anything
    """Return the content of a ``.pth`` or ``.pt`` file; unknown objects become ``StandIn``.

    Raises:
        CheckpointError: the file has another format, declares more data than it contains, or uses a name that weights
            do not need.
        pickle.UnpicklingError, RuntimeError and others: the file is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        names = set(_checked_names(file, path, size))
        _refuse_forbidden(names)
        return _load(file, names)


def _checked_names(file: IO[bytes], path: Path, size: int) -> Iterator[str]:
    """Yield every class and function name in the file's pickles; check the declared sizes."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        if file.read(len(_LEGACY_MAGIC)) != _LEGACY_MAGIC:
            raise CheckpointError("it is neither a file of torch.save nor a safetensors file; use one of these")
        file.seek(0)
        for _ in range(_LEGACY_PICKLES):
            yield from _names_in(file, size)
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if (description := _other_archive([entry.filename for entry in entries])) is not None:
            raise CheckpointError(description)
        declared = check_declared(entries, size)
        (pickled, *_) = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if pickled.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"its objects take {pickled.file_size >> 20} MiB; the limit is {MAX_PICKLE_BYTES >> 20} MiB; "
                "save net.state_dict() alone"
            )
        with archive.open(pickled) as inner:
            yield from _names_in(inner, max(size, declared))


def check_declared(entries: Iterable[zipfile.ZipInfo], size: int) -> int:
    """Return the unpacked size in bytes of a zip archive of ``size`` bytes.

    Raises:
        CheckpointError: the unpacked size exceeds the limit for model files.
    """
    declared = sum(entry.file_size for entry in entries)
    if declared > max(_SMALL_BYTES, _MAX_EXPANSION * size):
        raise CheckpointError(
            f"it has {max(1, size >> 20)} MiB but would unpack to {declared >> 20} MiB, which no model file does; get "
            "the file again from its source"
        )
    return declared


def _other_archive(names: list[str]) -> str | None:
    """Describe a zip archive that is no checkpoint, with the remedy; None for a checkpoint."""
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return (
            "it is a TorchScript program; code in a file is never run; save its weights in Python: "
            "torch.save(torch.jit.load(FILE, 'cpu').state_dict(), 'weights.pth')"
        )
    if any(name.startswith(("models/", "data/weights/")) for name in inner) or "archive_format" in inner:
        return "it is a program of torch.export; if `run.py export` wrote it, use --model FILE"
    if "model.weights.h5" in names or {"config.json", "metadata.json"} <= set(names):
        return "it is a Keras model; only PyTorch networks are supported"
    if any(name.endswith(".npy") for name in names):
        return "it is a NumPy archive; use a PyTorch state dict"
    if not any(name.endswith("data.pkl") for name in names):
        return "it is a zip archive without a checkpoint; unpack it, and use the file with the weights"
    return None


def _names_in(file: IO[bytes], size: int) -> Iterator[str]:
    """Parse one pickle without executing it; yield the names of its classes and functions."""
    depth = 0
    recent: deque[int] = deque(maxlen=_WINDOW)
    for count, (code, argument, _) in enumerate(pickletools.genops(file)):
        if code.name == "MARK":
            depth += 1
            recent.clear()
        elif code.name in {"TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS", "ADDITEMS", "POP_MARK", "FROZENSET"}:
            depth -= 1
        elif isinstance(argument, int) and not isinstance(argument, bool) and "PUT" not in code.name:
            recent.append(argument)
        elif code.name == "BINPERSID" and any(number > size for number in recent):
            raise CheckpointError(
                f"it is damaged: it declares a tensor of {max(recent)} numbers, but has only {size} bytes; download "
                "it again"
            )
        elif code.name in {"GLOBAL", "INST"}:
            module, _, name = str(argument).partition(" ")
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            yield f"{module}.{name}"
        if count > MAX_OPERATIONS or depth > MAX_DEPTH:
            raise CheckpointError(
                "it has too many or too deeply nested objects for a checkpoint; save net.state_dict() alone"
            )


def _refuse_forbidden(names: set[str]) -> None:
    for name in sorted(names):
        module, _, last = name.rpartition(".")
        root = module.partition(".")[0]
        if root in _FORBIDDEN_MODULES or (root == "builtins" and last not in _HARMLESS_BUILTINS):
            raise CheckpointError(
                f"it calls {name}, which weights do not need; code in a file is never run; do not trust this file"
            )


def _load(file: IO[bytes], names: set[str]) -> Any:  # noqa: ANN401 - a file may hold anything
    """Load with inert classes for ``names``, except the classes that torch allows.

    If the pickle fills an object like a mapping or a list, its class is bound to that type and the file is read again.
    """
    kinds: dict[str, type] = {name: _stand_in(name) for name in names}
    kinds |= {name: _Mapping for name in names if name == "collections.defaultdict"}
    for _ in range(len(names) + 1):
        file.seek(0)
        try:
            with torch.serialization.safe_globals([(kind, name) for name, kind in kinds.items()]), _quiet():
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as reason:
            wrong = re.search(r"(SETITEMS?|append).*but got <class '(.*)'>", str(reason))
            name = next((n for n, kind in kinds.items() if wrong and f"{kind.__module__}.{n}" == wrong[2]), None)
            if wrong is None or name is None:
                raise
            kinds[name] = _List if wrong[1] == "append" else _Mapping
    raise CheckpointError("its objects are inconsistent; save net.state_dict() alone")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's warnings about a file's pickle protocol; errors raise an exception anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _stand_in(name: str) -> type[StandIn]:
    return type(name, (StandIn,), {"__module__": __name__, "__qualname__": name})


class _Mapping(StandIn):
    """Creates an ``OrderedDict``, the only mapping with attributes that torch lets a pickle fill."""

    def __new__(cls, *args: object, **_options: object) -> Any:  # noqa: ANN401, ARG004 - not its own class
        return OrderedDict()


class _List(list[Any]):
    """A list that ignores its arguments and state."""

    def __init__(self, *_args: object, **_options: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""
