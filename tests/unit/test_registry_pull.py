"""Pulling from a registry that mostly behaves: what is fetched, what is resumed, what is waited for."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from pycontain.images.manifest import Platform
from pycontain.images.progress import Lines, Silent, human, show_on
from pycontain.images.pull import pull
from pycontain.images.reference import parse
from pycontain.images.registry import Pace, RegistryUnreachable
from pycontain.images.settings import RegistrySettings, Settings
from pycontain.images.store import Store
from pycontain.runtime.errors import NotFound, PycontainError
from tests import registry_fixture as fixture
from tests.registry_fixture import Answer, Hostile, NoHub, descriptor, head, make_image, sha256, tiny_image, visible

FAST = Pace(base=0.001, cap=0.002, longest=5)
AMD64 = Platform("linux", "amd64")


@pytest.fixture(autouse=True)
def no_system_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the machine's own takes longer than most of these tests."""
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")


@pytest.fixture
def server() -> Iterator[Hostile]:
    with Hostile() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def get(store: Store, server: Hostile, name: str = "x/y:1", **more: Any) -> Any:
    options = {"platform": AMD64, "settings": Settings(), "pace": FAST, **more}
    return pull(store, parse(f"{server.host}/{name}"), **options)


def test_an_image_arrives_whole_and_named(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image(layers=4))
    manifest = get(store, server)
    assert manifest.descriptor.digest == image.digest
    assert [layer.digest for layer in manifest.layers] == [sha256(layer) for layer in image.layers]
    assert visible(store.root) == sorted([*image.blobs, image.digest])
    assert list(store.refs()) == [f"{server.host}/x/y:1"]
    assert store.get_ref(f"{server.host}/x/y:1").digest == image.digest
    assert fixture.partial(store.root) == {}
    accept = server.asked("/manifests/")[0].headers["accept"].split(", ")
    assert accept == [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]


def test_what_is_here_is_not_fetched_again(server: Hostile, store: Store) -> None:
    server.add(tiny_image())
    get(store, server)
    server.requests.clear()
    get(store, server)
    assert [(request.method, request.target) for request in server.requests] == [
        ("GET", "/v2/"),
        ("HEAD", "/v2/x/y/manifests/1"),
    ]


def test_a_tag_that_moved_fetches_what_is_new(server: Hostile, store: Store) -> None:
    first = server.add(tiny_image())
    get(store, server)
    second = server.add(tiny_image(layers=3))
    server.requests.clear()
    assert get(store, server).descriptor.digest == second.digest
    new = set(second.blobs) - set(first.blobs)
    assert {request.target.rpartition("/")[2] for request in server.asked("/blobs/")} == new


def test_a_registry_that_knows_no_head(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image())
    get(store, server)
    server.rules.append(lambda request: Answer(405) if request.method == "HEAD" else None)
    assert get(store, server).descriptor.digest == image.digest


def test_by_digest(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image())
    assert get(store, server, f"x/y@{image.digest}").descriptor.digest == image.digest
    assert get(store, server, f"x/y:other@{image.digest}").descriptor.digest == image.digest
    assert [request.target for request in server.asked("/manifests/")] == [f"/v2/x/y/manifests/{image.digest}"] * 2


def test_the_same_layer_twice_is_fetched_once(server: Hostile, store: Store) -> None:
    tar = fixture.layer_of({"f": b"x"})
    image = server.add(make_image(tar, tar))
    get(store, server)
    assert len(server.asked(sha256(image.layers[0]))) == 1


