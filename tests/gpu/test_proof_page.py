"""docs/proof.md says what its command prints."""

import pytest
from compiled import NVCC

if NVCC is None:
    pytest.skip("nvcc is not installed", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")

from proof_page import BLOCK, PAGE, TABLES


def test_the_page_holds_every_table_once():
    assert sorted(block["name"] for block in BLOCK.finditer(PAGE.read_text())) == sorted(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_what_its_command_prints(name):
    shown = {block["name"]: block["body"] for block in BLOCK.finditer(PAGE.read_text())}
    assert shown[name] == TABLES[name]() + "\n", "write it with: python tests/gpu/proof_page.py"
