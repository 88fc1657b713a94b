"""Properties of planning: whatever config.json the specification's schema allows is planned, or refused by its JSON path;
and what is planned is read by init as it was meant."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontain.runtime import creation
from pycontain.runtime import spec as spec_module
from pycontain.runtime.errors import SpecError, Unsupported
from pycontain.runtime.example import EXAMPLE, rootless
from pycontain.runtime.jsontext import dump, parse
from pycontain.runtime.kernel.cgroup import Cgroup
from pycontain.runtime.kernel.cgroup_v1 import CgroupV1, device_writes
from pycontain.runtime.kernel.cgroup_v2 import CgroupV2
from pycontain.runtime.kernel.hierarchies import Hierarchy
from pycontain.runtime.kernel.host import probe
from pycontain.runtime.plan.describe import describe
from pycontain.runtime.plan.ops import TABLE, encode
from pycontain.runtime.plan.rootless import adapt, adapt_config
from pycontain.runtime.vm.machine import Machine
from tests.schema_strategy import Schema

ASSETS = os.environ.get("PYCONTAIN_TEST_ASSETS", "")
# The same few each time; `make fuzz` asks for many, and others every time.
EXAMPLES = int(os.environ.get("PYCONTAIN_EXAMPLES", "0"))
LOOK = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
CODES = {code: (name, signature) for name, (code, signature) in TABLE.items()}
V1 = "cpu cpuacct cpuset memory devices freezer blkio pids hugetlb net_cls net_prio rdma"
ROOTFS = {"kind": "directory", "path": "/bundle/rootfs"}

pytestmark = pytest.mark.needs("assets")


class Decoder:
    """tests/fuzz/decode.c: init's own reading of plans."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, plan: bytes) -> list[tuple[Any, ...]] | None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(len(plan).to_bytes(4, "little") + plan)
        self._process.stdin.flush()
        line = self._process.stdout.readline().decode().split()
        return None if line == ["invalid"] else [self._op(*word.split(":")) for word in line]

    def _op(self, code: str, *words: str) -> tuple[Any, ...]:
        name, signature = CODES[int(code)]
        assert len(words) == len(signature)
        return (name, *(getattr(self, "_" + kind)(word) for kind, word in zip(signature, words, strict=True)))

    def _u(self, word: str) -> int:
        return int(word)

    def _s(self, word: str) -> str:
        return bytes.fromhex(word).decode("utf-8", "surrogateescape")

    def _b(self, word: str) -> bytes:
        return bytes.fromhex(word)

    def _l(self, word: str) -> list[str]:
        return [self._s(item) for item in word[1:].split(",")[:-1]]

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    program = tmp_path_factory.mktemp("decode") / "decode"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, FUZZ / "decode.c"], check=True)
    decoder = Decoder(program)
    yield decoder
    decoder.close()


@pytest.fixture(scope="module")
def cgroups(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cgroup]:
    """A cgroup of each kind of host, in a directory that has those of the kernel's files that are read before."""
    root = tmp_path_factory.mktemp("cgroups")
    for name in [*V1.split(), "unified"]:
        (root / name / "c").mkdir(parents=True)
        (root / name / "c/cgroup.controllers").write_text("cpu memory io pids")
        (root / name / "cgroup.controllers").write_text("cpu memory io pids")
    (root / "unified/c/cpu.max").write_text("max 100000\n")
    unified = Hierarchy(f"{root}/unified", (), "", True, "0:1")
    v1 = [Hierarchy(f"{root}/{name}", (name,), "", False, f"0:{i}") for i, name in enumerate(V1.split(), 2)]
    return {"cgroup2": CgroupV2("/c", [unified]), "v1": CgroupV1("/c", v1), "hybrid": CgroupV1("/c", [*v1, unified])}


