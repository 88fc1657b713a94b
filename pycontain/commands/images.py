"""The verbs on images."""

from __future__ import annotations

import sys

from pycontain.commands.containers import print_table, say
from pycontain.runtime.errors import PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.engine import Engine

    Values = dict[str, Any]


def list_(engine: Engine, values: Values) -> int:
    from pycontain.engine import images, inspect

    whole = bool(values.get("no-trunc"))
    rows = [images.row(image) for image in images.images(engine)]
    if values.get("quiet"):
        for identifier in dict.fromkeys(row["ID"] for row in rows):
            print(identifier if whole else identifier.removeprefix("sha256:")[:12])
        return 0
    if values.get("format") == "json":
        import json

        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return 0
    table = [["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]]
    for row in rows:
        identifier = row["ID"] if whole else row["ID"].removeprefix("sha256:")[:12]
        table.append([row["Repository"], row["Tag"], identifier, row["CreatedSince"], inspect.size_text(row["Bytes"])])
    print_table(table)
    return 0


def pull(engine: Engine, values: Values) -> int:
    from pycontain.engine import images

    image = images.pull_shown(
        engine, values["IMAGE"], values.get("platform"), None if values.get("quiet") else sys.stderr
    )
    print(image.reference)
    return 0


def load(engine: Engine, values: Values) -> int:
    from pycontain.engine import images

    if "input" not in values and sys.stdin.isatty():
        raise PycontainError("standard input is a terminal, not an archive", hint="pycontain load -i FILE")
    for name in images.load(engine, values.get("input") or sys.stdin.buffer):
        if not values.get("quiet"):
            print(f"Loaded image: {name}")
    return 0


def save(engine: Engine, values: Values) -> int:
    from pycontain.engine import images

    if "output" not in values and sys.stdout.isatty():
        raise PycontainError("standard output is a terminal", hint="pycontain save -o FILE IMAGE")
    target = values.get("output") or sys.stdout.buffer
    images.save(engine, values["IMAGE"], target, str(values.get("format", "docker-archive")))
    return 0


def import_(engine: Engine, values: Values) -> int:
    from pycontain.engine import images

    print(images.import_tar(engine, sys.stdin.buffer if values["FILE"] == "-" else values["FILE"], values["IMAGE"]))
    return 0


def rmi(engine: Engine, values: Values) -> int:
    from pycontain.commands.containers import each
    from pycontain.engine import images
    from pycontain.runtime.errors import NotFound

    def one(text: str) -> None:
        try:
            for line in images.remove(engine, text, force=bool(values.get("force"))):
                print(line)
        except NotFound:
            if not values.get("force"):
                raise

    return each(values["IMAGE"], one)


def tag(engine: Engine, values: Values) -> int:
    from pycontain.engine import images

    images.tag(engine, values["IMAGE"], values["TARGET"])
    return 0


def login(engine: Engine, values: Values) -> int:
    from pycontain.engine import images

    server = values.get("SERVER", "docker.io")
    if values.get("password-stdin"):
        if "username" not in values:
            raise PycontainError(
                "--password-stdin wants --username too", hint="pycontain login -u NAME --password-stdin"
            )
        password = sys.stdin.readline(65536).rstrip("\r\n")
        name = values["username"]
    elif sys.stdin.isatty():
        import getpass

        name = values.get("username") or input(f"Username for {server}: ")
        password = getpass.getpass("Password: ")
    else:
        raise PycontainError(
            "login wants a terminal, or the password on standard input",
            hint=f"pycontain login -u NAME --password-stdin {server} < FILE",
        )
    images.login(server, name, password)
    say(f"logged in to {server}")
    return 0


def logout(engine: Engine, values: Values) -> int:
    from pycontain.engine import images

    server = values.get("SERVER", "docker.io")
    images.logout(server)
    say(f"logged out of {server}")
    return 0
