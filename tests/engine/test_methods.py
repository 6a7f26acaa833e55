"""Methods by name: what does not suit the model is said before the first image."""

from __future__ import annotations

import pytest
from torch import nn

from tta_restore.adapters import Adapter
from tta_restore.engine.run.methods import create_method
from tta_restore.engine.run.usage import UsageError
from tta_restore.models import RestorerSpec, as_restorer


class Enlarging(Adapter):
    """A method that somebody wrote for upscalers."""

    def expect_suitable(self, spec: RestorerSpec) -> None:
        if spec.scale == 1:
            raise ValueError("Enlarging: expected a model that enlarges")


def doubler() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))


@pytest.mark.parametrize("name", ["reblur-pairs", "reblur-consistency", "self-denoise"])
@pytest.mark.parametrize("spec", [None, RestorerSpec(scale=2)], ids=["measured", "declared"])
def test_methods_that_keep_the_size_refuse_upscalers(name, spec):
    with pytest.raises(UsageError, match=rf"method '{name}': \w+: expected a model of scale 1, got scale 2"):
        create_method(name, as_restorer(doubler(), spec))


@pytest.mark.parametrize("spec", [None, RestorerSpec()], ids=["measured", "declared"])
def test_a_method_of_the_users_own_is_asked_as_well(spec):
    with pytest.raises(UsageError, match="expected a model that enlarges"):
        create_method(f"{__name__}:Enlarging", as_restorer(nn.Conv2d(3, 3, 1), spec))