def as_init_reads(op: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers have 64 bits there, without a sign; sequences are lists."""
    kinds = {"u": lambda value: int(value) & (1 << 64) - 1, "s": str, "b": bytes, "l": list}
    return (op[0], *(kinds[kind](value) for kind, value in zip(TABLE[op[0]][1], op[1:], strict=True)))


def configurations() -> st.SearchStrategy[dict[str, Any]]:
    """What the schema allows, and fields of it laid over a configuration that runs, so that each is looked at."""
    if not ASSETS:
        return st.nothing()
    schema = Schema(Path(ASSETS, "oci/runtime-spec"))

    def over(fields: list[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
        config = copy.deepcopy(EXAMPLE)
        for (*path, key), value in fields:
            section = config
            for name in path:
                section = section[name]
            section[key] = value
        return config

    # Few fields at a time: many seldom all pass.
    laid_over = st.lists(schema.fields(), min_size=1, max_size=3).map(over)
    whole = schema.config()
    return st.one_of(laid_over, laid_over, laid_over, whole.map(lambda config: {**config, "ociVersion": "1.3.0"}), whole)


def of_a_user(config: dict[str, Any]) -> dict[str, Any]:
    """What ``runtime.rootless`` finds out for a user with no ids but the own."""
    namespaces = {item["type"]: item.get("path") for item in (config.get("linux") or {}).get("namespaces") or ()}
    return {
        "uid": 1000, "new_user": namespaces.get("user") is None, "uids": [[0, 1]], "gids": [[0, 1]], "setgroups": False,
        "owned": [kind for kind, path in namespaces.items() if not path], "cgroup": False, "kernel": [6, 1],
    }  # fmt: skip


def planned(config: dict[str, Any], cgroup: Cgroup, kind: str) -> list[tuple[Any, ...]]:
    """What ``create`` works out before it makes anything, and the values for the cgroup."""
    if kind == "machine":
        config = {**config, "annotations": {**config.get("annotations", {}), "org.pycontain.isolation": "vm"}}
    elif kind == "rootless":
        own = rootless(1000, 1000)
        mounts = own["mounts"] if config.get("mounts") == EXAMPLE["mounts"] else config.get("mounts", [])
        config = {**config, "mounts": mounts, "linux": {**own["linux"], **config.get("linux", {})}}
        if config["linux"]["namespaces"] == EXAMPLE["linux"]["namespaces"]:
            config["linux"]["namespaces"] = own["linux"]["namespaces"]
    config = spec_module.check(parse(json.dumps(config).encode(), "config.json"))
    dump({"annotations": config.get("annotations")}).encode()  # as the state has them
    path, resources = creation.cgroup_path(config, "x"), creation.complete_resources(config)
    if kind == "machine":
        return Machine(config, "x", path, ROOTFS, None, resources, bundle="/bundle", keyring="_ses.x", reap=False).plan.ops
    facts = of_a_user(config)
    if kind == "rootless":
        config = adapt_config(config, facts)
    p = creation.plan_for(cgroup, config, resources, probe(), ROOTFS, bundle="/bundle", listen=True, keyring="_ses.x")
    if kind == "rootless":
        adapt(p, facts)
    cgroup.settings(resources)
    device_writes(resources["devices"])
    return p.ops


@LOOK
@given(config=configurations(), kind=st.sampled_from(["cgroup2", "v1", "hybrid", "rootless", "machine"]))
def test_what_the_schema_allows_is_planned_or_refused_by_its_path(
    config: dict[str, Any], kind: str, cgroups: dict[str, Cgroup], decoder: Decoder
) -> None:
    try:
        ops = planned(config, cgroups.get(kind, cgroups["cgroup2"]), kind)
        plan = encode(ops)
    except (SpecError, Unsupported) as error:
        assert re.search(r"\$(\.\w|\[)", error.message), error.message
        error.message.encode()  # it can be printed
        return
    meant = [as_init_reads(op) for op in ops]
    read = decoder(plan)
    assert read == meant
    assert [describe(op) for op in read] == [describe(op) for op in meant]


def test_the_strategy_knows_the_schema() -> None:
    """What it makes is valid by an independent validator; and it reaches every property of the Linux sections."""
    jsonschema = pytest.importorskip("jsonschema")
    referencing = pytest.importorskip("referencing")
    schema = Schema(Path(ASSETS, "oci/runtime-spec"))
    draft = referencing.jsonschema.DRAFT4
    contents = {**schema.files, **{f"config-{name}.json": {name: {}} for name in ("solaris", "windows", "zos", "freebsd")}}
    files = [(name, draft.create_resource(content)) for name, content in contents.items()]
    validator = jsonschema.Draft4Validator(
        {"$ref": "config-schema.json"}, registry=referencing.Registry().with_resources(files)
    )
    seen: set[str] = set()

    @settings(LOOK, max_examples=100)
    @given(schema.config())
    def check(config: dict[str, Any]) -> None:
        validator.validate(config)
        seen.update(config.get("linux", {}), config.get("process", {}))

    check()
    properties = {*schema.files["config-linux.json"]["linux"]["properties"], *schema.files["config-schema.json"]["properties"]["process"]["properties"]}
    assert properties - seen == set()
