"""Self-ensemble: the mean of a restorer's views of a frame, nothing learned."""

from __future__ import annotations

from typing import Any

from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.views import Views


class SelfEnsemble(Adapter, method="self_ensemble"):
    """Restores a frame in several orientations, turns the results back and averages them.

    It learns nothing, costs one pass per view, and never does worse than a view on average: the yardstick for every
    method that adapts.

    Args:
        model: see :class:`Adapter`, as for ``options``.
        views: see :func:`resolve_views`.

    Source: Timofte et al., Seven ways to improve example-based single image super resolution, CVPR 2016.
    """

    def __init__(self, model: Any, *, views: Views = "rot4", **options: Any) -> None:
        super().__init__(model, views=views, **options)
