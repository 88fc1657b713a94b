"""The container store: names that are taken once, ids by their start, records that outlive a crash."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from pycontain.engine import files, names
from pycontain.engine.containers import Container, Containers
from pycontain.runtime.errors import Conflict, NotFound, PycontainError
from pycontain.runtime.state import boot_id, start_time


@pytest.fixture
def store(tmp_path: Path) -> Containers:
    return Containers(str(tmp_path / "data"), str(tmp_path / "run"))


def make(store: Containers, name: str | None = None) -> Container:
    container = store.new(name)
    container.record["state"] = {"status": "created"}
    container.save()
    container.lock.release()
    return container


def test_directories_are_closed_to_others(store: Containers) -> None:
    container = make(store, "web")
    for path in (store.directory, container.directory, store.names.directory):
        assert os.stat(path).st_mode & 0o777 == 0o700
    assert os.stat(container.path("container.json")).st_mode & 0o777 == 0o600


def test_found_by_name_by_id_and_by_the_start_of_an_id(store: Containers) -> None:
    container = make(store, "web")
    for text in ("web", container.id, container.id[:12], container.id[:1]):
        assert store.find(text).id == container.id


@pytest.mark.parametrize("text", ["", "nosuch", "../web", "/web", ".lock", "we", "web\n"])
def test_what_fits_nothing_is_not_found(store: Containers, text: str) -> None:
    make(store, "web")
    with pytest.raises(NotFound) as caught:
        store.find(text)
    assert caught.value.message == f'no such container: "{text}"'


def test_a_start_that_fits_two_is_refused(store: Containers, monkeypatch: pytest.MonkeyPatch) -> None:
    identifiers = iter(["ab" + "0" * 62, "ab" + "1" * 62])
    monkeypatch.setattr(store, "ids", lambda: list(identifiers))
    with pytest.raises(Conflict) as caught:
        store.find("ab")
    assert caught.value.message == '"ab" is the start of 2 ids: ab0000000000, ab1111111111'


def test_a_name_goes_before_the_start_of_an_id(store: Containers) -> None:
    first = make(store, "first")
    second = make(store, first.id[:4])
    assert store.find(first.id[:4]).id == second.id


def test_one_of_many_threads_gets_a_name(store: Containers) -> None:
    won: list[str] = []
    refused: list[str] = []

    def take() -> None:
        try:
            won.append(make(store, "web").id)
        except Conflict as error:
            refused.append(error.message)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)
    assert set(refused) == {f'cannot create container: the name "web" is in use by container {won[0][:12]}'}
    assert store.ids() == won


def test_a_name_whose_owner_is_gone_is_taken_over(store: Containers) -> None:
    make(store, "other")
    Path(store.names.directory, "web").write_text("ab" * 32 + "\n")
    container = make(store, "web")
    assert store.find("web").id == container.id


def test_a_name_of_a_container_in_the_making_is_respected(store: Containers) -> None:
    making = store.new("web")
    with pytest.raises(Conflict):
        store.new("web")
    making.lock.release()  # its maker dies before the record is written
    make(store, "web")


def test_random_names_are_two_words_and_differ() -> None:
    made = {names.random_name() for _ in range(200)}
    assert len(made) > 150
    assert all(len(name.split("-")) == 2 and name.replace("-", "").isalpha() for name in made)


def test_discarding_removes_everything_and_frees_the_name(store: Containers) -> None:
    container = make(store, "web")
    os.makedirs(container.path("upper/deep"))
    with container.locked():
        store.discard(container)
    assert (store.ids(), store.names.all()) == ([], {})
    with pytest.raises(NotFound), container.locked():
        pass


def test_a_half_made_container_is_dead_and_can_be_discarded(store: Containers) -> None:
    container = store.new("web")
    container.lock.release()
    found = store.load(container.id)
    assert (found.status(), store.exists(found.id)) == ("dead", False)
    with found.locked():
        store.discard(found)
    assert store.ids() == []


def test_running_is_asked_of_the_kernel(store: Containers) -> None:
    container = make(store, "web")
    pid = os.getpid()
    true = {"status": "running", "pid": pid, "start_time": start_time(pid), "boot_id": boot_id()}
    container.record["state"] = true
    assert container.status() == "running"
    for change in ({"boot_id": "another"}, {"start_time": 1}, {"pid": 0}, {"pid": 2**22 + 1}):
        container.record["state"] = {**true, **change}
        assert container.status() == "exited"
        assert container.exit_state()["exit_code"] == 255


def test_a_record_of_another_version_and_a_damaged_one_are_refused_by_name(store: Containers) -> None:
    container = make(store, "web")
    path = container.path("container.json")
    record = json.loads(Path(path).read_text())
    assert record["version"] == 1
    Path(path).write_text(json.dumps({**record, "version": 7}))
    with pytest.raises(PycontainError) as caught:
        store.find("web")
    assert caught.value.message == f"{path} has the format version 7, but this pycontain knows only 1"
    Path(path).write_text("[]")
    with pytest.raises(PycontainError) as caught:
        store.find("web")
    assert caught.value.message == f"{path} is damaged: not a JSON object"


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_atomic(str(path), b"old")

    def broken(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(PycontainError) as caught:
        files.write_atomic(str(path), b"new")
    assert caught.value.message == f"cannot write {path}: ENOSPC (no space left on device)"
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["file"])


def test_a_lock_is_exclusive_and_dies_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = files.Lock(str(path)), files.Lock(str(path))
    assert first.acquire()
    assert not second.acquire(wait=False)
    got = threading.Event()

    def wait() -> None:
        with second:
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    path.unlink()
    first.release()
    thread.join(10)
    assert got.is_set()  # it took a new file of that name, and not the removed one
    assert path.exists()


def test_a_directory_that_a_prune_takes_at_once_is_made_again(
    store: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no lock yet, so a prune takes it for what a crash left: here between its mkdir and its chmod."""
    make(store, "first")
    taken: list[str] = []
    real = os.chmod

    def chmod(path: str, mode: int) -> None:
        if str(path).endswith(".new") and not taken:
            os.rmdir(path)
            taken.append(path)
        real(path, mode)

    monkeypatch.setattr(files.os, "chmod", chmod)
    container = make(store, "second")
    assert len(taken) == 1 and container.directory + ".new" != taken[0]
    assert store.find("second").id == container.id
