"""The meta-learner's cell as one C++ kernel, differentiable once. DERIVATION.md, section "The cell"."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from metalstm.kernels.calls import can_read, kernel


def can_step(*inputs: Tensor) -> bool:
    """Whether `step` takes these inputs."""
    weight_h, grad, loss, theta, h, c, f, i = inputs[1], *inputs[7:]
    hidden = *theta.shape[:-1], weight_h.shape[1], theta.shape[-1]
    fits = grad.shape == theta.shape == f.shape == i.shape and loss.shape == theta.shape[:-1]
    return fits and h.shape == c.shape == hidden and theta.numel() > 0 and can_read(*inputs)


def step(scale: float, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same as `_step` in `optimizers/meta_lstm.py`, with the same arguments.

    Differentiable once, in all arguments but `scale`.

    Args:
        scale: p of the preprocessing.
        *inputs: weight_x, weight_h, bias, weight_f, weight_i, bias_f, bias_i, grad, loss, theta, h, c, f, i.

    Returns:
        The new theta, h, c, f and i.
    """
    return _Step.apply(scale, *inputs)  # pyright: ignore[reportReturnType]


class _Step(Function):
    @staticmethod
    def forward(ctx: Any, scale: float, *inputs: Tensor) -> tuple[Tensor, ...]:
        inputs = tuple(tensor.contiguous() for tensor in inputs)
        weight_x, weight_h, bias, weight_f, weight_i, bias_f, bias_i, grad, loss, theta, h, c, f, i = inputs
        new_theta, new_h, new_c, new_f, new_i = (torch.empty_like(tensor) for tensor in (theta, h, c, f, i))
        kernel("cell_forward")(
            tasks=theta.shape[:-1],
            n=theta.shape[-1],
            hidden=h.shape[-2],
            scale=scale,
            weight_x=weight_x,
            weight_h=weight_h,
            bias=bias,
            weight_f=weight_f,
            weight_i=weight_i,
            bias_f=bias_f,
            bias_i=bias_i,
            grad=grad,
            loss=loss,
            theta=theta,
            h=h,
            c=c,
            f=f,
            i=i,
            new_theta=new_theta,
            new_h=new_h,
            new_c=new_c,
            new_f=new_f,
            new_i=new_i,
        )
        ctx.scale = scale
        ctx.save_for_backward(*inputs, new_f, new_i)
        return new_theta, new_h, new_c, new_f, new_i

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, new_f, new_i = ctx.saved_tensors
        weight_x, weight_h, bias, weight_f, weight_i, _, _, grad, loss, theta, h, c, f, i = inputs
        d_new_theta, d_new_h, d_new_c, d_new_f, d_new_i = (tensor.contiguous() for tensor in cotangents)
        outputs = tuple(torch.empty_like(tensor) for tensor in inputs)
        d_weight_x, d_weight_h, d_bias, d_weight_f, d_weight_i, d_bias_f, d_bias_i = outputs[:7]
        d_grad, d_loss, d_theta, d_h, d_c, d_f, d_i = outputs[7:]
        kernel("cell_backward")(
            tasks=theta.shape[:-1],
            n=theta.shape[-1],
            hidden=h.shape[-2],
            scale=ctx.scale,
            weight_x=weight_x,
            weight_h=weight_h,
            bias=bias,
            weight_f=weight_f,
            weight_i=weight_i,
            grad=grad,
            loss=loss,
            theta=theta,
            h=h,
            c=c,
            f=f,
            i=i,
            new_f=new_f,
            new_i=new_i,
            d_new_theta=d_new_theta,
            d_new_h=d_new_h,
            d_new_c=d_new_c,
            d_new_f=d_new_f,
            d_new_i=d_new_i,
            d_weight_x=d_weight_x,
            d_weight_h=d_weight_h,
            d_bias=d_bias,
            d_weight_f=d_weight_f,
            d_weight_i=d_weight_i,
            d_bias_f=d_bias_f,
            d_bias_i=d_bias_i,
            d_grad=d_grad,
            d_loss=d_loss,
            d_theta=d_theta,
            d_h=d_h,
            d_c=d_c,
            d_f=d_f,
            d_i=d_i,
        )
        return None, *outputs
