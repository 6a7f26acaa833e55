"""The table of invariants: every method around every network."""

import pytest
from adapters._base import AdapterTests

from tta_restore.adapters.methods import degradation_pairs

pytestmark = pytest.mark.usefixtures("one_examination")


@pytest.fixture(autouse=True, scope="module")
def few_held_out_pairs():
    """Tests on held-out pairs were half of the time of the methods that make pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(degradation_pairs, "_HELD_OUT", 4)
        yield


class TestInvariants(AdapterTests):
    pass
