"""The content store: nothing unverified is visible, nothing in use is collected, nothing broken off stays."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pycontain.images.descriptor import Descriptor, digest_of
from pycontain.images.store import Store, chain_id
from pycontain.runtime.errors import NotFound, PycontainError, SpecError

TYPE = "application/octet-stream"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "images"))


def listing(store: Store) -> list[str]:
    """Every file below the store that is content or on its way to be."""
    return sorted(
        os.path.relpath(os.path.join(base, name), store.root)
        for base, _, files in os.walk(store.root)
        for name in files
        if name not in ("lock", "refs.lock", "refs.json")
    )


def image(store: Store, text: bytes) -> tuple[Descriptor, list[Descriptor]]:
    """A manifest over a config and one layer; returns it and its children."""
    layer = store.put(b"layer " + text, media_type=TYPE)
    config = store.put(
        json.dumps({"rootfs": {"type": "layers", "diff_ids": [digest_of(text)]}}).encode(), media_type=TYPE
    )
    manifest = {"schemaVersion": 2, "config": config.to_json(), "layers": [layer.to_json()]}
    return store.put(json.dumps(manifest).encode(), media_type=MANIFEST), [config, layer]


def test_the_store_is_private_even_where_it_was_not(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir(mode=0o755)
    Store(str(root))
    for name in (".", "blobs", "blobs/sha256", "ingest", "layers", "pins", "trash"):
        assert stat.S_IMODE((root / name).stat().st_mode) == 0o700, name


def test_put_read_and_has(store: Store) -> None:
    descriptor = store.put(b"hello", media_type=TYPE)
    assert descriptor == Descriptor(TYPE, "sha256:" + hashlib.sha256(b"hello").hexdigest(), 5)
    assert store.has(descriptor.digest)
    assert store.read(descriptor.digest, 5) == b"hello"
    assert store.size(descriptor.digest) == 5
    assert store.put(b"hello", media_type=TYPE) == descriptor
    with store.open(descriptor.digest) as file:
        assert file.read() == b"hello"
    assert stat.S_IMODE(os.stat(store.path(descriptor.digest)).st_mode) == 0o600


def test_put_stream_finds_the_digest_and_holds_the_limit(store: Store) -> None:
    data = os.urandom(3 << 20)
    assert store.put_stream(io.BytesIO(data), media_type=TYPE, limit=len(data)).digest == digest_of(data)
    with pytest.raises(PycontainError, match=r"^content is larger than 10 bytes$"):
        store.put_stream(io.BytesIO(data), media_type=TYPE, limit=10)
    assert len(listing(store)) == 1


def test_what_is_missing_is_named(store: Store) -> None:
    digest = digest_of(b"none")
    for call in (store.path, store.size, store.open, lambda d: store.read(d, 1)):
        with pytest.raises(NotFound) as caught:
            call(digest)
        assert caught.value.message == f"blob {digest} is not in the store {store.root}"


def test_reading_is_bounded_and_verified(store: Store) -> None:
    digest = store.put(b"hello", media_type=TYPE).digest
    with pytest.raises(PycontainError, match=f"^blob {digest} is larger than 4 bytes$"):
        store.read(digest, 4)
    Path(store.path(digest)).write_bytes(b"jello")
    with pytest.raises(PycontainError) as caught:
        store.read(digest, 5)
    assert caught.value.message == (
        f"blob {digest} in {store.root} is damaged: its content has digest {digest_of(b'jello')}"
    )


def test_digests_are_the_only_way_to_a_file(store: Store) -> None:
    for bad in ("sha256:../../etc/passwd", "md5:" + "0" * 32, "sha256:" + "A" * 64, "sha256:" + "0" * 64 + "\n"):
        with pytest.raises(PycontainError, match="is not a digest"):
            store.has(bad)


def test_sha512_is_accepted(store: Store) -> None:
    digest = "sha512:" + hashlib.sha512(b"x").hexdigest()
    with store.ingest(digest, 1) as ingest:
        ingest.write(b"x")
        ingest.commit()
    assert store.read(digest, 1) == b"x"


def test_an_ingest_resumes_where_it_broke_off(store: Store) -> None:
    digest = digest_of(b"hello world")
    with pytest.raises(ConnectionError), store.ingest(digest, 11) as ingest:
        assert (ingest.offset, ingest.done) == (0, False)
        ingest.write(b"hello ")
        raise ConnectionError
    assert not store.has(digest)
    with store.ingest(digest, 11) as ingest:
        assert ingest.offset == 6
        ingest.write(b"world")
        ingest.commit()
        assert ingest.done
    assert store.read(digest, 11) == b"hello world"
    assert listing(store) == ["blobs/sha256/" + digest[7:]]
    with store.ingest(digest, 11) as ingest:
        assert (ingest.offset, ingest.done) == (11, True)
        ingest.write(b"ignored")
        ingest.commit()
    assert listing(store) == ["blobs/sha256/" + digest[7:]]


def test_an_ingest_can_start_again(store: Store) -> None:
    digest = digest_of(b"hello")
    with store.ingest(digest, None) as ingest:
        ingest.write(b"wrong")
        ingest.restart()
        assert ingest.offset == 0
        ingest.write(b"hello")
        ingest.commit()
    assert store.read(digest, 5) == b"hello"


@pytest.mark.parametrize(
    ("size", "data", "problem"),
    [
        (5, b"jello", "the content received has digest " + digest_of(b"jello")),
        (5, b"hell", "received 4 bytes, its descriptor names 5"),
        (5, b"hello!", "received more than the 5 bytes that its descriptor names"),
        (None, b"hell", "the content received has digest " + digest_of(b"hell")),
    ],
)
def test_a_mismatch_keeps_nothing(store: Store, size: int | None, data: bytes, problem: str) -> None:
    digest = digest_of(b"hello")
    with pytest.raises(PycontainError) as caught, store.ingest(digest, size) as ingest:
        ingest.write(data)
        ingest.commit()
    assert caught.value.message == f"blob {digest}: {problem}"
    assert listing(store) == []


def test_a_partial_file_that_is_too_long_is_not_resumed(store: Store) -> None:
    digest = digest_of(b"hello")
    Path(store.root, "ingest", "sha256-" + digest[7:]).write_bytes(b"far too long")
    with store.ingest(digest, 5) as ingest:
        assert ingest.offset == 0


def test_two_writers_of_one_digest_take_turns(store: Store) -> None:
    digest = digest_of(b"hello")
    found: list[bool] = []
    other = Store(store.root)

    def second() -> None:
        with other.ingest(digest, 5) as ingest:
            found.append(ingest.done)

    with store.ingest(digest, 5) as ingest:
        thread = threading.Thread(target=second)
        thread.start()
        ingest.write(b"hello")
        time.sleep(0.1)
        assert found == []
        ingest.commit()
    thread.join(5)
    assert found == [True]
    assert listing(store) == ["blobs/sha256/" + digest[7:]]


def test_the_second_writer_goes_on_where_a_killed_one_stopped(store: Store) -> None:
    digest = digest_of(b"hello")
    program = (
        "import os, sys\nfrom pycontain.images.store import Store\n"
        "with Store(sys.argv[1]).ingest(sys.argv[2], 5) as ingest:\n ingest.write(b'hel')\n os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, store.root, digest], check=False).returncode == -9
    with store.ingest(digest, 5) as ingest:
        assert ingest.offset == 3
        ingest.write(b"lo")
        ingest.commit()
    assert store.has(digest)


def test_references(store: Store) -> None:
    descriptor, _ = image(store, b"a")
    store.set_ref("docker.io/library/b:1", descriptor)
    store.set_ref("docker.io/library/a:1", descriptor)
    assert list(Store(store.root).refs()) == ["docker.io/library/a:1", "docker.io/library/b:1"]
    assert store.get_ref("docker.io/library/a:1") == descriptor
    store.remove_ref("docker.io/library/a:1")
    with pytest.raises(NotFound) as caught:
        store.get_ref("docker.io/library/a:1")
    assert caught.value.message == "image docker.io/library/a:1 is not in the store"
    assert caught.value.hint == "pycontain pull docker.io/library/a:1"
    with pytest.raises(NotFound, match=r"^image docker.io/library/a:1 is not in the store$"):
        store.remove_ref("docker.io/library/a:1")
    with pytest.raises(NotFound, match=r"^image x: blob sha256:0+ is not in the store"):
        store.set_ref("x", Descriptor(MANIFEST, "sha256:" + "0" * 64, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 2, "refs": {}}', "{path} has version 2, this pycontain knows version 1"),
        ("[]", "{path} is not an object with a version"),
        ("{", "{path} is not JSON: expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ('{"version": 1}', "$.refs: must be an object in {path}"),
        ('{"version": 1, "refs": {"x": {}}}', "$.refs['x'].mediaType: is missing"),
    ],
)
def test_a_reference_file_that_cannot_be_read_is_refused(store: Store, text: str, message: str) -> None:
    path = Path(store.root, "refs.json")
    path.write_text(text)
    for call in (store.refs, lambda: store.gc([]), lambda: store.remove_ref("x")):
        with pytest.raises(PycontainError) as caught:
            call()
        assert caught.value.message == message.format(path=path)
    assert path.read_text() == text


def test_many_writers_lose_no_reference(store: Store) -> None:
    descriptor, _ = image(store, b"a")

    def write(prefix: str) -> None:
        own = Store(store.root)
        for number in range(10):
            own.set_ref(f"{prefix}{number}", descriptor)

    threads = [threading.Thread(target=write, args=(prefix,)) for prefix in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.refs()) == 40


def test_collection_keeps_what_a_name_reaches(store: Store) -> None:
    kept, children = image(store, b"kept")
    index = store.put(json.dumps({"manifests": [kept.to_json()]}).encode(), media_type=TYPE)
    store.set_ref("x", index)
    gone, others = image(store, b"gone")
    for text in (b"kept", b"gone", b"used", b"path"):
        os.makedirs(os.path.join(store.note_layer(digest_of(text)), "diff"))
    Path(store.root, "ingest", "sha256-" + "1" * 64).write_bytes(b"old")
    os.makedirs(Path(store.root, "layers", ".tmp"))
    used = [digest_of(b"used"), os.path.join(store.root, "layers", digest_of(b"path")[7:], "diff")]
    assert store.gc(lambda: used) > 0
    assert sorted(os.listdir(Path(store.root, "blobs", "sha256"))) == sorted(
        d.digest[7:] for d in (index, kept, *children)
    )
    assert sorted(os.listdir(Path(store.root, "layers"))) == sorted(
        digest_of(text)[7:] for text in (b"kept", b"used", b"path")
    )
    assert not store.has(gone.digest) and not any(store.has(d.digest) for d in others)
    for name in ("ingest", "trash", "pins"):
        assert os.listdir(Path(store.root, name)) == []
    store.remove_ref("x")
    store.gc([])
    assert listing(store) == [] and os.listdir(Path(store.root, "layers")) == []


def test_a_pin_keeps_what_was_added_found_or_named(store: Store) -> None:
    found = store.put(b"found", media_type=TYPE)
    named, children = image(store, b"named")
    store.set_ref("named", named)
    loose = store.put(b"loose", media_type=TYPE)
    other = Store(store.root)
    with store.pin():
        added = store.put(b"added", media_type=TYPE)
        assert store.has(found.digest)
        assert store.get_ref("named") == named
        layer = store.note_layer(digest_of(b"layer"))
        os.mkdir(layer)
        other.remove_ref("named")
        other.gc([])
        for descriptor in (found, added, named, *children):
            assert store.has(descriptor.digest), descriptor
        assert os.path.isdir(layer)
        assert not other.has(loose.digest)
    other.gc([])
    assert listing(store) == [] and not os.path.exists(layer)


def test_a_pin_keeps_a_broken_off_ingest(store: Store) -> None:
    digest = digest_of(b"hello")
    with store.pin():
        with pytest.raises(ConnectionError), store.ingest(digest, 5) as ingest:
            ingest.write(b"he")
            raise ConnectionError
        Store(store.root).gc([])
        with store.ingest(digest, 5) as ingest:
            assert ingest.offset == 2
    Store(store.root).gc([])
    assert listing(store) == []


def test_collection_leaves_a_running_ingest_alone(store: Store) -> None:
    digest = digest_of(b"hello")
    with store.ingest(digest, 5) as ingest:
        ingest.write(b"he")
        assert Store(store.root).gc([]) == 0
        ingest.write(b"llo")
        ingest.commit()
    assert store.has(digest)


def test_a_pin_dies_with_its_process(store: Store) -> None:
    program = (
        "import os, sys\nfrom pycontain.images.store import Store\nstore = Store(sys.argv[1])\n"
        "with store.pin():\n store.put(b'x', media_type='a/b')\n store.gc([])\n os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, store.root], check=False).returncode == -9
    assert store.has(digest_of(b"x"))
    store.gc([])
    assert listing(store) == []


def test_a_pin_of_another_format_stops_a_collection(store: Store) -> None:
    with store.pin():
        (path,) = Path(store.root, "pins").iterdir()
        path.write_text('{"version": 7}\n')
        with pytest.raises(PycontainError) as caught:
            store.gc([])
        assert caught.value.message == f"{path} has version 7, this pycontain knows version 1"


def test_the_layers_in_use_are_asked_for_when_no_pin_can_change(store: Store) -> None:
    """A container recorded between the question and the release of its pin would lose its layers otherwise."""
    layer = digest_of(b"layer")
    recorded: list[str] = []
    entered = threading.Event()

    def in_use() -> list[str]:
        entered.set()
        time.sleep(0.1)
        return recorded

    other = Store(store.root)
    with store.pin():
        os.mkdir(store.note_layer(layer))
        collector = threading.Thread(target=other.gc, args=(in_use,))
        collector.start()
        entered.wait(5)
        recorded.append(layer)
    collector.join(5)
    assert os.path.isdir(store.note_layer(layer))
    other.gc(lambda: recorded)
    assert os.path.isdir(store.note_layer(layer))


def test_chain_ids_follow_the_specification() -> None:
    a, b, c = (digest_of(text) for text in (b"a", b"b", b"c"))
    ab = "sha256:" + hashlib.sha256(f"{a} {b}".encode()).hexdigest()
    assert chain_id([]) == ""
    assert chain_id([a]) == a
    assert chain_id([a, b]) == ab
    assert chain_id([a, b, c]) == "sha256:" + hashlib.sha256(f"{ab} {c}".encode()).hexdigest()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "$.x: must be an object, found an array"),
        ({"digest": 1, "size": 1}, "$.x.mediaType: is missing"),
        ({"mediaType": 5}, "$.x.mediaType: must be a string, found a number"),
        ({"mediaType": "a b"}, "$.x.mediaType: 'a b' is not a media type"),
        (
            {"mediaType": "a/b", "digest": "sha256:1"},
            "$.x.digest: 'sha256:1' is not a digest (sha256: and 64, or sha512: and 128 lower case hexadecimal digits)",
        ),
        ({"size": True}, "$.x.size: must be an integer, found a boolean"),
        ({"size": "1"}, "$.x.size: must be an integer, found a string"),
        ({"size": 1.0}, "$.x.size: must be an integer, found a number"),
        ({"size": -1}, "$.x.size: -1 is not between 0 and 9223372036854775807"),
        ({"platform": "linux"}, "$.x.platform: must be an object, found a string"),
        ({"platform": {"os": 1}}, "$.x.platform.os: must be a string, found a number"),
        ({"annotations": {"a": None}}, "$.x.annotations['a']: must be a string, found null"),
    ],
)
def test_a_bad_descriptor_is_refused_by_path(value: object, message: str) -> None:
    good = {"mediaType": "a/b", "digest": "sha256:" + "0" * 64, "size": 1}
    assert Descriptor.from_json(good).to_json() == good
    if isinstance(value, dict) and "mediaType" not in value and "digest" not in value:
        value = good | value
    with pytest.raises(SpecError) as caught:
        Descriptor.from_json(value, "$.x")
    assert caught.value.message == message
