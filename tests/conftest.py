"""The gate of the suite: what a test needs is named by a marker, and a missing need skips by that name."""

from __future__ import annotations

import signal

import pytest

from tests import needs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--must-have",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="fail, rather than skip, a test for which the need NAME is missing",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job has it ignored, and so would everything that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.pluginmanager.hasplugin("hypothesispytest"):  # not in the machine of tests/vm, where it takes seconds
        import hypothesis

        # How long an example takes says something about the machine, not about the code.
        hypothesis.settings.register_profile("pycontain", deadline=None)
        hypothesis.settings.load_profile("pycontain")
    for name in _must_have(config):
        if name not in needs.names():
            raise pytest.UsageError(f"--must-have {name}: no such need; known: {', '.join(needs.names())}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in _needs(item):
            if name not in needs.names():
                known = ", ".join(needs.names())
                raise pytest.UsageError(f"{item.nodeid}: needs({name!r}): no such need; known: {known}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in _needs(item):
        why = needs.missing(name)
        if why is None:
            continue
        if name in _must_have(item.config):
            pytest.fail(f"needs {name}: {why} (--must-have {name})", pytrace=False)
        pytest.skip(f"needs {name}: {why}")


def _must_have(config: pytest.Config) -> list[str]:
    return [name for value in config.getoption("--must-have") for name in value.split(",") if name]


def _needs(item: pytest.Item) -> list[str]:
    return [name for marker in item.iter_markers("needs") for name in marker.args]
