"""Autograd functions of the adaptive convolutions, differentiable twice.

The backward of every function is an autograd function too: (grad, x, filters) -> gradients. Tensors saved in addition
to the inputs are a cache and have no gradient. ``forward`` names every argument, because older versions of
torch.compile count them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tta_restore.ops.adaptive_conv import schema as ops

from . import reference


class Sac(torch.autograd.Function):
    """Trilinear: all derivatives are ``sac`` and its backward with exchanged arguments."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
        return ops.sac(x, vertical, horizontal)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_taps = any(ctx.needs_input_grad[1:])
        grads = SacBackward.apply(grad, *ctx.saved_tensors, need_taps)
        return grads if need_taps else (grads[0], None, None)


class SacBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, vertical: Tensor, horizontal: Tensor, need_taps: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return ops.sac_backward(grad, x, vertical, horizontal, need_taps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.need_taps = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dx: Tensor, dvertical: Tensor, dhorizontal: Tensor) -> tuple[Tensor | None, ...]:
        # <gradients, (dx, dvertical, dhorizontal)> = <grad, sac(dx, v, h) + sac(x, dv, h) + sac(x, v, dh)>
        grad, x, v, h = ctx.saved_tensors
        _, from_dx_v, from_dx_h = SacBackward.apply(grad, dx, v, h, True)
        if not ctx.need_taps:
            return Sac.apply(dx, v, h), None, from_dx_v, from_dx_h, None
        dv, dh = dvertical, dhorizontal
        from_dv_x, _, from_dv_h = SacBackward.apply(grad, x, dv, h, True)
        from_dh_x, from_dh_v, _ = SacBackward.apply(grad, x, v, dh, True)
        grad_grad = Sac.apply(dx, v, h) + Sac.apply(x, dv, h) + Sac.apply(x, v, dh)
        return grad_grad, from_dv_x + from_dh_x, from_dx_v + from_dh_v, from_dx_h + from_dv_h, None


