"""Fuzzing within bounds: every saved input through its target, and a short run under coverage guidance from there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from fuzz.__main__ import CORPUS, saved
from fuzz.targets import TARGETS

RUNS = 600


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command `python -m fuzz`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fuzz", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT / "Testing",
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def test_every_target_has_saved_inputs_and_every_input_a_target():
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert all(saved(name) for name in TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 300_000


def test_saved_inputs_are_survived():
    """The findings of earlier runs among them (finding-*)."""
    done = fuzz("replay")
    number = sum(len(saved(name)) for name in TARGETS)
    assert done.returncode == 0 and f"{number} inputs, 0 findings" in done.stdout, done.stdout[-3000:]


def test_a_target_that_fails_is_a_finding():
    """The net holds: an INTERNAL error and a foreign exception both pass through it."""
    from fuzz.targets import refusals

    from SAUNetLib.errors import SAUNetError, UsageError

    with refusals():
        raise UsageError("USAGE", "a cause", "a remedy")
    for failure in (ValueError("x"), SAUNetError("INTERNAL", "a", "b"), UsageError("USAGE", "", "b")):
        with pytest.raises((ValueError, AssertionError)), refusals():
            raise failure


def test_a_short_run_under_coverage_guidance_finds_and_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("atheris", reason="atheris has wheels for Linux on x86-64 only")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    done = fuzz("run", "--", f"-runs={RUNS}", "-max_total_time=30", "-seed=1", f"-artifact_prefix={tmp_path}/")
    assert done.returncode == 0, done.stderr[-4000:]
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert not list((tmp_path / "temporary").glob("saunet-*"))
    assert re.search(r"DONE\s+cov: \d{3,}", done.stderr), "coverage was measured"


def test_the_page_s_counts_are_true():
    """docs/reliability.md: lines `| Testing/FILE.py | N |`, and the numbers of targets, saved inputs and findings."""
    notes = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    counts = dict(re.findall(r"^\| `(Testing/\w+\.py)` \| (\d+) \|", notes, re.MULTILINE))
    assert counts
    for name, stated in counts.items():
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        found = [one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")]
        assert len(found) == int(stated), name
    inputs = [path for path in CORPUS.rglob("*") if path.is_file()]
    findings = [path for path in inputs if path.name.startswith("finding-")]
    assert f"{len(TARGETS)} targets, {len(inputs)} saved inputs, {len(findings)} of them former findings" in notes
