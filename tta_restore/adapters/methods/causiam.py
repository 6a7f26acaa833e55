"""CauSiam: SiamCTTA of a cross-attention to the features of an image encoder."""

from __future__ import annotations

from typing import Any, Literal

from tta_restore._core import checks
from tta_restore.adapters.injection import Semantic
from tta_restore.adapters.methods.siam_ctta import SiamCTTA
from tta_restore.adapters.select import Select
from tta_restore.adapters.state import Guards
from tta_restore.adapters.views import CenterCrop
from tta_restore.nn import OpenClipEncoder

_OFFICIAL: dict[str, Any] = {
    "lr_floor": 0.0,
    "views": "rot4",
    "region": None,
    "guards": Guards(max_loss_ratio=None, max_drift=None),
}
_OURS: dict[str, Any] = {"lr_floor": 0.1, "views": "rot4_flip", "region": CenterCrop(1120), "guards": Guards()}


class CauSiam(SiamCTTA, method="causiam"):
    """:class:`SiamCTTA` that adapts a cross-attention behind one module of the model.

    The source restores the frame, an image encoder maps that restoration to a context, and student and teacher attend
    to the context; only the cross-attention is adapted. With one vector per image it is a shift per channel;
    ``output="patches"`` of the encoders returns tokens.

    Args:
        model: see :class:`SiamCTTA`, as for ``options``, each of which overrides the defaults of ``variant``.
        semantic: encoder and injection site; by default CLIP ViT-B/32 with OpenAI's weights, at "auto".
        select: which weights to adapt, by default the injected ones; a model that takes its context by keyword has
            none of those.
        variant: "official" reproduces the authors' code: a learning rate that vanishes after about a hundred updates,
            four views, no guards, CLIP's input not normalized. "ours" is for long streams: a floor of a tenth under
            the learning rate, five views as in the paper, a crop of 1120 pixels for larger frames, guards.

    Source: arXiv 2501.09052; deviations in :class:`SiamCTTA`, and the attention starts as the identity.
    """

    def __init__(
        self,
        model: Any,
        *,
        semantic: Semantic | None = None,
        select: Select = "injected",
        variant: Literal["official", "ours"] = "official",
        **options: Any,
    ) -> None:
        checks.expect_choice("CauSiam", "variant", variant, ("official", "ours"))
        if semantic is None:
            semantic = Semantic(OpenClipEncoder("ViT-B-32", "openai", variant=variant), at="auto")
        defaults = _OFFICIAL if variant == "official" else _OURS
        if not isinstance(semantic, Semantic):
            raise TypeError(f"CauSiam: expected semantic to be a Semantic or None, got {type(semantic).__name__}")
        super().__init__(model, select=select, semantic=semantic, **(defaults | options))
