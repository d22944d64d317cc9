"""State dicts from files into networks: what fits is loaded, what does not is refused in words.

A training wrapper's envelope (``{"state_dict": ...}``) and prefix (``module.``, ``model.``) are taken off, another
class count is read from the last layer, and the auxiliary classifiers of training time are left out. Files are read as
data only: see ``engine.checkpoints``; safetensors otherwise. ``engine.fitting`` brings older names and other heads and
stems into the network's form.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from torch import Tensor, nn

from engine.checkpoints import CheckpointError, StandIn, class_name, read_checkpoint
from engine.fitting import (
    expanded_binary,
    expanded_stem,
    fitted_head,
    hidden_head,
    no_head,
    official_names,
    other_stem,
    quantized,
)
from engine.models.file_sniffing import is_safetensors, read_head, why_not_weights
from pipeline.errors import ModelError

log = logging.getLogger(__name__)

_ENVELOPES: Final = (
    "state_dict", "model_state_dict", "model_state", "state_dict_ema", "ema_state_dict", "model_ema", "params_ema",
    "ema", "model", "net", "network", "module", "params", "weights", "state",
)  # fmt: skip
_NEVER_WEIGHTS: Final = frozenset({
    "optimizer", "optimizer_state_dict", "optimizer_states", "optim", "opt", "lr_scheduler", "scheduler", "scaler",
    "amp", "amp_scaler", "loops", "callbacks", "rng_state",
})  # fmt: skip
_DEEPEST: Final = 8
_TRAINING_ONLY = ("aux1.", "aux2.", "AuxLogits.")
_NAMED = 4
"""How many wrong keys a message names."""

StateDict = dict[str, Tensor]


def read_state(path: Path) -> StateDict:
    """Return the tensors in a ``.pth``, ``.pt`` or ``.safetensors`` file, by name, on the CPU.

    Raises:
        ModelError: there is no such file, it is none of these, or it holds no state dict.
    """
    if not path.is_file():
        raise ModelError(f"weights {str(path)!r}: there is no such file; give the path of a state dict")
    try:
        begin = read_head(path)
    except OSError as reason:
        raise ModelError(f"weights {str(path)!r}: cannot be read ({reason.strerror}); see to its rights") from reason
    if (told := why_not_weights(begin)) is not None:
        raise ModelError(f"weights {str(path)!r}: {told}")
    try:
        if is_safetensors(begin) or (path.suffix == ".safetensors" and not begin.startswith(b"PK")):
            return _read_safetensors(path)
        held = read_checkpoint(path)
    except ModelError:
        raise
    except CheckpointError as reason:
        raise ModelError(f"weights {str(path)!r}: not readable as a state dict: {reason}") from reason
    except Exception as reason:  # torch and safetensors raise whatever their many stages raise
        first = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
        raise ModelError(
            f"weights {str(path)!r}: not readable as a state dict ({first[:200]}); save one with "
            "torch.save(net.state_dict(), FILE) or safetensors"
        ) from reason
    state = _unwrapped(held)
    if state is None:
        raise ModelError(f"weights {str(path)!r}: {_no_state(held)}")
    _check_tensors(state, path)
    return state


def _no_state(held: object) -> str:
    """Say what a file holds in place of a state dict, and the cure."""
    inside = held.values() if isinstance(held, Mapping) else ()
    objects = [one for one in (held, *inside) if isinstance(one, StandIn)]
    if objects:
        return (
            f"holds an object of {class_name(objects[0])}, perhaps a whole network, and code is not run here; save its "
            "weights where that class is: torch.save(net.state_dict(), FILE)"
        )
    kind = class_name(held)
    return f"holds a {kind} and no state dict (a map of names to tensors); save net.state_dict()"


def _check_tensors(state: StateDict, path: Path) -> None:
    """Refuse tensors that claim more numbers than the file holds, or hold none."""
    for name, value in state.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ModelError(
                f"weights {str(path)!r}: {name!r} is no plain tensor (sparse, quantised, without data, or expanded "
                "from fewer numbers); save net.state_dict() of the float network"
            )


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


def _unwrapped(held: object, depth: int = 0) -> StateDict | None:
    """Find the state dict in what a training script saved: by the usual names, else the mapping with most tensors."""
    if not isinstance(held, Mapping) or depth > _DEEPEST:
        return None
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    for key in _ENVELOPES:
        inner = held.get(key)
        if isinstance(inner, Mapping) and (found := _unwrapped(inner, depth + 1)):
            return found
    others = [
        found
        for name, inner in held.items()
        if name not in _NEVER_WEIGHTS and isinstance(inner, Mapping) and (found := _unwrapped(inner, depth + 1))
    ]
    largest = max([tensors, *others], key=len)
    return largest or None


@dataclass(frozen=True)
class Fitted:
    """A network with weights of a file in it, and what had to be read from the weights' shapes."""

    net: nn.Module
    greyscale: bool = False
    """The weights take one channel: the network was given their form for RGB, which reads the luminance."""
    binary: bool = False
    """The weights give one score: the network gives two, of which softmax makes what a sigmoid makes of the one."""


def load_weights(build: Callable[[int | None], nn.Module], state: StateDict, name: str, path: Path) -> nn.Module:
    """Return the network of ``fit_weights``."""
    return fit_weights(build, state, name, path).net


def fit_weights(build: Callable[[int | None], nn.Module], state: StateDict, name: str, path: Path) -> Fitted:
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
    whole_file = state
    state = official_names(without_prefix(state, set(expected)), net)
    state, head = fitted_head(state, whole_file, net, path)
    if head is not None:
        net.set_submodule(head.name, head.made())
        expected = net.state_dict()
    state, greyscale = expanded_stem(state, net)
    count = _class_count(state, expected)
    state, binary = expanded_binary(state, expected, count)
    if binary and head is not None:
        net.set_submodule(head.name, head.made(2))
    elif binary or count is not None:
        net = build(2 if binary else count)
    expected = net.state_dict()
    if greyscale and hasattr(net, "transform_input"):
        setattr(net, "transform_input", False)  # noqa: B010 - only some networks have it, and mypy knows none
    state = {key: value for key, value in state.items() if key in expected or not key.startswith(_TRAINING_ONLY)}
    _refuse_unfit(state, expected, net, name, path)
    whole = {key: state[key].to(value.dtype) if key in state else value for key, value in expected.items()}
    _check_numbers(whole, path)
    put_into(net, whole)
    return Fitted(net, greyscale=greyscale, binary=binary)


def put_into(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict of the network's own form into it.

    Beside tensors a state dict carries the version of its form (``_metadata``), which files and plain dicts lose and
    some networks (MNASNet) ask for; names and shapes of this form have the network's own version.
    """
    whole = net.state_dict()
    for key in whole:
        whole[key] = state[key]
    net.load_state_dict(whole)


def _refuse_unfit(state: StateDict, expected: Mapping[str, Tensor], net: nn.Module, name: str, path: Path) -> None:
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
        wrong = len(missing) + len(misshapen)
        hint = other_stem(state, net) or (hidden_head(state, net) if wrong * 4 < len(expected) else "")
        hint = hint or no_head(state, net) or quantized(foreign) or "name the right --model"
        raise ModelError(f"weights {str(path)!r} do not fit {name}: {'; '.join(told)}; {hint}")


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
