"""The decoder of plans under ASan and UBSan, for some seconds of the fuzzer that `make fuzz` runs for ten minutes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fuzz")
    subprocess.run(["make", "-s", "-C", FUZZ, f"OUT={out}", out / "decoder"], check=True, timeout=60)
    return out / "decoder"


@pytest.mark.needs("clang")
def test_decoder_reads_within_its_bytes(fuzzer: Path, tmp_path: Path) -> None:
    from tests.fuzz import seeds

    count = seeds.write(str(tmp_path / "corpus"))
    assert count > 40
    options = ["-runs=300000", "-seed=1", "-max_len=2048", f"-artifact_prefix={tmp_path}/"]
    corpora = [tmp_path / "corpus", FUZZ / "corpus/decoder"]  # what is new goes to the first
    done = subprocess.run([fuzzer, *options, *corpora], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done 300000 runs" in done.stderr


@pytest.mark.needs("clang")
def test_the_fuzzer_would_find_an_overrun(tmp_path: Path) -> None:
    """The same fuzzer on a decoder whose bound is off by one: the instrument works."""
    header = (FUZZ.parents[1] / "runtime/init/plan.h").read_text()
    bound = "(size_t)(c->end - c->at) < n)"
    assert header.count(bound) == 1
    (tmp_path / "runtime/init").mkdir(parents=True)
    (tmp_path / "tests/fuzz").mkdir(parents=True)
    (tmp_path / "runtime/init/plan.h").write_text(header.replace(bound, "(size_t)(c->end - c->at) + 1 < n)"))
    for name in ("runtime/init/protocol.h", "tests/fuzz/decoder.c", "tests/fuzz/Makefile"):
        (tmp_path / name).write_bytes((FUZZ.parents[1] / name).read_bytes())
    subprocess.run(
        ["make", "-s", "-C", tmp_path / "tests/fuzz", f"OUT={tmp_path}", tmp_path / "decoder"], check=True, timeout=60
    )
    done = subprocess.run(
        [tmp_path / "decoder", "-runs=200000", "-seed=1", f"-artifact_prefix={tmp_path}/"],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
