"""The conformance suite: two networks always, others with the thorough tests, all with the slow ones."""

from pathlib import Path

import pytest
from conformance.examine import TABLE, examine, installed, package

QUICK = {"DnCNN/FDnCNN", "RCAN"}
THOROUGH = {
    "DRUNet", "ESRGAN/shuffle4", "MMRealSR", "MoSR", "NAFNet", "PLKSR", "SAFMNBCIE", "SPAN", "SeemoRe", "SwiftSRGAN",
}  # fmt: skip
DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(
            key,
            marks=[
                *([] if key in QUICK else [pytest.mark.thorough if key in THOROUGH else pytest.mark.slow]),
                pytest.mark.skipif(not installed(key), reason=f"{package(key)} is not installed"),
            ],
        )
        for key in TABLE
    ],
)
def test_it_is_wrapped_adapted_reset_saved_and_detached(key):
    row = next(line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| {key} |"))
    assert examine(key).row == row


def test_the_document_has_a_row_for_every_architecture():
    lines = DOCUMENT.read_text().splitlines()
    keys = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert keys[1:] == list(TABLE)
