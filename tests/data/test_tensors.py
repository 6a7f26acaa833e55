"""Safetensors files are the same bytes in every process."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tta_restore.data.io.tensors import save_tensors

SCRIPT = """
import torch
from tta_restore.data.io.tensors import save_tensors
save_tensors(path, {"b": torch.arange(3.0), "a": torch.ones(2, 2)}, {name: name * 3 + '"\\n\\x01é' for name in "xyzuvw"})
"""  # noqa: E501 (one line of another program)


@pytest.mark.thorough
def test_the_same_content_gives_the_same_bytes_in_every_process(tmp_path):
    made = set()
    for number in range(2):
        path = tmp_path / f"{number}.safetensors"
        if number:
            order = os.environ | {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
            here = "import sys; path = sys.argv[1]" + SCRIPT
            subprocess.run([sys.executable, "-c", here, str(path)], check=True, env=order)
        else:
            exec(SCRIPT, {"path": str(path)})
        made.add(path.read_bytes())
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {name: name * 3 + '"\n\x01é' for name in "xyzuvw"}
            assert torch.equal(file.get_tensor("b"), torch.arange(3.0))
    assert len(made) == 1


def test_arrays_and_files_without_metadata(tmp_path):
    save_tensors(tmp_path / "a", {"a": np.arange(3)})
    with safe_open(tmp_path / "a", framework="numpy") as file:
        assert file.metadata() is None
        assert np.array_equal(file.get_tensor("a"), np.arange(3))
