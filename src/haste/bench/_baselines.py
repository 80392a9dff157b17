"""What the layer is compared with: dense, bottleneck, masked and CSR products in PyTorch, as good as it does them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from haste.bench._case import Case, Positives, make_layer, rows_of, size_of
from haste.bench._variants import LR, NotRunError, Operands, Variant, products

_COMPILATIONS = 512  # a function is compiled for every shape of every case


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Return the function compiled for a GPU; as it is on a CPU, where smoke runs must not wait for a compiler."""
    if device.type != "cuda":
        return function
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        if getattr(torch._dynamo.config, limit, _COMPILATIONS) < _COMPILATIONS:
            setattr(torch._dynamo.config, limit, _COMPILATIONS)  # beyond it, functions would run uncompiled in silence
    return torch.compile(function, dynamic=False)


def _loss_and_slopes(z: Tensor) -> tuple[Tensor, Tensor]:
    wide = z.float()
    return torch.nn.functional.softplus(wide).sum(), torch.sigmoid(wide).to(z.dtype)


class _Bce:
    """Loss and dloss/dlogits of BCE in one compiled pass over the logits, and a few scattered writes."""

    def __init__(self, device: torch.device) -> None:
        self._pass = compiled(_loss_and_slopes, device)

    def __call__(self, z: Tensor, index: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        loss, g = self._pass(z)
        g[index] -= 1
        return loss - z[index].float().sum(), g


class Dense(Variant):
    """The dense layer by three GEMMs; the update rides in the third, so that no weight gradient is stored."""

    name = "dense"

    def __init__(self, case: Case, device: torch.device, lr: float = LR) -> None:
        super().__init__(case, device, lr)
        width = self.width(case)
        generator = torch.Generator(device).manual_seed(0)
        self.weight = torch.empty((case.num_labels, width), dtype=case.torch_dtype, device=device)
        self.weight.normal_(0, width**-0.5, generator=generator)
        self._bce = _Bce(device)

    @staticmethod
    def width(case: Case) -> int:
        """Return the inputs of every label."""
        return case.in_features

    @classmethod
    def memory(cls, case: Case, operations: Sequence[str]) -> int:
        return case.torch_dtype.itemsize * case.num_labels * (2 * cls.width(case) + 3 * case.batch)

    def inputs(self, features: Tensor) -> Tensor:
        return features.detach()[:, : self.weight.shape[1]].contiguous()

    def operands(self) -> Operands:
        bias = torch.zeros((len(self.weight), 1), device=self.device)
        return self.weight[:, None, :], bias, None

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()

    def backward_features(self, x: Tensor, g: Tensor) -> Tensor:
        return g @ self.weight

    def backward_weights(self, x: Tensor, g: Tensor) -> Tensor:
        return (g.t() @ x)[:, None, :]

    def step(self, x: Tensor, positives: Positives) -> tuple[Tensor, Tensor]:
        loss, g = self._bce(self.forward(x), rows_of(positives))
        grad = g @ self.weight
        self._apply(g, x)
        return loss, grad

    def _apply(self, g: Tensor, x: Tensor) -> None:
        self.weight.addmm_(g.t(), x, alpha=-self.lr)

    def weight_bytes(self) -> int:
        return size_of(self.weight)

    def traffic(self, operation: str) -> int:
        weight, logits = size_of(self.weight), self.case.batch * self.case.num_labels * self.logits_dtype.itemsize
        # logits written and read, their gradient written and read twice; weights read three times, written once
        return self._traffic(operation, weight, logits, step=4 * weight + 5 * logits)

    def flop(self, operation: str) -> int:
        return products(operation) * 2 * self.case.batch * self.weight.numel()


class Bottleneck(Dense):
    """As many FLOP as the sparse layer: the dense layer of F inputs. What makes F of H inputs is not counted."""

    name = "bottleneck"

    @staticmethod
    def width(case: Case) -> int:
        return case.fan_in


class CompiledBottleneck(Bottleneck):
    """The same as people write it: loss, backward and optimizer, all compiled."""

    name = "bottleneck_compiled"

    def __init__(self, case: Case, device: torch.device, lr: float = LR) -> None:
        super().__init__(case, device, lr)
        self.weight.requires_grad_()
        self._update = torch.optim.SGD([self.weight], lr=lr)
        self._loss = compiled(_bce_loss, device)
        self._step = compiled(self._update.step, device)

    def forward(self, x: Tensor) -> Tensor:
        raise NotRunError("is another way to write the step")

    backward_features = backward_weights = Variant.backward_features

    def backward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        raise NotRunError("is another way to write the step")

    def step(self, x: Tensor, positives: Positives) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        loss = self._loss(x, self.weight, *rows_of(positives))
        loss.backward()
        self._step()
        self.weight.grad = None
        assert x.grad is not None
        return loss.detach(), x.grad

    def traffic(self, operation: str) -> int:
        weight, logits = size_of(self.weight), self.case.batch * self.case.num_labels * self.logits_dtype.itemsize
        return 6 * weight + 5 * logits  # the weight's gradient written and read besides

    def operands(self) -> Operands:
        weight, bias, indices = super().operands()
        return weight.detach(), bias, indices


def _bce_loss(x: Tensor, weight: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    z = x @ weight.t()
    return torch.nn.functional.softplus(z.float()).sum() - z[points, labels].float().sum()


def _masked_update(weight: Tensor, grad: Tensor, mask: Tensor, lr: float) -> None:
    weight.sub_(lr * grad * mask)


class MaskedDense(Dense):
    """Dense products with a mask on the weight's gradient; the weight is kept masked, so that no product masks it."""

    name = "masked_dense"

    def __init__(self, case: Case, device: torch.device, lr: float = LR) -> None:
        super().__init__(case, device, lr)
        layer = make_layer(case, device)
        assert layer.indices is not None
        groups = torch.zeros((layer.num_groups, case.in_features), dtype=torch.bool, device=device)
        for start in range(0, layer.num_groups, 1 << 16):
            part = layer.indices[start : start + (1 << 16)].long()
            groups[start : start + len(part)].scatter_(1, part, True)
        self.mask = groups.repeat_interleave(case.group_size, dim=0)[: case.num_labels]
        self.weight.mul_(self.mask)
        self._masked_update = compiled(_masked_update, device)

    @classmethod
    def memory(cls, case: Case, operations: Sequence[str]) -> int:
        item = case.torch_dtype.itemsize
        return case.num_labels * (case.in_features * (3 * item + 2) + 3 * item * case.batch)

    def backward_weights(self, x: Tensor, g: Tensor) -> Tensor:
        return (g.t() @ x).mul_(self.mask)[:, None, :]

    def _apply(self, g: Tensor, x: Tensor) -> None:
        self._masked_update(self.weight, g.t() @ x, self.mask, self.lr)

    def weight_bytes(self) -> int:
        return size_of(self.weight, self.mask)

    def traffic(self, operation: str) -> int:
        weight, logits = size_of(self.weight), self.case.batch * self.case.num_labels * self.logits_dtype.itemsize
        mask = size_of(self.mask)
        masked = 2 * weight + mask if operation.startswith("backward") and operation != "backward_features" else 0
        return self._traffic(operation, weight, logits, extra=masked, step=6 * weight + mask + 5 * logits)


class Csr(Variant):
    """Unstructured sparse products of the library's own (cuSPARSE), float32: its sampled product knows no bfloat16."""

    name = "csr"

    def __init__(self, case: Case, device: torch.device, lr: float = LR) -> None:
        super().__init__(case, device, lr)
        layer = make_layer(case, device, group_size=1)
        assert layer.indices is not None
        self._layer_indices, self.logits_dtype = layer.indices, torch.float32
        self.values = layer.weight.detach().float().flatten()
        integer = torch.int32 if case.links < 2**31 else torch.int64
        columns = layer.indices.flatten()
        order = columns.sort(stable=True).indices
        self._order = order
        self._columns = columns.to(integer)
        self._crow = torch.arange(0, case.links + 1, case.fan_in, dtype=integer, device=device)
        counts = torch.bincount(columns.int(), minlength=case.in_features)
        self._crow_t = torch.cat((counts.new_zeros(1), counts.cumsum(0))).to(integer)
        self._columns_t = order.div(case.fan_in, rounding_mode="floor").to(integer)
        self._pattern = self._csr(torch.zeros_like(self.values))
        self._bce = _Bce(device)

    @classmethod
    def memory(cls, case: Case, operations: Sequence[str]) -> int:
        # values, columns, the transposed pattern with its order and values, the sampled product; sorting at first
        return case.links * (4 + 4 + 4 + 8 + 4 + 8 + 16) + 4 * 4 * case.batch * case.num_labels

    def _csr(self, values: Tensor) -> Tensor:
        shape = (self.case.num_labels, self.case.in_features)
        return torch.sparse_csr_tensor(self._crow, self._columns, values, shape, check_invariants=False)

    def inputs(self, features: Tensor) -> Tensor:
        return features.detach().float()

    def operands(self) -> Operands:
        bias = torch.zeros((self.case.num_labels, 1), device=self.device)
        return self.values.view(-1, 1, self.case.fan_in), bias, self._layer_indices

    def forward(self, x: Tensor) -> Tensor:
        return (self._csr(self.values) @ x.t().contiguous()).t()

    def backward_features(self, x: Tensor, g: Tensor) -> Tensor:
        shape = (self.case.in_features, self.case.num_labels)
        values = self.values[self._order]
        transposed = torch.sparse_csr_tensor(self._crow_t, self._columns_t, values, shape, check_invariants=False)
        return (transposed @ g.t()).t()

    def backward_weights(self, x: Tensor, g: Tensor) -> Tensor:
        return torch.sparse.sampled_addmm(self._pattern, g.t(), x, beta=0.0).values().view(-1, 1, self.case.fan_in)

    def step(self, x: Tensor, positives: Positives) -> tuple[Tensor, Tensor]:
        loss, g = self._bce(self.forward(x), rows_of(positives))
        grad = self.backward_features(x, g)
        self.values.sub_(self.backward_weights(x, g).flatten(), alpha=self.lr)
        return loss, grad

    def weight_bytes(self) -> int:
        return size_of(self.values, self._columns, self._crow)

    def traffic(self, operation: str) -> int:
        held, logits = self.weight_bytes(), 4 * self.case.batch * self.case.num_labels
        reorder = size_of(self.values, self._order, self.values)  # the transposed values, made anew in every pass
        features = reorder if operation in ("backward", "backward_features") else 0
        update = 3 * size_of(self.values)
        return self._traffic(operation, held, logits, extra=features, step=3 * held + reorder + update + 5 * logits)
