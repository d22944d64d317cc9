"""ViT-ReciproCAM: heat maps for vision transformers with a class token, from masked patch tokens.

Source: Byun and Lee, *ViT-ReciproCAM: Gradient and attention-free visual explanations for vision transformer*,
arXiv:2310.02588. The tokens after a block's first LayerNorm are masked. The masked sequence of patch p has the prefix
tokens (class token, registers) unchanged, the token of p, and zeros for all other patches. It goes through the rest of
the network; softmax, grid and min-max normalisation are as in Recipro-CAM. With the Gaussian kernel, the 3x3 patches
around p keep their own tokens times the kernel's weights, cut off at the border (in a CNN, the vector of p itself is
spread).

The residual connection around the attention uses the block's unmasked input, as in the authors' code. At the last
block, the default, this affects only the class token, because no layer after the attention reads a patch token. A
zeroed token still takes part in the attention: its key and value are the biases.

At the last block there is a closed form. For one head let q be the query of the class token, K and V the key and value
weights, b the value bias, t_i the tokens after the LayerNorm and w_i their mask weights (1 for prefix tokens). The key
bias adds the same number to all attention logits and cancels in the softmax. So

    logit of token i:  w_i q.K t_i     (0 if w_i = 0)
    output = b + sum over tokens with w_i > 0 of a_i w_i V t_i,   a = softmax of the logits

and the n zeroed tokens together act as one logit, log n. The layers after the attention process tokens separately and
run on the h w outputs and the unmasked sequence's output as one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.methods.dense import output_bytes
from engine.methods.kernels import STENCILS, Kernel, masks
from engine.methods.plan import Plan, PlanInfo, ReferenceOutputs, reference_outputs_at, verify_plan
from engine.split.vit import ViTTail

VERIFIED_PATCHES = 12
"""Number of patches for which the closed form is verified: the corners and random patches."""
VERIFY_CHUNK = 4
"""Number of masked sequences per pass in verification."""


def vit_reference(tail: ViTTail, tokens: Tensor, kernel: Kernel, patches: Tensor) -> Tensor:
    """Return the logits for the masked sequences of some patches: (N, len(patches), K).

    This is the definition of ViT-ReciproCAM (arXiv:2310.02588).

    Args:
        tail: the part of the network from the block's input on.
        tokens: the block's input, (N, T, C).
        kernel: the shape of the masks.
        patches: int64 indices of patches in row-major order.
    """
    count, patch_count = tokens.shape[0], len(patches)
    normed = tail.norm(tokens)
    weights = masks(kernel, tail.grid, patches.to(tokens.device)).flatten(1).to(normed)
    prefix = normed[:, None, : tail.prefix_tokens].expand(-1, patch_count, -1, -1)
    masked = torch.cat((prefix, normed[:, None, tail.prefix_tokens :] * weights[None, :, :, None]), dim=2)
    residual = tokens[:, None].expand(-1, patch_count, -1, -1)
    scores: Tensor = tail.rest(residual.flatten(0, 1), masked.flatten(0, 1))
    return scores.view(count, patch_count, -1)


class ViTDensePlan(Plan):
    """Evaluates the definition in chunks that fit a memory budget; exact at any block."""

    def __init__(self, tail: ViTTail, kernel: Kernel, why: str, budget_bytes: int) -> None:
        super().__init__()
        self.tail = tail
        self.kernel: Kernel = kernel
        self.budget_bytes = budget_bytes
        self.info = PlanInfo("dense", why, one_module=False)
        self._bytes = 0

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits (N, K) and the patches' logits (N, h * w, K)."""
        patches = torch.arange(self.tail.grid[0] * self.tail.grid[1], device=features.device)
        parts = torch.split(patches, self.chunk(features))
        cell_logits = [
            torch.cat([vit_reference(self.tail, tokens, self.kernel, part) for part in parts], dim=1)
            for tokens in torch.split(features, 1)
        ]
        return self.tail(features), torch.cat(cell_logits)

    def chunk(self, features: Tensor) -> int:
        """Return how many masked sequences fit the budget in one pass, at least 1."""
        self._bytes = self._bytes or bytes_per_sequence(self.tail, features[:1])
        return max(1, self.budget_bytes // self._bytes)


def bytes_per_sequence(tail: ViTTail, tokens: Tensor) -> int:
    """Return an upper bound of the memory for one sequence, in bytes.

    Counts all modules' outputs, the attention matrices, and eight times the sequence, for operations between modules.
    """
    length = tokens.shape[1]
    own = (8 * tokens.numel() + 2 * getattr(tail.attention, "num_heads", 1) * length**2) * tokens.element_size()
    return own + output_bytes(tail.rest.modules(), lambda: tail(tokens))


@dataclass(frozen=True, eq=False)
class Projections:
    """The projections of a multi-head attention with H heads of width d, on tokens of width C."""

    query: nn.Linear
    """Linear layer from C to H d."""
    key: Tensor
    """Key weight (H, d, C); the key bias cancels in the softmax."""
    value: nn.Linear
    """Linear layer from C to H d, without bias."""
    value_bias: Tensor
    """Value bias (H d,); zeros if the attention has none."""
    output: nn.Module
    """Output layer from H d to C."""
    scale: float
    """Factor of the attention logits, usually ``d ** -0.5``."""


def read_projections(attention: nn.Module) -> Projections | None:
    """Return the projections of torch's or timm's attention; None if the attention has other operations."""
    weights = _weights_of(attention)
    heads = getattr(attention, "num_heads", None)
    if weights is None or not isinstance(heads, int) or len(weights[0]) % (3 * heads):
        return None
    weight, bias, output = weights
    queries, keys, values = weight.detach().chunk(3)
    shifts = torch.zeros(len(weight), device=weight.device, dtype=weight.dtype) if bias is None else bias.detach()
    query_bias, _, value_bias = shifts.chunk(3)
    key = keys.reshape(heads, -1, keys.shape[1])
    scale = float(getattr(attention, "scale", key.shape[1] ** -0.5))
    return Projections(_linear(queries, query_bias), key, _linear(values), value_bias, _plain(output), scale)


def _weights_of(attention: nn.Module) -> tuple[Tensor, Tensor | None, nn.Linear] | None:
    """Return the joint weight and bias of queries, keys and values, and the output layer; None if not supported."""
    if isinstance(attention, nn.MultiheadAttention):
        in_weight: Tensor | None = attention.in_proj_weight
        unsupported = attention.bias_k is not None or attention.add_zero_attn or not attention.batch_first
        return None if in_weight is None or unsupported else (in_weight, attention.in_proj_bias, attention.out_proj)
    qkv, output = getattr(attention, "qkv", None), getattr(attention, "proj", None)
    if not isinstance(qkv, nn.Linear) or not isinstance(output, nn.Linear):
        return None
    extra = [getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm", "gate")]
    if any(part is not None and not isinstance(part, nn.Identity) for part in extra):
        return None
    return qkv.weight, qkv.bias, output


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a linear layer that shares the given tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _plain(layer: nn.Linear) -> nn.Linear:
    return _linear(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())


class ViTPlan(Plan):
    """The closed form for the last block; the module docstring has the formulas."""

    key: Tensor
    value_bias: Tensor
    near: Tensor
    """Indices of the patches with a weight in each mask, (h * w, kernel size)."""
    fraction: Tensor
    """Weights of these patches."""
    outside: Tensor
    """True where the weight is 0, because the kernel is cut off at the border."""
    zeroed: Tensor
    """Logarithm of the number of zeroed tokens of each mask, (h * w, 1)."""

    def __init__(self, tail: ViTTail, projections: Projections, kernel: Kernel, rows: int) -> None:
        """Create the plan.

        Args:
            tail: the part of the network from the block's input on.
            projections: the projections of the block's attention.
            kernel: the shape of the masks.
            rows: the number R of leading tokens that the layers after the attention read.
        """
        super().__init__()
        self.norm, self.finish = tail.norm, tail.finish
        self.query, self.value, self.output = projections.query, projections.value, projections.output
        self.scale, self.prefix_tokens, self.rows = projections.scale, tail.prefix_tokens, rows
        patches = tail.grid[0] * tail.grid[1]
        weights = masks(kernel, tail.grid, torch.arange(patches)).flatten(1)
        fraction, near = weights.topk(min(patches, len(STENCILS[kernel]) ** 2), dim=1)
        self.register_buffer("key", projections.key)
        self.register_buffer("value_bias", projections.value_bias)
        self.register_buffer("near", near)
        self.register_buffer("fraction", fraction.to(projections.key))
        self.register_buffer("outside", fraction == 0)
        self.register_buffer("zeroed", (patches - (fraction > 0).sum(1, keepdim=True)).log().to(projections.key))
        self.info = PlanInfo("tokens", "the class token's attention to one patch, in closed form", one_module=True)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits (N, K) and the patches' logits (N, h * w, K)."""
        count = features.shape[0]
        heads, width, _ = self.key.shape
        normed = self.norm(features)
        queries = _by_head(self.query(normed[:, : self.rows]), heads, width) * self.scale
        query_keys = torch.einsum("nrhd,hdc->nrhc", queries, self.key)
        logits = torch.einsum("nrhc,ntc->nrht", query_keys, normed).float()
        values = _by_head(self.value(normed), heads, width)
        plain = torch.einsum("nrht,nthd->nrhd", logits.softmax(3).to(values), values)
        attended = torch.cat((plain[:, None], self._masked(logits, values)), dim=1)
        outputs = self.output(attended.flatten(3) + self.value_bias)
        residual = features[:, None, : self.rows].expand(-1, outputs.shape[1], -1, -1)
        scores = self.finish(residual.flatten(0, 1), outputs.flatten(0, 1)).view(count, outputs.shape[1], -1)
        return scores[:, 0], scores[:, 1:]

    def _masked(self, logits: Tensor, values: Tensor) -> Tensor:
        """Return the attention-weighted values of all masked sequences, without the value bias: (N, h * w, R, H, d).

        Args:
            logits: attention logits of the unmasked sequence, (N, R, H, T).
            values: (N, T, H, d).
        """
        prefix, patches = logits[..., None, : self.prefix_tokens], logits[..., self.prefix_tokens :]
        mask_count, width = self.near.shape
        masked = patches[..., self.near.flatten()].view(*logits.shape[:3], mask_count, width) * self.fraction
        shape = (*logits.shape[:3], mask_count, -1)
        all_logits = torch.cat((
            prefix.expand(shape), masked.masked_fill(self.outside, -torch.inf), self.zeroed.float().expand(shape),
        ), dim=4)  # fmt: skip
        weights = all_logits.softmax(4).to(values)
        attended = torch.einsum(
            "nrhlp,nphd->nlrhd", weights[..., : self.prefix_tokens], values[:, : self.prefix_tokens]
        )
        for k in range(width):
            weight = (weights[..., self.prefix_tokens + k] * self.fraction[:, k]).permute(0, 3, 1, 2)
            attended = attended + weight[..., None] * values[:, self.prefix_tokens + self.near[:, k], None]
        return attended


def _by_head(vectors: Tensor, heads: int, width: int) -> Tensor:
    return vectors.view(*vectors.shape[:2], heads, width)


def choose_vit_plan(tail: ViTTail, features: Tensor, kernel: Kernel, budget_bytes: int) -> Plan:
    """Return the closed form if it applies and agrees with the definition, else the dense plan."""
    projections = read_projections(tail.attention)
    if tail.tokens_read is None:
        return ViTDensePlan(tail, kernel, "later layers read patch tokens", budget_bytes)
    if projections is None:
        return ViTDensePlan(tail, kernel, "the attention has an unknown form", budget_bytes)
    plan = ViTPlan(tail, projections, kernel, tail.tokens_read)
    try:
        differs = verify_plan(plan, tail, features, kernel, vit_reference_outputs(tail, features, kernel))
    except (RuntimeError, IndexError) as reason:
        differs = str(reason).splitlines()[0]
    if differs:
        return ViTDensePlan(tail, kernel, f"the closed form is not exact for this network: {differs}", budget_bytes)
    return plan


def vit_reference_outputs(tail: ViTTail, features: Tensor, kernel: Kernel) -> ReferenceOutputs:
    """Evaluate the definition on random tokens with the standard deviation of ``features``."""
    spread = max(float(features.float().std()), 1e-3)
    generator = torch.Generator().manual_seed(2)
    probe = (torch.randn(features.shape[1:], generator=generator) * spread)[None].to(features)
    (rows, columns), drawn = tail.grid, torch.randperm(tail.grid[0] * tail.grid[1], generator=generator)
    corners = {0, columns - 1, (rows - 1) * columns, rows * columns - 1}
    cells = torch.tensor(sorted(corners | set(drawn[: VERIFIED_PATCHES - len(corners)].tolist())))
    return reference_outputs_at(_evaluate, tail, probe, kernel, cells)


def _evaluate(tail: ViTTail, probe: Tensor, kernel: Kernel, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the definition's float32 logits of some patches, of the full sequence, and with all patches zeroed."""
    with torch.inference_mode():
        parts = [vit_reference(tail, probe, kernel, chunk) for chunk in torch.split(cells, VERIFY_CHUNK)]
        zeroed = tail.norm(probe)
        zeroed[:, tail.prefix_tokens :] = 0.0
        return torch.cat(parts, dim=1).float(), tail(probe).float(), tail.rest(probe, zeroed).float()
