"""A bounded run of every reader of files: the corpus, then inputs changed at random, the same in every run."""

from pathlib import Path

import pytest
from fuzz import readers


@pytest.mark.parametrize("name", readers.READERS)
def test_any_input_is_read_or_refused(name: str, tmp_path: Path) -> None:
    count = len(readers.seeds(name)) + max(20, readers.READERS[name].count // 200)
    outcome = readers.run(name, count, seed=1, folder=tmp_path)
    assert outcome.faults == {}
    assert outcome.inputs == count
    assert outcome.refused < count  # or nothing behind the first check was reached
