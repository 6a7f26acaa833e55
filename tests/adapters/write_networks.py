"""Write the table of methods and networks of the docs: python tests/adapters/write_networks.py docs/networks.md"""

from __future__ import annotations

import re
import sys
import textwrap
import warnings
from pathlib import Path

import torch

INTRODUCTION = """
Small networks in the styles of third-party code, each run through each method. *yes*: two frames are adapted on and
restored, and the network is unchanged. A number: the method refuses the network with the message below, before anything
changes. The weights after three frames equal those of a plain training loop on copies of the network to 1e-5
(`tests/adapters/test_styles.py`): for `SiamCTTA`, `DegradationPairs` and `SelfDenoise` on each network that a loop can
train, for the other methods that learn on those of seven that they take. `CauSiam` runs with an encoder that averages
colors. Written by `python tests/adapters/write_networks.py docs/networks.md`.
"""


def main() -> None:
    """Write the table of methods and styles."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from adapters.styles import METHODS, STYLES, outcome

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    notes: dict[str, int] = {}
    rows = []
    for style in STYLES:
        cells = []
        for method in METHODS:
            said = outcome(method, style)
            said = re.sub(rf"^{method}: ", "*method*: ", said)
            said = re.sub(r"(got|shape) \(\d, \d, \d+, \d+\)", r"\1 ...", said)
            cells.append("yes" if said == "yes" else f"[{notes.setdefault(said, len(notes) + 1)}]")
        rows.append(f"| {style} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    text = [
        "# Networks and methods",
        "",
        *textwrap.wrap(INTRODUCTION.strip(), 120),
        "",
        f"| network | {' | '.join(METHODS)} |",
        f"|---|{'---|' * len(METHODS)}",
        *rows,
        "",
        *(f"{number}. `{said.splitlines()[0]}`" for said, number in notes.items()),
    ]
    Path(sys.argv[1]).write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
