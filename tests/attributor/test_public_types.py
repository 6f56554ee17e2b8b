"""A type checker sees the public names as what they are."""

import subprocess
import sys
from pathlib import Path

import pytest

import inrun

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_no_public_name_is_any(tmp_path):
    names = sorted(inrun.__all__)
    lines = [f"reveal_type({name})" for name in names]
    program = f"from inrun import {', '.join(names)}\n" + "\n".join(lines) + "\n"
    (tmp_path / "reveal.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(tmp_path / "cache"), str(tmp_path / "reveal.py")]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    revealed = [line for line in told.splitlines() if "Revealed type is" in line]
    assert len(revealed) == len(names), told
    assert not [line for line in revealed if '"Any"' in line]
    assert any("inrun.attributor.attributor.Attributor" in line for line in revealed)


def test_every_public_name_is_there_and_nothing_else_is():
    assert all(getattr(inrun, name).__name__ == name for name in inrun.__all__)
    assert set(inrun.__all__) <= set(dir(inrun))
    with pytest.raises(AttributeError, match="no attribute 'Method'"):
        inrun.Method
