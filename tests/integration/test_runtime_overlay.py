"""Root file systems of many layers, mounted by init where nobody else sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycontain.runtime import lifecycle
from pycontain.runtime.errors import KernelError
from tests.runtime_tools import make_rootfs, write_bundle

pytestmark = pytest.mark.needs("root", "overlayfs")


def layered(tmp_path: Path, count: int) -> dict[str, object]:
    lower = [make_rootfs(tmp_path / "image" / "rootfs")]
    for i in range(count - 1):
        layer = tmp_path / f"{i:0100}, with a comma: and a colon"
        (layer / "layers").mkdir(parents=True)
        (layer / "layers" / str(i)).write_text(str(i))
        lower.insert(0, layer)
    for name in ("upper", "work", "target"):
        (tmp_path / name).mkdir()
    named = {"target": str(tmp_path / "target"), "upper": str(tmp_path / "upper"), "work": str(tmp_path / "work")}
    return {"kind": "overlay", "lower": [str(path) for path in lower], **named}


@pytest.mark.parametrize("count", [1, 127])
def test_layers(tmp_path: Path, count: int) -> None:
    rootfs = layered(tmp_path, count)
    bundle = write_bundle(
        tmp_path / "bundle", tmp_path, "sh", "-c", "ls /layers | wc -l > /result; cat /proc/1/mountinfo > /mounts"
    )
    (bundle / "config.json").write_text(
        (bundle / "config.json").read_text().replace('"readonly": true', '"readonly": false')
    )
    running = lifecycle.create("t-layers", str(bundle), root=str(tmp_path / "state"), rootfs=rootfs, listen=False)
    running.start()
    assert running.wait() == 0
    lifecycle.delete("t-layers", root=str(tmp_path / "state"))
    assert (tmp_path / "upper/result").read_text().strip() == str(count - 1)
    assert "upperdir" in (tmp_path / "upper/mounts").read_text()
    assert str(tmp_path) not in (tmp_path / "upper/mounts").read_text()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_files_are_read_inside(tmp_path: Path) -> None:
    rootfs = layered(tmp_path, 3)
    top = Path(str(rootfs["lower"][0]))  # type: ignore[index]
    (top / "etc").mkdir()
    (top / "etc/passwd").symlink_to("/elsewhere/passwd")
    (top / "elsewhere").mkdir()
    (top / "elsewhere/passwd").write_text("inside")
    (top / "etc/group").symlink_to("../../../../../../../../../../../etc/hostname")
    (top / "etc/loop").symlink_to("loop")
    assert lifecycle.read_in_root(rootfs, ["etc/passwd", "/etc/passwd", "etc/none"], 3) == [b"ins", b"ins", None]
    inner = lifecycle.read_in_root(rootfs, ["etc/group"])[0]
    assert inner is None or inner == (tmp_path / "image/rootfs/etc/hostname").read_bytes()
    with pytest.raises(KernelError, match=r"^cannot read a file of the root file system: ELOOP"):
        lifecycle.read_in_root(rootfs, ["etc/loop"])
    with pytest.raises(KernelError, match=r"^cannot read a file of the root file system: EINVAL"):
        lifecycle.read_in_root(rootfs, ["etc"])
