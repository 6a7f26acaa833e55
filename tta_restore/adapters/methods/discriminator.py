"""Train a discriminator on reblurred and real images while it scores them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tta_restore import losses
from tta_restore._core import checks
from tta_restore.adapters.state import ParameterSet, copy
from tta_restore.losses.adversarial import Kind


class DiscriminatorTrainer:
    """Trainer of a discriminator between reblurred and real images, on copied weights; the module stays as it is.

    Args:
        discriminator: module that returns scores of images (B, C, H, W), of any shape.
        kind: kind of the losses, see :func:`tta_restore.losses.adversarial_loss`.
        lr: learning rate of RMSprop, which is the attribute ``optimizer``.
        clip: bound of every weight of a Wasserstein discriminator after each step; None for none.
        update_interval: calls of :meth:`update` between two steps.

    Source: Arjovsky et al., Wasserstein GAN, ICML 2017, as Meta Transferring (Liu et al., BMVC 2022) releases it.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        *,
        kind: Kind = "wasserstein",
        lr: float = 1e-6,
        clip: float | None = 0.01,
        update_interval: int = 1,
    ) -> None:
        checks.expect_choice("DiscriminatorTrainer", "kind", kind, ("wasserstein", "least_squares"))
        checks.expect_int("DiscriminatorTrainer", "update_interval", update_interval, minimum=1)
        self.discriminator, self.kind, self.update_interval = discriminator, kind, update_interval
        self.clip = clip if kind == "wasserstein" else None
        self.weights: ParameterSet = copy(dict(discriminator.named_parameters()), trained=True)
        self.optimizer = torch.optim.RMSprop(list(self.weights.values()), lr=lr)
        self._calls = 0

    def update(self, fake: Tensor, real: Tensor) -> Tensor:
        """Take a step if one is due, and return the adversarial loss of ``fake``.

        Shape: fake, real (B, C, H, W) in [0, 1] -> scalar; gradients reach ``fake`` only.
        """
        if self._calls % self.update_interval == 0:
            self._learn(fake.detach(), real.detach())
        self._calls += 1
        weights = {name: weight.detach().clone() for name, weight in self.weights.items()}  # steps are in place
        return losses.adversarial_loss(functional_call(self.discriminator, weights, (fake,)), kind=self.kind)

    def _learn(self, fake: Tensor, real: Tensor) -> None:
        with torch.enable_grad():
            scores = [functional_call(self.discriminator, self.weights, (image,)) for image in (fake, real)]
            loss = losses.discriminator_loss(*scores, kind=self.kind)
            gradients = torch.autograd.grad(loss, list(self.weights.values()), allow_unused=True)
        if not all(gradient is None or gradient.isfinite().all() for gradient in gradients):
            return  # non-finite input; the step on the reblurring network is rejected as well
        for weight, gradient in zip(self.weights.values(), gradients, strict=True):
            weight.grad = gradient
        self.optimizer.step()
        for weight in self.weights.values():
            weight.grad = None
            if self.clip is not None:
                with torch.no_grad():
                    weight.clamp_(-self.clip, self.clip)