class Iac(torch.autograd.Function):
    """Autograd function of ``iac``: (x, filters, options, save_states) -> (output, states); the states are a cache."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, filters: Tensor,
        num_steps: int, kernel_size: int, negative_slope: float, activate_last: bool, own: bool, save_states: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return ops.iac(x, filters, num_steps, kernel_size, negative_slope, activate_last, own, save_states)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, filters, *ctx.options, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # would allocate zeros as large as all states
        ctx.save_for_backward(x, filters, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        need_filters = ctx.needs_input_grad[1]
        grad_x, grad_filters = IacBackward.apply(grad, *ctx.saved_tensors, *ctx.options, need_filters)
        return grad_x, grad_filters if need_filters else None, *[None] * 6


class IacBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, filters: Tensor, states: Tensor,
        num_steps: int, kernel_size: int, negative_slope: float, activate_last: bool, own: bool,
        need_filters: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return ops.iac_backward(
            grad, x, filters, states, num_steps, kernel_size, negative_slope, activate_last, own, need_filters
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, x, filters, _, *ctx.options, ctx.need_filters = inputs
        ctx.set_materialize_grads(False)  # a missing direction stays None
        ctx.save_for_backward(grad, x, filters)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dfilters: Tensor | None) -> tuple[Tensor | None, ...]:
        direction = dx, dfilters if ctx.need_filters else None
        if all(part is None for part in direction):
            return (None,) * 10
        grads = IacDoubleBackward.apply(*direction, *ctx.saved_tensors, *ctx.options)
        return *grads, *[None] * 7


class IacDoubleBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        dx: Tensor | None, dfilters: Tensor | None, grad: Tensor, x: Tensor, filters: Tensor,
        num_steps: int, kernel_size: int, negative_slope: float, activate_last: bool, own: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        return ops.iac_double_backward(
            dx, dfilters, grad, x, filters, num_steps, kernel_size, negative_slope, activate_last, own
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("iac: the third derivative is not implemented")


class IacFromFeatures(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, features: Tensor, weight: Tensor, bias: Tensor,
        num_steps: int, kernel_size: int, negative_slope: float, activate_last: bool, own: bool,
    ) -> Tensor:  # fmt: skip
        return ops.iac_from_features(
            x, features, weight, bias, num_steps, kernel_size, negative_slope, activate_last, own
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options = inputs[4:]
        ctx.save_for_backward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, need_features, *need_weight = ctx.needs_input_grad[:4]
        needs = need_features, any(need_weight)
        grad_x, *rest = IacFromFeaturesBackward.apply(grad, *ctx.saved_tensors, *ctx.options, *needs)
        needed = (need_features, needs[1], needs[1])
        return grad_x, *(g if n else None for g, n in zip(rest, needed, strict=True)), *[None] * 5


class IacFromFeaturesBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, features: Tensor, weight: Tensor, bias: Tensor,
        num_steps: int, kernel_size: int, negative_slope: float, activate_last: bool, own: bool,
        need_features: bool, need_weight: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        return ops.iac_from_features_backward(
            grad,
            x,
            features,
            weight,
            bias,
            num_steps,
            kernel_size,
            negative_slope,
            activate_last,
            own,
            need_features,
            need_weight,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options, ctx.needs = inputs[5:-2], inputs[-2:]
        ctx.save_for_backward(*inputs[:5])

    @staticmethod
    def backward(ctx: Any, dx: Tensor, dfeatures: Tensor, dweight: Tensor, dbias: Tensor) -> tuple[Tensor | None, ...]:
        need_features, need_weight = ctx.needs
        direction = (
            dx,
            dfeatures if need_features else None,
            dweight if need_weight else None,
            dbias if need_weight else None,
        )
        grads = IacFromFeaturesDoubleBackward.apply(*direction, *ctx.saved_tensors, *ctx.options)
        return *grads, *[None] * 7


class IacFromFeaturesDoubleBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        dx: Tensor, dfeatures: Tensor | None, dweight: Tensor | None, dbias: Tensor | None,
        grad: Tensor, x: Tensor, features: Tensor, weight: Tensor, bias: Tensor,
        num_steps: int, kernel_size: int, negative_slope: float, activate_last: bool, own: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        tensors, options = (
            (grad, x, features, weight, bias),
            (num_steps, kernel_size, negative_slope, activate_last, own),
        )
        return features_double_backward(dx, (dfeatures, dweight, dbias), tensors, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("iac_from_features: the third derivative is not implemented")


def features_double_backward(
    dx: Tensor, dpredictor: tuple[Tensor | None, ...], tensors: tuple[Tensor, ...], options: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    """Return the gradients of <gradients of iac_from_features, direction> in its grad, x, features, weight and bias.

    The direction is ``dx`` and ``dpredictor``, (dfeatures, dweight, dbias), of which the first and the last two may be
    None. The filters, which are F = weight features + bias, move along dF = weight dfeatures + dweight features +
    dbias; the derivatives in (x, F) are those of iac, and the product rule does the rest. Filters exist for a sixteenth
    of the channels at a time.
    """
    predict = reference.predict_filters
    dh, dweight, dbias = (None if t is None else reference.widen(t)[0] for t in dpredictor)
    dx, grad, x, h, weight, bias = reference.widen(dx, *tensors)
    channels, num_steps, kernel_size = x.shape[1], options[0], options[1]
    numbers = torch.arange(len(bias), device=x.device)
    taps, biases = numbers.split([num_steps * 2 * channels * kernel_size, num_steps * channels])
    taps, biases = taps.view(num_steps, 2, channels, kernel_size), biases.view(num_steps, channels)
    order, parts, grad_h = [], [], torch.zeros_like(h)
    for part in numbers[:channels].split(-(-channels // 16)):
        # The rows of weight that make the filters of these channels, in the order of filters of that many channels
        rows = torch.cat([taps[:, :, part].flatten(), biases[:, part].flatten()])
        w, g, u = weight[rows], grad[:, part], x[:, part]
        filters, dfilters = predict(h, w, bias[rows]), None
        if dweight is not None and dbias is not None:
            dfilters = predict(h, dweight[rows], dbias[rows])
        if dh is not None:
            dfilters = predict(dh, w, None) + (0 if dfilters is None else dfilters)
        grad_grad, grad_x, grad_filters = ops.iac_double_backward(dx[:, part], dfilters, g, u, filters, *options)
        grad_weight = torch.einsum("bohw,bdhw->od", grad_filters, h)
        grad_h = grad_h + torch.einsum("od,bohw->bdhw", w, grad_filters)
        if dfilters is not None:  # grad_dfilters, the gradient in dF, is the first-order gradient in F
            _, grad_dfilters = ops.iac_backward(g, u, filters, u.new_empty(0), *options, True)
            if dweight is not None:
                grad_h = grad_h + torch.einsum("od,bohw->bdhw", dweight[rows], grad_dfilters)
            if dh is not None:
                grad_weight = grad_weight + torch.einsum("bohw,bdhw->od", grad_dfilters, dh)
        order.append(rows)
        parts.append((grad_grad, grad_x, grad_weight, grad_filters.sum((0, 2, 3))))
    by_channel, by_row = zip(*(p[:2] for p in parts), strict=True), zip(*(p[2:] for p in parts), strict=True)
    back = torch.cat(order).argsort()
    grad_grad, grad_x = (torch.cat(column, 1) for column in by_channel)
    grad_weight, grad_bias = (torch.cat(column)[back] for column in by_row)
    return tuple(t.to(tensors[0].dtype) for t in (grad_grad, grad_x, grad_h, grad_weight, grad_bias))
