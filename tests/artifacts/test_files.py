# SPDX-License-Identifier: Apache-2.0
import stat

import pytest

from monai_llmboost.artifacts.files import atomic_text, plain_cell, safe_row


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with pytest.raises(RuntimeError, match="stopped"), atomic_text(path) as file:
        file.write("half")
        raise RuntimeError("stopped")
    assert not list(path.parent.iterdir())
    with atomic_text(path) as file:
        file.write("whole")
    assert path.read_text() == "whole"
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_plain_cells_are_what_was_written():
    for text in ("=1", "'=1", "''=1", "a", "'a", "", "'", "-1", "'-1", "''-1", "+x", "-inf", "\uff1d1", " =1", "0.5"):
        (written,) = safe_row({"x": text}).values()
        assert plain_cell(written) == text
        assert not written.startswith(("=1", "+x", "\uff1d"))
    assert safe_row({"x": -1.5, "y": "-1.5", "z": None}) == {"x": -1.5, "y": "-1.5", "z": None}
