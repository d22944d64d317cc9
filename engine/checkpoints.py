"""Reads what ``torch.save`` wrote as data: tensors, numbers and words. Nothing that a file names is imported or called.

Training scripts put more than tensors into a checkpoint: an ``argparse.Namespace``, a NumPy number, a path, a
configuration class. Each such name is bound to an inert stand-in while the file is read
(``torch.serialization.safe_globals``), so that the tensors beside it can be had. A file is examined before it is
loaded: what it declares is bounded by what it holds.
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
"""Of the pickled part: about 200 bytes a tensor are usual."""
MAX_OPERATIONS: Final = 4_000_000
MAX_DEPTH: Final = 1000
_SMALL_BYTES: Final = 64 << 20
_MAX_EXPANSION: Final = 4
"""An archive may declare so many times its own size, or ``_SMALL_BYTES``. ``torch.save`` compresses nothing."""
_WINDOW: Final = 16
_LEGACY_PICKLES: Final = 5
"""Magic number, protocol, machine, objects, keys of the storages."""
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
    """A file that is not read; the message is a part of a sentence."""


class StandIn:
    """An object of a class that is not here: it takes what it is given and does nothing."""

    def __new__(cls, *_args: object, **_options: object) -> Self:
        """Ignore the arguments."""
        return object.__new__(cls)

    def __init__(self, *_args: object, **_options: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


def class_name(held: object) -> str:
    """Return the name of a value's class, as the file gives it."""
    return type(held).__qualname__ if isinstance(held, StandIn) else type(held).__name__


def read_checkpoint(path: Path) -> Any:  # noqa: ANN401 - a file may hold anything
    """Return what a ``.pth`` or ``.pt`` file holds; objects of foreign classes are ``StandIn``, mappings plain dicts.

    Raises:
        CheckpointError: it is another kind of file, declares more than it holds, or names what no weights need.
        pickle.UnpicklingError, RuntimeError and others: it is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        names = set(_examined(file, path, size))
        _refuse_forbidden(names)
        return _loaded(file, names)


def _examined(file: IO[bytes], path: Path, size: int) -> Iterator[str]:
    """Give every name that the file's pickles use, after checking what they declare."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        if file.read(len(_LEGACY_MAGIC)) != _LEGACY_MAGIC:
            raise CheckpointError("it is neither a file of torch.save nor a safetensors file; give one")
        file.seek(0)
        for _ in range(_LEGACY_PICKLES):
            yield from _names_in(file, size)
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if (told := _other_archive([entry.filename for entry in entries])) is not None:
            raise CheckpointError(told)
        declared = check_declared(entries, size)
        (pickled, *_) = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if pickled.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"its objects take {pickled.file_size >> 20} MiB, more than the {MAX_PICKLE_BYTES >> 20} allowed; "
                "save net.state_dict() alone"
            )
        with archive.open(pickled) as inner:
            yield from _names_in(inner, max(size, declared))


def check_declared(entries: Iterable[zipfile.ZipInfo], size: int) -> int:
    """Return how many bytes a zip archive of ``size`` bytes unpacks to; CheckpointError where no model does so."""
    declared = sum(entry.file_size for entry in entries)
    if declared > max(_SMALL_BYTES, _MAX_EXPANSION * size):
        raise CheckpointError(
            f"it declares {declared >> 20} MiB in a file of {max(1, size >> 20)} MiB, more than models do; take the "
            "file from where it was made"
        )
    return declared


def _other_archive(names: list[str]) -> str | None:
    """Return what a zip archive is that ``torch.load`` does not read; None for a checkpoint."""
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return (
            "it is a TorchScript program, and code is not run here; take its weights in Python: "
            "torch.save(torch.jit.load(FILE, 'cpu').state_dict(), 'weights.pth')"
        )
    if any(name.startswith(("models/", "data/weights/")) for name in inner) or "archive_format" in inner:
        return "it is a program of torch.export; if `run.py export` wrote it, give it by --model"
    if "model.weights.h5" in names or {"config.json", "metadata.json"} <= set(names):
        return "it is a Keras model; only PyTorch's networks are explained here"
    if any(name.endswith(".npy") for name in names):
        return "it is a NumPy archive; give a state dict of PyTorch's"
    if not any(name.endswith("data.pkl") for name in names):
        return "it is a zip archive without a checkpoint in it; unpack it, and give the file of weights"
    return None


def _names_in(file: IO[bytes], size: int) -> Iterator[str]:
    """Walk through one pickle without running it, and give the names of classes and functions it uses."""
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
                f"it is damaged: a tensor of {max(recent)} numbers in a file of {size} bytes; fetch it again"
            )
        elif code.name in {"GLOBAL", "INST"}:
            module, _, name = str(argument).partition(" ")
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            yield f"{module}.{name}"
        if count > MAX_OPERATIONS or depth > MAX_DEPTH:
            raise CheckpointError(
                "its objects are nested deeper, or are more, than those beside weights; save net.state_dict() alone"
            )


def _refuse_forbidden(names: set[str]) -> None:
    for name in sorted(names):
        module, _, last = name.rpartition(".")
        root = module.partition(".")[0]
        if root in _FORBIDDEN_MODULES or (root == "builtins" and last not in _HARMLESS_BUILTINS):
            raise CheckpointError(f"it calls {name}, which no weights need, and code is not run here; do not trust it")


def _loaded(file: IO[bytes], names: set[str]) -> Any:  # noqa: ANN401 - a file may hold anything
    """Load with stand-ins for ``names``; torch's own list of harmless names goes before them.

    A stand-in that turns out to be a mapping or a list is given such a type, and the file is read again.
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
    raise CheckpointError("its objects do not fit together; save net.state_dict() alone")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's warnings about a file's protocol back: what cannot be read is said anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _stand_in(name: str) -> type[StandIn]:
    return type(name, (StandIn,), {"__module__": __name__, "__qualname__": name})


class _Mapping(StandIn):
    """Is an ``OrderedDict`` instead: the one mapping with attributes that torch lets a pickle fill."""

    def __new__(cls, *args: object, **_options: object) -> Any:  # noqa: ANN401, ARG004 - not its own class
        return OrderedDict()


class _List(list[Any]):
    """Takes what is appended."""

    def __init__(self, *_args: object, **_options: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""
