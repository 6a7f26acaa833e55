"""Registered ops of the adaptive convolutions and how they are differentiated, twice.

The backward of every function is a function again: (grad, x, filters) -> gradients. What it saves besides its inputs is
a cache and takes no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _library
from . import reference

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_OPTIONS = "int num_steps, int kernel_size, float negative_slope, bool activate_last, bool own"


def _dense(like: Tensor, needed: bool = True) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format) if needed else like.new_empty(0)


def _iac_fake(x: Tensor, filters: Tensor, num_steps: int, *options: Any) -> tuple[Tensor, Tensor]:
    steps = num_steps - 1 if options[-1] else 0
    states = x.new_empty(x.shape[0], steps, *x.shape[1:], dtype=_WIDE.get(x.dtype, x.dtype))
    return _dense(x), states


sac = _library.define(
    "sac(Tensor x, Tensor vertical, Tensor horizontal) -> Tensor",
    reference=reference.sac,
    fake=lambda x, vertical, horizontal: _dense(x),
)
sac_backward = _library.define(
    "sac_backward(Tensor grad, Tensor x, Tensor vertical, Tensor horizontal, bool need_taps)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.sac_backward,
    fake=lambda grad, x, vertical, horizontal, need: (_dense(x), _dense(vertical, need), _dense(horizontal, need)),
)
iac = _library.define(
    f"iac(Tensor x, Tensor filters, {_OPTIONS}, bool save_states) -> (Tensor, Tensor)",
    reference=reference.iac,
    fake=_iac_fake,
)
iac_backward = _library.define(
    f"iac_backward(Tensor grad, Tensor x, Tensor filters, Tensor states, {_OPTIONS}, bool need_filters)"
    " -> (Tensor, Tensor)",
    reference=reference.iac_backward,
    fake=lambda grad, x, filters, states, *options: (_dense(x), _dense(filters, options[-1])),
)
iac_double_backward = _library.define(
    f"iac_double_backward(Tensor? dx, Tensor? dfilters, Tensor grad, Tensor x, Tensor filters, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.iac_double_backward,
    fake=lambda dx, dfilters, grad, x, filters, *options: (_dense(grad), _dense(x), _dense(filters)),
)
iac_from_features = _library.define(
    f"iac_from_features(Tensor x, Tensor features, Tensor weight, Tensor bias, {_OPTIONS}) -> Tensor",
    reference=reference.iac_from_features,
    fake=lambda x, *rest: _dense(x),
)
iac_from_features_backward = _library.define(
    f"iac_from_features_backward(Tensor grad, Tensor x, Tensor features, Tensor weight, Tensor bias, {_OPTIONS},"
    " bool need_features, bool need_weight) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.iac_from_features_backward,
    fake=lambda grad, x, features, weight, bias, *options: (
        _dense(x),
        _dense(features, options[-2]),
        _dense(weight, options[-1]),
        _dense(bias, options[-1]),
    ),
)


class Sac(torch.autograd.Function):
    """Trilinear: every derivative is made of sac and its backward with arguments exchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
        return sac(x, vertical, horizontal)

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
        return sac_backward(grad, x, vertical, horizontal, need_taps)

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
    """(x, filters, options, save_states) -> (output, states); the states only spare the backward a forward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return iac(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, filters, *ctx.options, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, filters, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        need_filters = ctx.needs_input_grad[1]
        grad_x, grad_filters = IacBackward.apply(grad, *ctx.saved_tensors, *ctx.options, need_filters)
        return grad_x, grad_filters if need_filters else None, *[None] * 6


class IacBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return iac_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, x, filters, _, *ctx.options, ctx.need_filters = inputs
        ctx.save_for_backward(grad, x, filters)

    @staticmethod
    def backward(ctx: Any, dx: Tensor, dfilters: Tensor) -> tuple[Tensor | None, ...]:
        direction = dx, dfilters if ctx.need_filters else None
        grads = IacDoubleBackward.apply(*direction, *ctx.saved_tensors, *ctx.options)
        return *grads, *[None] * 7


class IacDoubleBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return iac_double_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("iac: the third derivative is not implemented")


class IacFromFeatures(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return iac_from_features(*inputs)

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
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return iac_from_features_backward(*inputs)

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
    """Gradients of <gradients, direction> in grad, x, features, weight and bias, a sixteenth of the channels at a time.

    The filters F = weight * features + bias move along dF = weight * dfeatures + dweight * features + dbias; the
    derivative in (x, F) and the gradient in F are those of iac, and the rest is the product rule.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        dx, dfeatures, dweight, dbias, grad, x, features, weight, bias, *options = inputs
        c, num_steps, kernel_size = x.shape[1], options[0], options[1]
        wide = reference.widen
        h, grad_features, grad_weight, grad_bias = wide(features, features, weight, bias)
        grad_grad, grad_x = torch.empty_like(grad), torch.empty_like(x)
        grad_features, grad_weight, grad_bias = map(torch.zeros_like, (grad_features, grad_weight, grad_bias))
        # rows[c] are the rows of weight that make the filters of channel c, in the order of a single channel's filters
        steps = num_steps * 2 * c * kernel_size
        taps = torch.arange(steps, device=x.device).view(num_steps, 2, c, kernel_size)
        biases = torch.arange(steps, bias.numel(), device=x.device).view(num_steps, c)
        size = -(-c // 16)
        for first in range(0, c, size):
            part = slice(first, first + size)
            rows = torch.cat([taps[:, :, part].flatten(), biases[:, part].flatten()])
            w, b = wide(weight[rows], bias[rows])
            filters, dfilters = reference.predict_filters(h, w, b), None
            terms = []
            if dfeatures is not None:
                (dh,) = wide(dfeatures)
                terms.append(reference.predict_filters(dh, w, None))
            if dweight is not None:
                dw, db = wide(dweight[rows], dbias[rows])
                terms.append(reference.predict_filters(h, dw, db))
            dfilters = sum(terms) if terms else None
            g, u, du = wide(grad[:, part], x[:, part], dx[:, part])
            part_grad_grad, part_grad_x, second = iac_double_backward(du, dfilters, g, u, filters, *options)
            grad_grad[:, part], grad_x[:, part] = part_grad_grad, part_grad_x
            grad_features += torch.einsum("od,bohw->bdhw", w, second)
            grad_weight[rows] = torch.einsum("bohw,bdhw->od", second, h)
            grad_bias[rows] = second.sum((0, 2, 3))
            if terms:
                _, gradient = iac_backward(g, u, filters, u.new_empty(0), *options, True)
                if dweight is not None:
                    grad_features += torch.einsum("od,bohw->bdhw", *wide(dweight[rows]), gradient)
                if dfeatures is not None:
                    grad_weight[rows] += torch.einsum("bohw,bdhw->od", gradient, *wide(dfeatures))
        results = (grad_grad, grad_x, grad_features, grad_weight, grad_bias)
        return tuple(r.to(x.dtype) for r in results)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("iac_from_features: the third derivative is not implemented")