def test_an_index_leads_to_the_platform(server: Hostile, store: Store) -> None:
    amd, arm = tiny_image(), make_image(fixture.layer_of({"f": b"arm"}), architecture="arm64")
    for image in (amd, arm):
        server.add(image, tag=image.digest)
    entries = [
        descriptor(fixture.OCI_MANIFEST, image.manifest, platform={"os": "linux", "architecture": name})
        for image, name in ((amd, "amd64"), (arm, "arm64"))
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": fixture.OCI_INDEX, "manifests": entries}).encode()
    server.manifests["1"] = (fixture.OCI_INDEX, index)
    assert get(store, server, platform=Platform("linux", "arm64")).descriptor.digest == arm.digest
    assert store.get_ref(f"{server.host}/x/y:1").digest == sha256(index)
    assert get(store, server).descriptor.digest == amd.digest
    with pytest.raises(NotFound) as caught:
        get(store, server, platform=Platform("linux", "s390x"))
    assert str(caught.value) == (
        f"pull {server.host}/x/y:1: image index {sha256(index)} has nothing for linux/s390x; "
        "it has linux/amd64, linux/arm64"
    )


def test_an_image_for_another_machine_is_refused_before_its_layers_come(server: Hostile, store: Store) -> None:
    image = server.add(make_image(fixture.layer_of({"f": b"arm"}), architecture="arm64"))
    with pytest.raises(NotFound) as caught:
        get(store, server)
    assert str(caught.value) == (
        f"pull {server.host}/x/y:1: image {server.host}/x/y:1 is for linux/arm64, wanted linux/amd64"
    )
    assert not server.asked(sha256(image.layers[0]))
    assert store.refs() == {}


def test_docker_types_and_types_with_parameters(server: Hostile, store: Store) -> None:
    docker = "application/vnd.docker.distribution.manifest.v2+json"
    image = make_image(fixture.layer_of({"f": b"x"}), manifest_type=docker)
    server.add(image, media_type=f"{docker}; charset=utf-8")
    assert get(store, server).descriptor.media_type == docker


def test_without_a_content_type_the_document_says_what_it_is(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image())
    server.on("/manifests/", Answer(body=image.manifest))
    assert get(store, server).descriptor.media_type == fixture.OCI_MANIFEST


def test_three_blobs_at_once(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image(layers=6))
    together = threading.Barrier(3, timeout=10)
    layers = {sha256(layer) for layer in image.layers}

    def wait(request: fixture.Request) -> None:
        if request.target.rpartition("/")[2] in layers:
            together.wait()  # passes only when three are asked for at the same time

    server.rules.append(wait)
    get(store, server)


def test_pulls_of_one_image_at_the_same_time(server: Hostile, store: Store) -> None:
    """Among threads here; the locks are the same among processes. What another one fetched is not fetched again."""
    image = server.add(tiny_image(layers=3))
    with ThreadPoolExecutor(4) as pool:
        found = {future.result().digest for future in [pool.submit(_descriptor, store, server) for _ in range(4)]}
    assert found == {image.digest}
    assert sorted(request.target.rpartition("/")[2] for request in server.asked("/blobs/")) == sorted(image.blobs)


def _descriptor(store: Store, server: Hostile) -> Any:
    return get(Store(store.root), server).descriptor


def test_ctrl_c_ends_a_pull_that_waits(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image(layers=3))
    for layer in image.layers:
        server.on(sha256(layer), fixture.silent)
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs of a shell ignore it
        "from pycontain.images.pull import pull\n"
        "from pycontain.images.reference import parse\n"
        "from pycontain.images.store import Store\n"
        "from pycontain.images.manifest import Platform\n"
        "try:\n"
        "    pull(Store(sys.argv[1]), parse(sys.argv[2]), platform=Platform('linux', 'amd64'))\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(42)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, store.root, f"{server.host}/x:1"], cwd=Path(__file__).parents[2]
    )
    try:
        deadline = time.monotonic() + 20
        while len(server.asked("/blobs/")) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 42
    finally:
        process.kill()
        process.wait()
    assert fixture.partial(store.root) == {}


# Resume


