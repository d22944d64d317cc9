"""The pooled plan, for tails of cellwise layers, a mean over the grid, and layers on vectors.

Let g be the layers before the mean (batch norm, ReLU, 1x1 convolutions): they apply the same function to each cell
separately. The masked map of cell p is f_p at p and 0 elsewhere, so the mean of g over it is

    g(0) + (g(f_p) - g(0)) / (h w)

and no masked map has to be computed. The layers after the mean run on these h w vectors and the network's own mean
vector as one batch, so their weights are read once; 1x1 convolutions among them run as matrix products. With the
Gaussian kernel, each neighbour of p with weight k contains k f_p and adds ``(g(k f_p) - g(0)) / (h w)``.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from engine.methods.kernels import STENCILS, Kernel
from engine.methods.plan import Plan, PlanInfo
from engine.split.fx_split import CHANNELS_FIRST, Permuted
from engine.split.fx_utils import shapes_of, subgraph


class PooledPlan(Plan):
    """Computes all cells as one batch of mean vectors; see the formulas in the module's docstring."""

    def __init__(self, before: nn.Module | None, after: nn.Module, kernel: Kernel, *, flat: bool) -> None:
        """Create the plan.

        Args:
            before: g, from (N, C, h, w) to (N, C', h, w); None: the tail starts with the mean.
            after: the layers after the mean, to logits (M, K).
            kernel: the shape of the masks.
            flat: True if the input of ``after`` is (M, C'), False if it is (M, C', 1, 1).
        """
        super().__init__()
        self.before = before
        self.after = after
        self.kernel: Kernel = kernel
        self.flat = flat
        name = "a mean over the grid, then layers on vectors"
        self.info = PlanInfo("pooled", name if before is None else f"cellwise layers, {name}", one_module=True)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits (N, K) and the cells' logits (N, h * w, K)."""
        count, _, rows, columns = features.shape
        means, masked_means = self._means(features)
        vectors = torch.cat((means[:, None], masked_means), dim=1).flatten(0, 1)
        logits = self.after(vectors if self.flat else vectors[:, :, None, None])
        logits = logits.view(count, 1 + rows * columns, -1)
        return logits[:, 0], logits[:, 1:]

    def _means(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of the full map (N, C') and the means of the masked maps (N, h * w, C')."""
        area = features.shape[2] * features.shape[3]
        if self.before is None and self.kernel == "point":
            vectors = features.flatten(2).transpose(1, 2) / area
            return vectors.sum(1), vectors
        if self.before is None:
            fractions = neighbours(features, self.kernel)
            weight = sum(fraction * count for fraction, count in fractions.items())
            return features.mean((2, 3)), (features * (weight / area)).flatten(2).transpose(1, 2)
        zero_response = self.before(torch.zeros_like(features[:1]))
        plain = self.before(features)
        changed = torch.zeros_like(plain)
        for fraction, count in neighbours(features, self.kernel).items():
            response = plain if fraction == 1.0 else self.before(features * fraction)
            changed = changed + (response - zero_response) * count
        masked = zero_response.mean((2, 3), keepdim=True) + changed / area
        return plain.mean((2, 3)), masked.flatten(2).transpose(1, 2)


def neighbours(features: Tensor, kernel: Kernel) -> dict[float, Tensor]:
    """Return, for each kernel weight, the number of cells with this weight in each mask: (h, w)."""
    grid = features.shape[2:]
    if kernel == "point":
        # Created on the device, not copied to it: a CUDA graph can capture this.
        return {1.0: torch.ones((int(grid[0]), int(grid[1])), dtype=features.dtype, device=features.device)}
    weights = STENCILS[kernel]
    reach = len(weights) // 2
    ones = F.pad(torch.ones((int(grid[0]), int(grid[1])), dtype=features.dtype, device=features.device), (reach,) * 4)
    counts: dict[float, Tensor] = {}
    for down, row in enumerate(weights):
        for right, fraction in enumerate(row):
            # 1 if this neighbour of a cell is inside the grid; the kernels are symmetric.
            inside = ones[down : down + int(grid[0]), right : right + int(grid[1])]
            counts[fraction] = counts[fraction] + inside if fraction in counts else inside
    return counts


def find_pooled(tail: nn.Module, features: Tensor, kernel: Kernel) -> PooledPlan | None:
    """Return a pooled plan if all paths through the tail pass a mean over the grid, else None.

    The caller must check the result with ``verify_plan``: this function assumes that the layers before the mean are
    cellwise, which is wrong, for example, for a 3x3 convolution.
    """
    if not isinstance(tail, fx.GraphModule):
        return None
    shapes = shapes_of(tail, features[:1])
    entry = next(node for node in tail.graph.nodes if node.op == "placeholder")
    output = next(node for node in tail.graph.nodes if node.op == "output")
    for node in tail.graph.nodes:
        shape, source = shapes.get(node), node.all_input_nodes[0] if node.all_input_nodes else None
        if shape is None or source is None or len(node.all_input_nodes) != 1:
            continue
        before = shapes.get(source, ())
        order = _order_of(before, tuple(features.shape[2:]), shape)
        if order is None or not _is_mean(tail, source, node, before, order):
            continue
        after = subgraph(tail, node, output.all_input_nodes[0])
        g = None if source is entry else subgraph(tail, entry, source)
        if after is not None and (source is entry or g is not None):
            # A channels-last map is permuted after g, and its mean has no spatial dimensions.
            first = g if order == (2, 3) or g is None else nn.Sequential(g, Permuted(CHANNELS_FIRST))
            return PooledPlan(first, _with_matrix_products(after), kernel, flat=len(shape) == 2)
    return None


class _MatrixProduct(nn.Module):
    """A 1x1 convolution of one-cell maps, computed as a matrix product.

    oneDNN's convolution takes several times as long for a batch of such maps.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.linear = _linear(convolution.weight.flatten(1), convolution.bias)

    def forward(self, maps: Tensor) -> Tensor:
        output: Tensor = self.linear(maps.flatten(1))
        return output[:, :, None, None]


def _with_matrix_products(after: fx.GraphModule) -> fx.GraphModule:
    """Replace 1x1 convolutions after the mean by linear layers, whose weights backends can pack.

    The network's own modules are not changed; the weights are shared.
    """
    for node in list(after.graph.nodes):
        replacement = _matrix_product(after, node)
        if replacement is not None:
            name = f"product_{node.name}"
            after.add_submodule(name, replacement)
            with after.graph.inserting_before(node):
                product = after.graph.call_module(name, (node.all_input_nodes[0],))
            node.replace_all_uses_with(product)
            after.graph.erase_node(node)
    after.graph.eliminate_dead_code()
    after.delete_all_unused_submodules()
    after.recompile()
    return after


def _matrix_product(after: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    if node.op == "call_module":
        layer = after.get_submodule(str(node.target))
        if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1):
            return None
        return _MatrixProduct(layer) if layer.groups == 1 and layer.padding == (0, 0) else None
    if node.op != "call_function" or node.target is not F.linear:
        return None
    _, *stored = node.all_input_nodes
    if [*node.args, *node.kwargs.values()][: 1 + len(stored)] != node.all_input_nodes:
        return None
    tensors = [operator.attrgetter(str(source.target))(after) for source in stored if source.op == "get_attr"]
    return _linear(*tensors) if len(tensors) == len(stored) else None


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    return layer


def _order_of(before: tuple[int, ...], grid: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the dimensions of rows and columns, if the shapes fit a mean over them; else None."""
    if len(before) != 4 or after[:1] != before[:1]:
        return None
    if before[2:] == grid and after in {before[:2], (*before[:2], 1, 1)}:
        return (2, 3)
    if before[1:3] == grid and after == (before[0], before[3]):
        return (1, 2)
    return None


def _is_mean(
    tail: fx.GraphModule, source: fx.Node, node: fx.Node, shape: tuple[int, ...], order: tuple[int, int]
) -> bool:
    """Return whether a node computes the mean over the grid, tested on a random map."""
    part = subgraph(tail, source, node)
    if part is None:
        return False
    weight = next((p for p in tail.parameters() if p.is_floating_point()), torch.empty(0))
    maps = torch.randn((1, *shape[1:]), generator=torch.Generator().manual_seed(3)).to(weight)
    with torch.inference_mode():
        output = part(maps)
    return bool(torch.allclose(output.flatten().float(), maps.mean(order).flatten().float(), atol=1e-2, rtol=1e-2))
