"""State dicts from files into networks: what fits is loaded, what does not is refused in words.

A training wrapper's envelope (``{"state_dict": ...}``) and prefix (``module.``, ``model.``) are taken off, another
class count is read from the last layer, and the auxiliary classifiers of training time are left out. Files are read as
data only: ``weights_only`` for pickles, safetensors otherwise.
"""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.what_file import begins_like_safetensors, first_bytes, no_weights
from pipeline.errors import ModelError

log = logging.getLogger(__name__)

_ENVELOPES = ("state_dict", "model_state_dict", "model_state", "state_dict_ema", "model_ema", "ema", "model", "net")
_TRAINING_ONLY = ("aux1.", "aux2.", "AuxLogits.")
_NAMED = 4
"""How many wrong keys a message names."""

StateDict = dict[str, Tensor]
_UNREADABLE = (
    SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError,
    AttributeError, TypeError,
)  # fmt: skip


def read_state(path: Path) -> StateDict:
    """Return the tensors in a ``.pth``, ``.pt`` or ``.safetensors`` file, by name, on the CPU.

    Raises:
        ModelError: there is no such file, it is none of these, or it holds no state dict.
    """
    if not path.is_file():
        raise ModelError(f"weights {str(path)!r}: there is no such file; give the path of a state dict")
    try:
        begin = first_bytes(path)
        if (told := no_weights(begin)) is not None:
            raise ModelError(f"weights {str(path)!r}: {told}")
        if begins_like_safetensors(begin) or (path.suffix == ".safetensors" and not begin.startswith(b"PK")):
            return _read_safetensors(path)
        with path.open("rb") as file:  # by a path torch goes by the name
            held = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as reason:
        first = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
        if "nsupported" in str(reason) and isinstance(reason, pickle.UnpicklingError):
            first = "it holds objects of a program beside tensors, perhaps a whole network, and code is not run here"
        raise ModelError(
            f"weights {str(path)!r}: not readable as a state dict ({first[:160]}); save one with "
            "torch.save(net.state_dict(), FILE) or safetensors"
        ) from reason
    state = _unwrapped(held)
    if state is None:
        raise ModelError(
            f"weights {str(path)!r}: holds a {type(held).__name__} and no state dict (a map of names to tensors); "
            "save net.state_dict()"
        )
    return state


def _read_safetensors(path: Path) -> StateDict:
    with safe_open(str(path), framework="pt") as file:
        told = dict(file.metadata() or {})
        if told.get("format", "").startswith("recipro-stream") and (until := told.get("until")):
            raise ModelError(
                f"weights {str(path)!r}: are those of {told.get('model')} ended with {until!r}, and fit no whole one; "
                f"the file knows its own network: give it by --model {path}"
            )
        if told.get("format", "").startswith("recipro-stream"):
            log.warning("%s knows its own network, classes and input size: --model %s would use them", path, path)
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping


def _unwrapped(held: object) -> StateDict | None:
    """Find the state dict in what a training script saved."""
    if not isinstance(held, Mapping):
        return None
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    for key in _ENVELOPES:
        inner = held.get(key)
        if isinstance(inner, Mapping) and (found := _unwrapped(inner)):
            return found
    return tensors or None


def load_into(build: Callable[[int | None], nn.Module], state: StateDict, name: str, path: Path) -> nn.Module:
    """Return the network that ``build`` makes, with these weights in it.

    Args:
        build: makes the network for a number of classes; None = its own number.
        state: tensors by name.
        name: the network's name, for messages.
        path: the file's, for messages.

    Raises:
        ModelError: they do not fit: which keys, and what to do.
    """
    net = build(None)
    expected = net.state_dict()
    state = without_prefix(state, set(expected))
    count = _class_count(state, expected)
    if count is not None:
        net = build(count)
        expected = net.state_dict()
    state = {key: value for key, value in state.items() if key in expected or not key.startswith(_TRAINING_ONLY)}
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    told = [
        f"{len(keys)} {what} ({', '.join(keys[:_NAMED])}{', ...' if len(keys) > _NAMED else ''})"
        for what, keys in (("missing", missing), ("unknown", foreign), ("of another shape", misshapen))
        if keys
    ]
    if told:
        raise ModelError(f"weights {str(path)!r} do not fit {name}: {'; '.join(told)}; name the right --model")
    whole = {key: state[key].to(value.dtype) if key in state else value for key, value in expected.items()}
    _check_numbers(whole, path)
    net.load_state_dict(whole, assign=False)
    return net


def _check_numbers(state: StateDict, path: Path) -> None:
    """Refuse weights that are no numbers: every score would be NaN, and every map empty."""
    wrong = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if wrong:
        named = f"{', '.join(wrong[:_NAMED])}{', ...' if len(wrong) > _NAMED else ''}"
        raise ModelError(
            f"weights {str(path)!r}: {len(wrong)} of {len(state)} tensors hold NaN or infinity ({named}): a training "
            "that ran away, or a damaged file; take an earlier one, or train again with a lower learning rate"
        )


def without_prefix(state: StateDict, expected: set[str]) -> StateDict:
    """Take off the prefix a training wrapper put before every name, if there is one."""
    if not expected or len(expected & set(state)) * 2 >= len(expected):
        return state
    prefixes = Counter(
        key[: -len(known)] for known in sorted(expected)[:64] for key in state if key.endswith("." + known)
    )
    if not prefixes:
        return state
    prefix = prefixes.most_common(1)[0][0]
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _class_count(state: StateDict, expected: Mapping[str, Tensor]) -> int | None:
    """Return the class count of the weights if only the last layer's rows differ from the network's, else None."""
    known = {key for key in expected if key in state}
    wrong = [key for key in known if state[key].shape != expected[key].shape]
    pairs = {(expected[key].shape[0], state[key].shape[0]) for key in wrong if expected[key].ndim}
    same_tail = all(state[key].shape[1:] == expected[key].shape[1:] for key in wrong)
    if len(wrong) in {1, 2} and len(pairs) == 1 and same_tail:
        return int(next(iter(pairs))[1])
    return None