def half(data: bytes, size: int | None = None) -> Any:
    """The head of an answer with the whole length, and the first half of the body."""
    return fixture.sends(head(200, Content_Length=len(data)) + data[: size or len(data) // 2])


def test_a_cut_is_resumed_where_it_was(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image(layers=1))
    layer = image.layers[0]
    server.on(sha256(layer), half(layer), times=1)
    positions: list[int] = []

    class Watch(Silent):
        def position(self, digest: str, count: int) -> None:
            if digest == sha256(layer):
                positions.append(count)

    get(store, server, progress=Watch())
    assert [request.headers.get("range") for request in server.asked(sha256(layer))] == [
        None,
        f"bytes={len(layer) // 2}-",
    ]
    assert positions == sorted(positions)
    assert positions[-1] == len(layer)


def test_a_cut_waits_for_the_next_pull(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image(layers=1))
    layer, digest = image.layers[0], sha256(image.layers[0])
    server.on(digest, half(layer), times=1)
    server.on(digest, Answer(503), times=1)
    with pytest.raises(RegistryUnreachable) as caught:
        get(store, server, settings=Settings(attempts=2))
    assert str(caught.value) == (
        f"pull {server.host}/x/y:1: {server.host} has a problem of its own (503 service unavailable), tried 2 times"
    )
    assert fixture.partial(store.root) == {digest: len(layer) // 2}
    assert digest not in visible(store.root)
    assert store.refs() == {}
    get(store, server)
    assert server.asked(digest)[-1].headers["range"] == f"bytes={len(layer) // 2}-"
    assert fixture.partial(store.root) == {}


@pytest.mark.parametrize("kind", ["ignores ranges", "416", "wrong part", "wrong total", "no part at all"])
def test_a_server_that_cannot_resume(server: Hostile, store: Store, kind: str) -> None:
    image = server.add(tiny_image(layers=1))
    layer, digest = image.layers[0], sha256(image.layers[0])
    middle, size = len(layer) // 2, len(layer)
    answers = {
        "ignores ranges": Answer(body=layer),
        "416": Answer(416),
        "wrong part": Answer(206, layer[5:], {"Content-Range": f"bytes 5-{size - 1}/{size}"}),
        "wrong total": Answer(206, layer[middle:], {"Content-Range": f"bytes {middle}-{size - 1}/{size + 1}"}),
        "no part at all": Answer(206, layer[middle:]),
    }
    server.on(digest, half(layer), times=1)
    server.on(digest, answers[kind], times=1)
    get(store, server)
    ranges = [request.headers.get("range") for request in server.asked(digest)]
    assert ranges == [None, f"bytes={middle}-"] + ([] if kind == "ignores ranges" else [None])


def test_parts_of_two_minds_have_one_more_chance(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image(layers=1))
    layer, digest = image.layers[0], sha256(image.layers[0])
    server.on(digest, half(bytes(len(layer))), times=1)  # not what it should be: zeros
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    get(store, server, progress=Notes())
    assert [request.headers.get("range") for request in server.asked(digest)] == [
        None,
        f"bytes={len(layer) // 2}-",
        None,
    ]
    assert notes[-1] == f"{digest}: the resumed content does not match, fetched again from its start"


def test_what_an_earlier_pull_left_may_be_bad(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image(layers=1))
    layer, digest = image.layers[0], sha256(image.layers[0])
    left = Path(store.root, "ingest", digest.replace(":", "-"))
    left.write_bytes(bytes(1000))
    get(store, server)
    assert [request.headers.get("range") for request in server.asked(digest)] == ["bytes=1000-", None]
    left.write_bytes(layer)
    Path(store.path(digest)).unlink()
    server.requests.clear()
    get(store, server)
    assert server.asked(digest) == []  # it was all there, only its verification was missing


@pytest.mark.parametrize("answer", [Answer(404), Answer(403), Answer(206, b"x", {"Content-Range": "bytes 9-9/10"})])
def test_what_cannot_be_finished_is_not_kept(server: Hostile, store: Store, answer: Answer) -> None:
    """Only a network that fails leaves something to resume."""
    image = server.add(tiny_image(layers=1))
    digest = sha256(image.layers[0])
    server.on(digest, half(image.layers[0]), times=1)
    server.on(digest, answer)
    with pytest.raises(PycontainError):
        get(store, server, settings=Settings(attempts=2))
    assert fixture.partial(store.root) == {}


# Retry


@pytest.mark.parametrize("part", ["/v2/", "/manifests/", "/blobs/"])
@pytest.mark.parametrize(
    "answer",
    [Answer(429), Answer(429, headers={"Retry-After": "0"}), Answer(500), Answer(503), fixture.sends(b"")],
    ids=["429", "429 after", "500", "503", "closed"],
)
def test_what_passes_is_tried_again(server: Hostile, store: Store, part: str, answer: Any) -> None:
    server.add(tiny_image(layers=1))
    server.on(part, answer, times=2)
    get(store, server)
    assert len(server.asked(part)) >= 3


def test_the_pause_grows_and_is_bounded() -> None:
    pace = Pace()
    delays = [max(pace.delay(failures) for _ in range(200)) for failures in (1, 2, 3, 100)]
    assert delays == sorted(delays)
    assert delays[0] <= 0.25
    assert 4 < delays[-1] <= 8
    assert min(pace.delay(3) for _ in range(200)) >= 0.5


@pytest.mark.parametrize("after", ["1", None])
def test_retry_after_is_kept(server: Hostile, store: Store, after: str | None) -> None:
    server.add(tiny_image(layers=1))
    server.on("/manifests/", Answer(429, headers={"Retry-After": after or formatdate(usegmt=True)}), times=1)
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    get(store, server, progress=Notes())
    wait = re.escape("allows no more requests for now (429 too many requests); next try in ")
    assert re.fullmatch(f"{server.host} {wait}{'1.0' if after else '0.0'} s", notes[0])


# How it is told


def test_lines(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image(layers=1))
    server.on("/manifests/", Answer(502), times=1)
    server.on("/blobs/", Answer(200, image.config, {"Warning": '299 - "this tag\x1b[2J goes away"'}), times=1)
    stream = io.StringIO()
    with show_on(stream) as progress:
        assert isinstance(progress, Lines)
        get(store, server, progress=progress)
        get(store, server, progress=progress)
    lines = stream.getvalue().splitlines()
    config, layer = (sha256(data)[7:19] for data in (image.config, image.layers[0]))
    name = f"{server.host}/x/y:1: {image.digest}"
    assert re.fullmatch(r"localhost:\d+ has a problem of its own \(502 bad gateway\); next try in 0.0 s", lines[0])
    assert lines[1:] == [
        name,
        f"{config}: pulling {human(len(image.config))}",
        f"{server.host} warns: this tag\\x1b[2J goes away",
        f"{config}: done",
        f"{layer}: pulling {human(len(image.layers[0]))}",
        f"{layer}: done",
        name,
        f"{layer}: already here",
    ]


def test_bars_on_a_terminal(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image(layers=1))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with show_on(stream) as progress:
        get(store, server, progress=progress)
    with show_on(stream) as progress:
        get(store, server, progress=progress)
        progress.note("[red]not markup[/red]")
    shown = stream.getvalue()
    assert f"{sha256(image.layers[0])[7:19]} done" in shown
    assert f"{sha256(image.layers[0])[7:19]}: already here" in shown
    assert "[red]not markup[/red]" in shown


def test_sizes_for_people() -> None:
    assert [human(size) for size in (0, 999, 1000, 3_500_000, 2_000_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "3.5 MB",
        "2.0 GB",
    ]


def test_heavy_modules_wait_until_they_are_needed() -> None:
    script = (
        "import sys, pycontain.images.pull\n"
        "found = {'urllib3', 'rich', 'http.client', 'subprocess', 'tomllib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2], timeout=30)


# Mirrors


def mirrored(*mirrors: str, **more: Any) -> Settings:
    return Settings({"docker.io": RegistrySettings(mirrors=mirrors)}, **more)


def test_a_mirror_serves_the_hub(server: Hostile, store: Store) -> None:
    image = server.add(tiny_image(), tag="latest")
    settings = mirrored(f"http://{server.host}")
    manifest = pull(store, parse("alpine"), platform=AMD64, settings=settings, dialer=NoHub(), pace=FAST)
    assert manifest.descriptor.digest == image.digest
    assert list(store.refs()) == ["docker.io/library/alpine:latest"]
    assert server.asked("/v2/library/alpine/manifests/latest")


def test_a_mirror_may_have_a_path(server: Hostile, store: Store) -> None:
    server.add(tiny_image(), tag="latest")
    settings = mirrored(f"http://{server.host}/hub/cache/")
    pull(store, parse("alpine"), platform=AMD64, settings=settings, dialer=NoHub(), pace=FAST)
    assert server.asked("/v2/hub/cache/library/alpine/manifests/latest")


@pytest.mark.parametrize("how", ["refused", "404", "401", "wrong digest", "500"])
def test_a_mirror_that_fails_is_passed_over(server: Hostile, store: Store, how: str) -> None:
    good = server.add(tiny_image(), tag="latest")
    with Hostile() as bad:
        bad.add(good, tag="latest")
        if how == "wrong digest":
            bad.on("/blobs/", Answer(body=bytes(len(good.config))))
        elif how != "refused":
            bad.on("/manifests/", Answer(int(how)))
        port = fixture.free_port() if how == "refused" else bad.port
        settings = mirrored(f"http://localhost:{port}", f"http://{server.host}", attempts=1)
        notes: list[str] = []

        class Notes(Silent):
            def note(self, text: str) -> None:
                notes.append(text)

        pull(
            store, parse("alpine"), platform=AMD64, settings=settings, dialer=NoHub(), pace=FAST, progress=Notes()
        )
    assert store.get_ref("docker.io/library/alpine:latest").digest == good.digest
    assert len(notes) == 1
    assert notes[0].startswith(f"mirror http://localhost:{port} failed: ")


def test_the_last_error_names_all_that_were_tried(server: Hostile, store: Store) -> None:
    settings = mirrored(f"http://{server.host}", f"http://{server.host}/second", attempts=1)
    with pytest.raises(RegistryUnreachable) as caught:
        pull(store, parse("alpine"), platform=AMD64, settings=settings, dialer=NoHub(), pace=FAST)
    assert str(caught.value) == (
        "pull alpine:latest: resolve registry-1.docker.io: name or service not known "
        f"(tried http://{server.host}, http://{server.host}/second, registry-1.docker.io)"
    )
    assert caught.value.reason == "name"
    assert fixture.store_is_clean(store.root)


def test_a_mirrors_plain_http_needs_leave(store: Store) -> None:
    settings = mirrored("http://mirror.test:5000", attempts=1)
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    with pytest.raises(PycontainError):
        pull(
            store, parse("alpine"), platform=AMD64, settings=settings, dialer=NoHub(), pace=FAST, progress=Notes()
        )
    assert notes == [
        "mirror http://mirror.test:5000 failed: "
        "mirror.test:5000 is not configured as insecure: plain http is refused"
    ]


