"""A discriminator that is trained while it judges."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tta_restore import losses
from tta_restore._core import checks
from tta_restore.adapters.state import ParameterSet, copied
from tta_restore.losses.adversarial import Kind


class Critic:
    """Tells reblurred pictures from real ones, on a set of weights of its own; the module stays as it is.

    Args:
        discriminator: gives scores of pictures (B, C, H, W), of any shape.
        kind: of the losses, see :func:`tta_restore.losses.adversarial_loss`.
        lr: rate of its RMSprop.
        clip: bound of every weight of a Wasserstein critic after each step; None for none.
        every: judgments between two steps.

    ``optimizer`` is that RMSprop, for a schedule of its rate.

    Source: Arjovsky et al., Wasserstein GAN, ICML 2017, as Meta Transferring (Liu et al., BMVC 2022) releases it.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        *,
        kind: Kind = "wasserstein",
        lr: float = 1e-6,
        clip: float | None = 0.01,
        every: int = 1,
    ) -> None:
        checks.expect_choice("Critic", "kind", kind, ("wasserstein", "least_squares"))
        checks.expect_int("Critic", "every", every, minimum=1)
        self.discriminator, self.kind, self.every = discriminator, kind, every
        self.clip = clip if kind == "wasserstein" else None
        self.weights: ParameterSet = copied(dict(discriminator.named_parameters()), trained=True)
        self.optimizer = torch.optim.RMSprop(list(self.weights.values()), lr=lr)
        self._judged = 0

    def judge(self, fake: Tensor, real: Tensor) -> Tensor:
        """Learn from the two, then say what the maker of ``fake`` is to minimize.

        Shape: fake, real (B, C, H, W) in [0, 1] -> scalar; gradients reach ``fake`` only.
        """
        if self._judged % self.every == 0:
            self._learn(fake.detach(), real.detach())
        self._judged += 1
        weights = {name: weight.detach().clone() for name, weight in self.weights.items()}  # steps are in place
        return losses.adversarial_loss(functional_call(self.discriminator, weights, (fake,)), kind=self.kind)

    def _learn(self, fake: Tensor, real: Tensor) -> None:
        with torch.enable_grad():
            scores = [functional_call(self.discriminator, self.weights, (picture,)) for picture in (fake, real)]
            loss = losses.discriminator_loss(*scores, kind=self.kind)
            gradients = torch.autograd.grad(loss, list(self.weights.values()), allow_unused=True)
        if not all(gradient is None or gradient.isfinite().all() for gradient in gradients):
            return  # what it was shown is no picture; the step of the maker is refused as well
        for weight, gradient in zip(self.weights.values(), gradients, strict=True):
            weight.grad = gradient
        self.optimizer.step()
        for weight in self.weights.values():
            weight.grad = None
            if self.clip is not None:
                with torch.no_grad():
                    weight.clamp_(-self.clip, self.clip)
