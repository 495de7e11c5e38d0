"""docs/models.md lists the families that the tests try, and no other."""

import pytest

from families import READING, SEEING, table
from helpers import ROOT

PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("families", [SEEING, READING], ids=["seeing", "reading"])
def test_the_page_holds_the_table_of_the_tests_list(families):
    assert table(families) in PAGE, "python tests/families.py prints both tables"


def test_every_family_of_a_model_file_has_that_file_and_a_trainer():
    for family in [*SEEING, *READING]:
        assert not family.file or (ROOT / "config" / "model" / f"{family.file}.yaml").is_file()
