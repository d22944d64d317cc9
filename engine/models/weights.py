"""Loads state dicts from files into networks, and reports what does not fit.

Containers of training scripts (``{"state_dict": ...}``) and prefixes (``module.``, ``model.``) are removed, the number
of classes is read from the last layer, and auxiliary classifiers for training are ignored. Code in a file is never run:
see ``engine.checkpoints``. ``engine.fitting`` converts old names, other heads and other first convolutions.
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

_CONTAINER_KEYS: Final = (
    "state_dict", "model_state_dict", "model_state", "state_dict_ema", "ema_state_dict", "model_ema", "params_ema",
    "ema", "model", "net", "network", "module", "params", "weights", "state",
)  # fmt: skip
_NEVER_WEIGHTS: Final = frozenset({
    "optimizer", "optimizer_state_dict", "optimizer_states", "optim", "opt", "lr_scheduler", "scheduler", "scaler",
    "amp", "amp_scaler", "loops", "callbacks", "rng_state",
})  # fmt: skip
_MAX_DEPTH: Final = 8
_TRAINING_ONLY = ("aux1.", "aux2.", "AuxLogits.")
_MAX_LISTED = 4
"""Maximum number of keys in an error message."""

StateDict = dict[str, Tensor]


def read_state(path: Path) -> StateDict:
    """Read the tensors of a ``.pth``, ``.pt`` or ``.safetensors`` file by name, on the CPU.

    Raises:
        ModelError: the file is missing, has another format, or has no state dict.
    """
    if not path.is_file():
        raise ModelError(f"weights {str(path)!r}: no such file; use the path of a state dict")
    try:
        begin = read_head(path)
    except OSError as reason:
        raise ModelError(
            f"weights {str(path)!r}: cannot be read ({reason.strerror}); check its permissions"
        ) from reason
    if (description := why_not_weights(begin)) is not None:
        raise ModelError(f"weights {str(path)!r}: {description}")
    try:
        if is_safetensors(begin) or (path.suffix == ".safetensors" and not begin.startswith(b"PK")):
            return _read_safetensors(path)
        content = read_checkpoint(path)
    except ModelError:
        raise
    except CheckpointError as reason:
        raise ModelError(f"weights {str(path)!r}: not readable as a state dict: {reason}") from reason
    except Exception as reason:  # torch and safetensors have many kinds of exceptions
        first = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
        raise ModelError(
            f"weights {str(path)!r}: not readable as a state dict ({first[:200]}); save one with "
            "torch.save(net.state_dict(), FILE) or safetensors"
        ) from reason
    state = _find_state(content)
    if state is None:
        raise ModelError(f"weights {str(path)!r}: {_no_state(content)}")
    _check_tensors(state, path)
    return state


def _no_state(content: object) -> str:
    """Describe file content that is not a state dict, with the remedy."""
    inside = content.values() if isinstance(content, Mapping) else ()
    objects = [value for value in (content, *inside) if isinstance(value, StandIn)]
    if objects:
        return (
            f"contains an object of {class_name(objects[0])}, perhaps a whole network; code in a file is never run; "
            "save its weights where that class is installed: torch.save(net.state_dict(), FILE)"
        )
    kind = class_name(content)
    return f"contains a {kind}, but no state dict (a map of names to tensors); save net.state_dict()"


def _check_tensors(state: StateDict, path: Path) -> None:
    """Raise ModelError for a tensor that has more values than its storage, or has no data."""
    for name, value in state.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ModelError(
                f"weights {str(path)!r}: {name!r} is not a plain tensor (sparse, quantised, without data, or expanded "
                "from fewer values); save net.state_dict() of the float network"
            )


def _read_safetensors(path: Path) -> StateDict:
    with safe_open(str(path), framework="pt") as file:
        metadata = dict(file.metadata() or {})
        is_checkpoint = metadata.get("format", "").startswith("recipro-stream")
        if is_checkpoint and (last_layer := metadata.get("until")):
            raise ModelError(
                f"weights {str(path)!r}: belong to {metadata.get('model')} truncated at {last_layer!r} and do not fit "
                f"the full network; load the file as a checkpoint: --model {path}"
            )
        if is_checkpoint:
            log.warning(
                "%s is a checkpoint, of which --weights uses only the weights; to use its network, classes and input "
                "size too, load it by --model %s", path, path,
            )  # fmt: skip
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping


def _find_state(content: object, depth: int = 0) -> StateDict | None:
    """Find the state dict in a training script's file: under a common key, or with most tensors."""
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return None
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for key in _CONTAINER_KEYS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and (state := _find_state(inner, depth + 1)):
            return state
    others = [
        state
        for name, inner in content.items()
        if name not in _NEVER_WEIGHTS and isinstance(inner, Mapping) and (state := _find_state(inner, depth + 1))
    ]
    largest = max([tensors, *others], key=len)
    return largest or None


