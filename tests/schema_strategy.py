"""Every JSON value that the runtime specification's schema allows, as a Hypothesis strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

# Strings get past the first check only where they are something: each of these is that somewhere, and wrong elsewhere.
WORDS = """
/ /proc /sys /dev /dev/null /dev/pts /sys/fs/cgroup /run/x /proc/self/ns/net /proc/1/ns/user rootfs relative/path /a/../b
bind rbind ro rro rw nosuid rnosuid noatime ratime relatime strictatime private rslave shared unbindable remount defaults
sync silent tmpcopyup idmap ridmap idmap=uids=0-1-10;gids=0-1-10 size=1k mode=755 copy-symlink src-nofollow nosymfollow
proc sysfs tmpfs devpts mqueue cgroup cgroup2 none overlay sh PATH=/bin A= =B B
CAP_KILL CAP_SYS_ADMIN CAP_NONE RLIMIT_NOFILE RLIMIT_X IOPRIO_CLASS_BE IOPRIO_CLASS_RT SCHED_OTHER
read clone socket no_such_call SCMP_ACT_ALLOW a b c u p r rwm m 0 1 0-3 0,2 -1 max 100 1.0.0 1.3.0 2.0.0
net.ipv4.ip_forward kernel.shmmax kernel.hostname fs.mqueue.msg_max kernel.core_pattern net/ipv4/conf/eth0.1/x
monotonic boottime memory.max cpu.weight cgroup.procs pids.max eth0 lo mlx4_0 2MB 1GB rprivate rshared
org.pycontain.isolation system.slice:x:y //x ../x 100:200
""".split() + ["", "a b", "a\0b", "a\nb", "\ud800", "\udcff", "\U0001f433", "x" * 300, "/" + "y/" * 2100]


class Schema:
    """The files of the specification's schema in ``folder``; other platforms' are not there."""

    def __init__(self, folder: Path) -> None:
        # The one reference without its slash (defs.json, ArrayOfUint32) is a slip of the schema's.
        texts = {path.name: path.read_text().replace('"#definitions/', '"#/definitions/') for path in folder.glob("*.json")}
        self.files = {name: json.loads(text) for name, text in texts.items()}
        self._made: dict[str, st.SearchStrategy[Any]] = {}

    def config(self) -> st.SearchStrategy[dict[str, Any]]:
        return self.of(self.files["config-schema.json"], "config-schema.json")

    def fields(self) -> st.SearchStrategy[tuple[tuple[str, ...], Any]]:
        """One field of a configuration, as (path, value): of the whole, its process, its Linux section or resources."""
        top, linux = self.files["config-schema.json"], self.files["config-linux.json"]["linux"]
        sections = {
            (): (top, "config-schema.json"),
            ("process",): (top["properties"]["process"], "config-schema.json"),
            ("linux",): (linux, "config-linux.json"),
            ("linux", "resources"): (linux["properties"]["resources"], "config-linux.json"),
        }
        found = []
        for path, (schema, file) in sections.items():
            for key, value in schema["properties"].items():
                if (*path, key) not in sections and value.get("$ref", "").partition("#")[0] in ("", *self.files):
                    found.append(st.tuples(st.just((*path, key)), self.of(value, file)))
        return st.sampled_from(found).flatmap(lambda field: field)

    def of(self, schema: dict[str, Any], file: str) -> st.SearchStrategy[Any]:
        """The values that ``schema``, found in ``file``, allows."""
        if "$ref" in schema:
            name, _, pointer = schema["$ref"].partition("#")
            name = name or file
            key = f"{name}#{pointer}"
            if key not in self._made:
                found = self.files[name]
                for part in pointer.strip("/").split("/"):
                    found = found[part]
                self._made[key] = self.of(found, name)
            return self._made[key]
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if "anyOf" in schema:
            return st.one_of(*(self.of(each, file) for each in schema["anyOf"]))
        if "allOf" in schema:
            parts = [self.of(each, file) for each in schema["allOf"]]
            return st.tuples(*parts).map(lambda values: {key: item for value in values for key, item in value.items()})
        kind = schema.get("type")
        if kind == "object":
            return self._object(schema, file)
        if kind == "array":
            items = schema["items"]  # a list of them means something else, but is not meant so (config-vm.json)
            each = self.of(items[0] if isinstance(items, list) else items, file)
            return st.lists(each, min_size=schema.get("minItems", 0), max_size=4)
        if kind == "integer":
            low, high = schema.get("minimum", -(1 << 70)), schema.get("maximum", 1 << 70)
            edges = st.sampled_from(sorted({max(low, min(high, edge)) for edge in (low, -1, 0, 1, 100, 1 << 31, 1 << 32, high)}))
            return st.one_of(st.integers(max(low, 0), max(0, min(high, 4096))), edges, st.integers(low, high))
        if kind == "boolean":
            return st.booleans()
        if "pattern" in schema:
            return st.from_regex(schema["pattern"].replace("$", r"\Z"))
        assert kind == "string", schema
        return st.one_of(st.sampled_from(WORDS), st.sampled_from(WORDS), st.text(st.characters(), max_size=8))

    def _object(self, schema: dict[str, Any], file: str) -> st.SearchStrategy[dict[str, Any]]:
        pattern = next(iter(schema.get("patternProperties", {}).values()), None) or schema.get("additionalProperties")
        if not schema.get("properties") and isinstance(pattern, dict):
            return st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(min_size=1, max_size=5)), self.of(pattern, file), max_size=3)
        required, optional = {}, {}
        for key, value in schema.get("properties", {}).items():
            reference = value.get("$ref", "").partition("#")[0]
            if not reference or reference in self.files:
                (required if key in schema.get("required", ()) else optional)[key] = self.of(value, file)
        return st.fixed_dictionaries(required, optional=optional)
