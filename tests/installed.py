"""Check an installed package that has no extras: `python tests/installed.py`, away from the checkout.

Imports in under 1.5 s, the kernels of the wheel, and `tta-restore restore` with a shipped model. `.ci/release` runs it.
"""

import subprocess
import sys
import tempfile
import time
from importlib.metadata import distribution
from pathlib import Path

import torch
from PIL import Image

import tta_restore

LIMIT = 1.5  # seconds


def seconds(*command):
    """Return the wall-clock time of a command, the best of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    place = Path(tta_restore.__file__).parent
    assert "site-packages" in place.parts, f"{place} is not an installed package"
    tags = [line.split()[1] for line in distribution("tta-restore").read_text("WHEEL").splitlines() if "Tag:" in line]
    importing = seconds(sys.executable, "-c", "import tta_restore")
    torch_too = seconds(sys.executable, "-c", "import tta_restore.adapters")
    helping = seconds("tta-restore", "--help")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {', '.join(tags)}, in {place}")
    print(f"import tta_restore {importing:.2f} s, with adapters and torch {torch_too:.2f} s; --help {helping:.2f} s")
    assert importing < LIMIT
    kernels = [tag for tag in tags if not tag.endswith("any")]
    if kernels:
        assert (place / "_C.so").is_file()
    assert ("x86-64" in tta_restore.show_config() or "aarch64" in tta_restore.show_config()) == bool(kernels)
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.png"
        noise = torch.randint(0, 256, (40, 48, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(frame)
        out = Path(folder) / "out"
        subprocess.run(["tta-restore", "restore", frame, "-o", out, "--model", "denoiser", "-q"], check=True)
        with Image.open(out / "frame.png") as restored:
            assert restored.size == (48, 40)
    print("restore: OK")


if __name__ == "__main__":
    main()
