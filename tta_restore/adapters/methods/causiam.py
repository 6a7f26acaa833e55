"""CauSiam: SiamCTTA on a cross-attention that tells the restorer what the frame shows."""

from __future__ import annotations

from typing import Any, Literal

from tta_restore._core import checks
from tta_restore.adapters.guards import Guards
from tta_restore.adapters.injection import Semantic
from tta_restore.adapters.methods.siam_ctta import SiamCTTA
from tta_restore.adapters.select import Select
from tta_restore.adapters.tiling import CenterCrop
from tta_restore.nn import OpenClipEncoder

_RELEASED: dict[str, Any] = {
    "lr_floor": 0.0,
    "views": "rot4",
    "region": None,
    "guards": Guards(spike=None, drift=None),
}
_REPAIRED: dict[str, Any] = {"lr_floor": 0.1, "views": "rot4_flip", "region": CenterCrop(1120), "guards": Guards()}


class CauSiam(SiamCTTA, method="causiam"):
    """:class:`SiamCTTA` of a cross-attention behind one module, which reads an image encoder's view of the restoration.

    The source restores the frame, the encoder describes that restoration, and student and teacher read the description;
    only the cross-attention is adapted. One vector per image makes it a shift per channel; ``output="patches"`` of the
    encoders gives it tokens. No gain over :class:`SelfEnsemble` was measured for this package.

    Args:
        model: see :class:`SiamCTTA`, as for ``options``, each of which goes before what ``form`` says.
        semantic: encoder and place; by default CLIP ViT-B/32 with OpenAI's weights, at "auto".
        select: which weights to adapt, by default the injected ones; a model that is given its context by keyword has
            none of those.
        form: "released", exactly as released: the learning rate dies after about a hundred updates, four views, no
            guards, CLIP's input not normalized; "repaired", for long streams: a floor under the learning rate (a
            tenth), five views as in the paper, a crop of 1120 pixels for whatever is larger, guards.

    Source: arXiv 2501.09052; deviations in :class:`SiamCTTA`, and the attention starts as the identity.
    """

    def __init__(
        self,
        model: Any,
        *,
        semantic: Semantic | None = None,
        select: Select = "injected",
        form: Literal["released", "repaired"] = "released",
        **options: Any,
    ) -> None:
        checks.expect_choice("CauSiam", "form", form, ("released", "repaired"))
        if semantic is None:
            variant = "official" if form == "released" else "ours"
            semantic = Semantic(OpenClipEncoder("ViT-B-32", "openai", variant=variant), at="auto")
        defaults = _RELEASED if form == "released" else _REPAIRED
        if not isinstance(semantic, Semantic):
            raise TypeError(f"CauSiam: expected semantic to be a Semantic or None, got {type(semantic).__name__}")
        super().__init__(model, select=select, semantic=semantic, **(defaults | options))
