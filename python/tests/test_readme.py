"""Every `python` block of the READMEs, the guide and docs/python.md runs, in order, in a folder with the pairs they name.

Blocks marked `py` need a GPU: test_device.py runs what they show.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import HH, ROOT

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::lensmith.LensmithWarning")

PAGES = [ROOT / page for page in ("README.md", "python/README.md", "docs/guide.md", "docs/python.md")]


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line and text of the blocks of a page."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start()) + 2, block.group(1)) for block in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "pairs.safetensors", tmp_path / HH.relative_to(ROOT)):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HH, place)
    rng = np.random.default_rng(0)
    # What a reader has of their own.
    names: dict[str, object] = {
        "__name__": "__main__",
        "chosen": rng.standard_normal((400, 64), dtype=np.float32),
        "rejected": rng.standard_normal((400, 64), dtype=np.float32),
    }
    found = blocks(page)
    assert found, f"{page} has Python in it"
    for line, code in found:
        # Line numbers of the page in what a failure shows.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)  # noqa: S102
