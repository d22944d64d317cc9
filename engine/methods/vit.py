"""ViT-ReciproCAM: which patches speak for a class, in a vision transformer with a class token.

Source: Byun and Lee, *ViT-ReciproCAM: Gradient and attention-free visual explanations for vision transformer*,
arXiv:2310.02588. The tokens behind a block's first LayerNorm are masked: for each patch, a sequence that keeps the
class token (and registers) as it is, the patch's token, and zeros everywhere else, goes through the rest of the
network; softmax score, grid, min-max as in Recipro-CAM. With the Gaussian kernel the 3x3 patches around it keep their
own tokens, times the kernel's weights, cut off at the border (a CNN's cell spreads its own vector instead).

What enters the block goes on beside its attention as the frame gave it, unmasked, as in the authors' code. At the last
block, the default here, that choice changes nothing but the class token, whose own entry must be kept: behind the
attention no patch's token is read any more. A zeroed token is no missing token: its key and value are the biases, and
it takes part in the softmax of the attention.

So at the last block no masked sequence need be made. Let q be the class token's query of one head, t a token,
K, V, b the key and value weights and the value bias. A key's bias shifts all of q's logits alike and falls out, so

    a zeroed token's logit is 0, and that of a token kept with weight w is w q K t;
    answer = b + sum over kept tokens of softmax(...) w V t

with n zeroed tokens as one logit, log n. Everything behind the attention treats tokens alone, and runs on the h w
answers as one batch, together with the plain network's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.methods.kernels import STENCILS, Kernel, masks
from engine.methods.plan import Plan, PlanInfo, ReferenceOutputs, reference_outputs_at, verify_plan
from engine.split.vit import ViTTail

PROOF_PATCHES = 12
"""How many patches the closed form is proven on: the corners, and some drawn."""
PROOF_CHUNK = 4
"""How many of their sequences go through the rest at once."""


def vit_reference(tail: ViTTail, tokens: Tensor, kernel: Kernel, patches: Tensor) -> Tensor:
    """Return what the network says to the masked sequences of some patches: (N, len(patches), K), before the softmax.

    This is ViT-ReciproCAM as it is written; ``tokens`` (N, T, C) enter the block.
    """
    count, among = tokens.shape[0], len(patches)
    normed = tail.norm(tokens)
    weights = masks(kernel, tail.grid, patches.to(tokens.device)).flatten(1).to(normed)
    kept = normed[:, None, : tail.kept].expand(-1, among, -1, -1)
    masked = torch.cat((kept, normed[:, None, tail.kept :] * weights[None, :, :, None]), dim=2)
    beside = tokens[:, None].expand(-1, among, -1, -1)
    scores: Tensor = tail.rest(beside.flatten(0, 1), masked.flatten(0, 1))
    return scores.view(count, among, -1)


class ViTDensePlan(Plan):
    """The definition, in chunks that fit a memory budget: right at any block."""

    def __init__(self, tail: ViTTail, kernel: Kernel, why: str, budget_bytes: int) -> None:
        super().__init__()
        self.tail = tail
        self.kernel: Kernel = kernel
        self.budget_bytes = budget_bytes
        self.info = PlanInfo("dense", why, one_module=False)
        self._bytes = 0

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain network's scores (N, K) and every patch's (N, h * w, K), before the softmax."""
        everything = torch.arange(self.tail.grid[0] * self.tail.grid[1], device=features.device)
        parts = torch.split(everything, self.chunk(features))
        every = [
            torch.cat([vit_reference(self.tail, one, self.kernel, part) for part in parts], dim=1)
            for one in torch.split(features, 1)
        ]
        return self.tail(features), torch.cat(every)

    def chunk(self, features: Tensor) -> int:
        """Return how many masked sequences go through at once within the budget, at least one."""
        self._bytes = self._bytes or bytes_per_sequence(self.tail, features[:1])
        return max(1, self.budget_bytes // self._bytes)


def bytes_per_sequence(tail: ViTTail, tokens: Tensor) -> int:
    """Return the bytes one sequence needs on its way, at the most: all modules' outputs, and attention's own matrices.

    The sequence itself counts eight times, for what stands between modules.
    """
    length = tokens.shape[1]
    total = (8 * tokens.numel() + 2 * getattr(tail.attention, "num_heads", 1) * length**2) * tokens.element_size()

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal total
        for part in output if isinstance(output, tuple) else (output,):
            total += part.numel() * part.element_size() if isinstance(part, Tensor) else 0

    handles = [module.register_forward_hook(note) for module in tail.rest.modules()]
    try:
        with torch.inference_mode():
            tail(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return total


@dataclass(frozen=True, eq=False)
class Projections:
    """What an attention does to tokens, with queries scaled and no normalising in between."""

    query: nn.Linear
    key: Tensor
    """(H, d, C): its bias falls out."""
    value: nn.Linear
    """Without its bias."""
    value_bias: Tensor
    """(H d,): zeros where there is none."""
    output: nn.Module
    scale: float


def read_projections(attention: nn.Module) -> Projections | None:
    """Return the projections of torch's and timm's attention; None for any that does more or else."""
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
    """Return the weight and bias that queries, keys and values share, and the layer behind them."""
    if isinstance(attention, nn.MultiheadAttention):
        own: Tensor | None = attention.in_proj_weight
        more = attention.bias_k is not None or attention.add_zero_attn or not attention.batch_first
        return None if own is None or more else (own, attention.in_proj_bias, attention.out_proj)
    qkv, output = getattr(attention, "qkv", None), getattr(attention, "proj", None)
    if not isinstance(qkv, nn.Linear) or not isinstance(output, nn.Linear):
        return None
    between = [getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm", "gate")]
    if any(part is not None and not isinstance(part, nn.Identity) for part in between):
        return None
    return qkv.weight, qkv.bias, output


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a linear layer around tensors that are there."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _plain(layer: nn.Linear) -> nn.Linear:
    return _linear(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())


class ViTPlan(Plan):
    """The closed form; see the module's text for the algebra."""

    key: Tensor
    value_bias: Tensor
    near: Tensor
    fraction: Tensor
    outside: Tensor
    zeroed: Tensor

    def __init__(self, tail: ViTTail, made: Projections, kernel: Kernel, rows: int) -> None:
        """Take the tail apart; ``rows`` of the first tokens are read behind the attention."""
        super().__init__()
        self.norm, self.finish = tail.norm, tail.finish
        self.query, self.value, self.output = made.query, made.value, made.output
        self.scale, self.kept, self.rows = made.scale, tail.kept, rows
        patches = tail.grid[0] * tail.grid[1]
        weights = masks(kernel, tail.grid, torch.arange(patches)).flatten(1)
        fraction, near = weights.topk(min(patches, len(STENCILS[kernel]) ** 2), dim=1)
        self.register_buffer("key", made.key)
        self.register_buffer("value_bias", made.value_bias)
        self.register_buffer("near", near)
        self.register_buffer("fraction", fraction.to(made.key))
        self.register_buffer("outside", fraction == 0)
        self.register_buffer("zeroed", (patches - (fraction > 0).sum(1, keepdim=True)).log().to(made.key))
        self.info = PlanInfo("tokens", "a class token's attention to one patch, in closed form", one_module=True)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain network's scores (N, K) and every patch's (N, h * w, K), before the softmax."""
        count = features.shape[0]
        heads, width, _ = self.key.shape
        normed = self.norm(features)
        queries = _by_head(self.query(normed[:, : self.rows]), heads, width) * self.scale
        asked = torch.einsum("nrhd,hdc->nrhc", queries, self.key)
        logits = torch.einsum("nrhc,ntc->nrht", asked, normed).float()
        values = _by_head(self.value(normed), heads, width)
        plain = torch.einsum("nrht,nthd->nrhd", logits.softmax(3).to(values), values)
        answers = torch.cat((plain[:, None], self._masked(logits, values)), dim=1)
        told = self.output(answers.flatten(3) + self.value_bias)
        beside = features[:, None, : self.rows].expand(-1, told.shape[1], -1, -1)
        scores = self.finish(beside.flatten(0, 1), told.flatten(0, 1)).view(count, told.shape[1], -1)
        return scores[:, 0], scores[:, 1:]

    def _masked(self, logits: Tensor, values: Tensor) -> Tensor:
        """Return the attention's answers to all masked sequences, less the value bias: (N, h * w, R, H, d).

        Args:
            logits: (N, R, H, T) what the read tokens' queries ask of every token.
            values: (N, T, H, d).
        """
        kept, patches = logits[..., None, : self.kept], logits[..., self.kept :]
        spots, among = self.near.shape
        mine = patches[..., self.near.flatten()].view(*logits.shape[:3], spots, among) * self.fraction
        shape = (*logits.shape[:3], spots, -1)
        every = torch.cat((
            kept.expand(shape), mine.masked_fill(self.outside, -torch.inf), self.zeroed.float().expand(shape),
        ), dim=4)  # fmt: skip
        weights = every.softmax(4).to(values)
        told = torch.einsum("nrhlp,nphd->nlrhd", weights[..., : self.kept], values[:, : self.kept])
        for k in range(among):
            weight = (weights[..., self.kept + k] * self.fraction[:, k]).permute(0, 3, 1, 2)
            told = told + weight[..., None] * values[:, self.kept + self.near[:, k], None]
        return told


def _by_head(vectors: Tensor, heads: int, width: int) -> Tensor:
    return vectors.view(*vectors.shape[:2], heads, width)


def choose_vit_plan(tail: ViTTail, features: Tensor, kernel: Kernel, budget_bytes: int) -> Plan:
    """Return the closed form where it is proven to hold, else the definition in chunks."""
    made = read_projections(tail.attention)
    if tail.reads is None:
        return ViTDensePlan(tail, kernel, "behind this block patches' tokens are still read", budget_bytes)
    if made is None:
        return ViTDensePlan(tail, kernel, "its attention is of an unknown kind", budget_bytes)
    plan = ViTPlan(tail, made, kernel, tail.reads)
    try:
        differs = verify_plan(plan, tail, features, kernel, vit_reference_outputs(tail, features, kernel))
    except (RuntimeError, IndexError) as reason:
        differs = str(reason).splitlines()[0]
    if differs:
        return ViTDensePlan(tail, kernel, f"the closed form does not hold: {differs}", budget_bytes)
    return plan


def vit_reference_outputs(tail: ViTTail, features: Tensor, kernel: Kernel) -> ReferenceOutputs:
    """Ask the definition, on random tokens as far apart as the given ones."""
    spread = max(float(features.float().std()), 1e-3)
    generator = torch.Generator().manual_seed(2)
    probe = (torch.randn(features.shape[1:], generator=generator) * spread)[None].to(features)
    (rows, columns), drawn = tail.grid, torch.randperm(tail.grid[0] * tail.grid[1], generator=generator)
    corners = {0, columns - 1, (rows - 1) * columns, rows * columns - 1}
    cells = torch.tensor(sorted(corners | set(drawn[: PROOF_PATCHES - len(corners)].tolist())))
    return reference_outputs_at(_asked, tail, probe, kernel, cells)


def _asked(tail: ViTTail, probe: Tensor, kernel: Kernel, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the definition's float32 scores of some patches, of the whole sequence, and with all patches zeroed."""
    with torch.inference_mode():
        parts = [vit_reference(tail, probe, kernel, some) for some in torch.split(cells, PROOF_CHUNK)]
        blank = tail.norm(probe)
        blank[:, tail.kept :] = 0.0
        return torch.cat(parts, dim=1).float(), tail(probe).float(), tail.rest(probe, blank).float()