@dataclass(frozen=True)
class Fitted:
    """A network with the weights of a file."""

    net: nn.Module
    greyscale: bool = False
    """True if the weights are for one channel; the first convolution is converted to read the luminance of RGB."""
    binary: bool = False
    """True if the weights have one score; the network has two scores, whose softmax equals the score's sigmoid."""


def load_weights(build: Callable[[int | None], nn.Module], state: StateDict, name: str, path: Path) -> nn.Module:
    """Build a network with weights, as ``fit_weights`` does; return only the network."""
    return fit_weights(build, state, name, path).net


def fit_weights(build: Callable[[int | None], nn.Module], state: StateDict, name: str, path: Path) -> Fitted:
    """Build a network and load weights into it.

    Args:
        build: builds the network for a number of classes; None: the default number.
        state: tensors by name.
        name: the network's name, for messages.
        path: the file, for messages.

    Raises:
        ModelError: the weights do not fit; the message lists the keys and the remedy.
    """
    net = build(None)
    expected = net.state_dict()
    whole_file = state
    state = official_names(without_prefix(state, set(expected)), net)
    state, head = fitted_head(state, whole_file, net, path)
    if head is not None:
        net.set_submodule(head.name, head.build())
        expected = net.state_dict()
    state, greyscale = expanded_stem(state, net)
    count = _class_count(state, expected)
    state, binary = expanded_binary(state, expected, count)
    if binary and head is not None:
        net.set_submodule(head.name, head.build(2))
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
    """Load tensors that have the names and shapes of the network.

    A state dict also contains the versions of its modules (``_metadata``), which some networks (MNASNet) require. Files
    and plain dicts do not contain them, so the network's own versions are used.
    """
    whole = net.state_dict()
    for key in whole:
        whole[key] = state[key]
    net.load_state_dict(whole)


def _refuse_unfit(state: StateDict, expected: Mapping[str, Tensor], net: nn.Module, name: str, path: Path) -> None:
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [
        f"{len(keys)} tensor{'s' * (len(keys) != 1)} {problem} "
        f"({', '.join(keys[:_MAX_LISTED])}{', ...' if len(keys) > _MAX_LISTED else ''})"
        for problem, keys in (("missing", missing), ("unknown", foreign), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        wrong = len(missing) + len(misshapen)
        hint = other_stem(state, net) or (hidden_head(state, net) if wrong * 4 < len(expected) else "")
        hint = hint or no_head(state, net) or quantized(foreign) or "use the right --model"
        raise ModelError(f"weights {str(path)!r} do not fit {name}: {'; '.join(problems)}; {hint}")


def _check_numbers(state: StateDict, path: Path) -> None:
    """Raise ModelError for weights with NaN or infinity, whose scores would be NaN and maps empty."""
    wrong = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if wrong:
        listed = f"{', '.join(wrong[:_MAX_LISTED])}{', ...' if len(wrong) > _MAX_LISTED else ''}"
        raise ModelError(
            f"weights {str(path)!r}: {len(wrong)} of {len(state)} tensors contain NaN or infinity ({listed}): the "
            "training diverged, or the file is damaged; use an earlier file, or train again with a lower learning rate"
        )


def without_prefix(state: StateDict, expected: set[str]) -> StateDict:
    """Remove the common prefix of a training wrapper, such as ``module.``, from all names."""
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
    """Return the weights' number of classes, if only the last layer's rows differ; else None."""
    known = {key for key in expected if key in state}
    wrong = [key for key in known if state[key].shape != expected[key].shape]
    pairs = {(expected[key].shape[0], state[key].shape[0]) for key in wrong if expected[key].ndim}
    same_tail = all(state[key].shape[1:] == expected[key].shape[1:] for key in wrong)
    if len(wrong) in {1, 2} and len(pairs) == 1 and same_tail:
        return int(next(iter(pairs))[1])
    return None
