"""The embedded image: made here of the distribution's busybox, always the same, and openly named."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from pycontain.images import embedded
from pycontain.images import manifest as m
from pycontain.images.reference import parse
from pycontain.images.rootfs import ensure_layers
from pycontain.images.store import Store
from pycontain.runtime.errors import NotFound, PycontainError

HINT = "apt-get install busybox-static"


@pytest.mark.needs("root", "busybox")
def test_it_is_an_ordinary_image_that_runs(tmp_path: Path) -> None:
    store, other = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    reference = embedded.ensure(store)
    assert str(reference) == "pycontain.local/busybox:embedded" and parse(reference.familiar()) == reference
    assert store.get_ref(str(reference)) == other.get_ref(str(embedded.ensure(other)))
    before = os.stat(os.path.join(store.root, "refs.json")).st_mtime_ns
    embedded.ensure(store)
    assert os.stat(os.path.join(store.root, "refs.json")).st_mtime_ns == before
    manifest = m.select(store, store.get_ref(str(reference)))
    config = m.image_config(store, manifest)
    assert config.cmd == ("/bin/sh",) and config.platform == m.Platform.host()
    (lower,) = ensure_layers(store, manifest)
    script = ". /etc/os-release; echo $NAME; ls -d /sbin/ip /usr/bin/env; stat -c %a /tmp; id -un; grep -c . /etc/group"
    done = subprocess.run(
        ["/usr/sbin/chroot", lower, "/bin/sh", "-c", script],
        capture_output=True,
        text=True,
        env={"PATH": "/bin"},
        check=True,
    )
    assert done.stdout.split("\n") == ["pycontain embedded image", "/sbin/ip", "/usr/bin/env", "1777", "root", "4", ""]
    assert stat.S_IMODE(os.stat(os.path.join(lower, "root")).st_mode) == 0o700


def test_what_is_no_static_busybox_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "a"))
    with pytest.raises(NotFound) as caught:
        embedded.ensure(store, busybox="/nowhere/busybox")
    assert caught.value.message == "the embedded image needs a static busybox: /nowhere/busybox is not there"
    assert caught.value.hint == HINT
    (tmp_path / "script").write_text("#!/bin/sh\n" + "#" * 100)
    for path, problem in ((str(tmp_path / "script"), "is not a 64 bit program"), ("/bin/sh", "is not static")):
        with pytest.raises(PycontainError) as other:
            embedded.ensure(store, busybox=path)
        assert other.value.message == f"the embedded image needs a static busybox: {path} {problem}"
        assert other.value.hint == HINT
    assert store.refs() == {}
