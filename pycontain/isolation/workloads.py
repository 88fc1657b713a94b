"""Programs that people run, of this host and the same at every level: a compiler, a database, a web server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pycontain.isolation.cost_probe import INSIDE, answer, ask, writable
from pycontain.isolation.model import Bind, Job, Level, Measure, Quantity, Sample
from pycontain.runtime.errors import PycontainError, Unsupported

if TYPE_CHECKING:
    from pycontain.isolation.world import World

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/alternatives")
_DIRECTORIES = "/usr/bin", "/usr/sbin"
_BINDS = "the host's /usr, /bin, /lib and /etc/alternatives, read-only, and /work on the host's disk"


@contextmanager
def system(world: World) -> Iterator[tuple[tuple[Bind, ...], str]]:
    """The binds that make a level's root that of the host's programs, and the source of the one at /work, which is
    writable and empty."""
    binds = tuple(Bind(os.path.realpath(path), path) for path in _SYSTEM if os.path.isdir(path))
    with writable(world, "work") as work:
        yield (*binds, Bind(work, "/work", writable=True)), work


def _program(name: str) -> str:
    """Where a program of the distribution is. Raises Unsupported where it is not installed."""
    for directory in _DIRECTORIES:
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK):
            return path
    raise Unsupported(f"{name} is not installed in {' or '.join(_DIRECTORIES)}")


def _version(*command: str) -> str:
    """The first line that a program says of itself."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    lines = (done.stdout or done.stderr).strip().splitlines()
    if done.returncode or not lines:
        raise Unsupported(f"{' '.join(command)} ended with {done.returncode}")
    return lines[0]


# ---- a compiler

_FEW, _MANY = 16, 200  # functions

def _compiled(name: str, title: str, functions: int) -> Quantity:
    lines = source(functions).count("\n")
    return Quantity(
        name, title, "ms", f"cc -O2 -c of a generated C file of {lines} lines, its output to a file; {_BINDS}.",
        clock="CLOCK_MONOTONIC inside the level, from the fork of the compiler's process to its end",
        cache="page cache warm: the same command ran before it in the same tenant", denominator="one run",
    )  # fmt: skip


def source(functions: int) -> str:
    """A C file: so many functions, each with a loop, a switch and an array, and one that calls them all."""
    lines = ["#include <stddef.h>"]
    for n in range(functions):
        lines += [
            f"static unsigned step_{n}(unsigned *of, size_t size, unsigned x)",
            "{",
            f"\tunsigned sum = {n * 7919 % 1000};",
            "\tfor (size_t i = 0; i < size; i++) {",
            f"\t\tswitch ((of[i] ^ x) % {n % 5 + 3}) {{",
            f"\t\tcase 0: sum += of[i] * {n + 3}; break;",
            f"\t\tcase 1: sum ^= of[i] << {n % 13 + 1}; break;",
            "\t\tdefault: sum -= x / (of[i] | 1);",
            "\t\t}",
            "\t\tof[i] = sum;",
            "\t}",
            "\treturn sum;",
            "}",
        ]
    lines += ["unsigned all(unsigned *of, size_t size)", "{", "\tunsigned x = 1;"]
    lines += [f"\tx = step_{n}(of, size, x);" for n in range(functions)]
    return "\n".join([*lines, "\treturn x;", "}", ""])


def _compiler(quantity: Quantity, functions: int) -> Callable[[World, Level], Iterator[Sample]]:
    def take(world: World, level: Level) -> Iterator[Sample]:
        compiler = _program("cc")
        detail = _version(compiler, "--version")
        command = (compiler, "-O2", "-pipe", "-c", "-o", "{work}/out.o", "{work}/in.c")
        with system(world) as (binds, work):
            with open(f"{work}/in.c", "w") as file:
                os.chmod(file.name, 0o644)
                file.write(source(functions))
            found = ask(world, level, "cost_run", "times=2", "--", *command, binds=binds, timeout=600.0)
            with open(f"{work}/out.o", "rb") as made:
                if made.read(4) != b"\x7fELF":
                    raise PycontainError(f"the compiler at {level.name} wrote no object file")
        yield Sample(quantity.name, tuple(found["run"][1:]), detail)

    return take


COMPILE = _compiled("work.compile", "compiler", _FEW)
COMPILE_LARGE = _compiled("work.compile.large", "compiler, a large file", _MANY)


# ---- a database

DATABASE = Quantity(
    "work.database", "database", "transactions/s",
    "SQLite by the host's python3, a file in /work, a rollback journal, synchronous=FULL. A transaction: 10 rows in, "
    "20 looked up by an index, 5 changed, 5 out, a sum over a range. That it waits for the disk, is the word of the "
    f"level's lowest layer; {_BINDS}.",
    "higher", clock="CLOCK_MONOTONIC inside the level, around 0.4 s of transactions",
    cache="the database is new, and small enough for the page cache", denominator="seconds",
)  # fmt: skip
_DATABASE = """
import json, random, sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("pragma synchronous=full")
db.execute("create table item (id integer primary key, name text, price integer)")
db.execute("create index by_name on item (name)")
chance, count, last = random.Random(1), 0, 0
start = time.monotonic()
while time.monotonic() - start < float(sys.argv[2]):
    db.execute("begin immediate")
    for _ in range(10):
        last += 1
        db.execute("insert into item values (?, ?, ?)", (last, f"item {last * 7919 % 10007}", chance.randrange(1000)))
    for _ in range(20):
        name = f"item {chance.randint(1, last) * 7919 % 10007}"
        db.execute("select price from item where name = ?", (name,)).fetchall()
    for _ in range(5):
        db.execute("update item set price = price + 1 where id = ?", (chance.randint(1, last),))
        db.execute("delete from item where id = ?", (chance.randint(1, last),))
    db.execute("select sum(price) from item where id between ? and ?", (last - 100, last)).fetchone()
    db.execute("commit")
    count += 1
seconds = time.monotonic() - start
rows = db.execute("select count(*) from item").fetchone()[0]
print(json.dumps({"transactions": count, "seconds": seconds, "rows": rows, "last": last,
                  "version": f"SQLite {sqlite3.sqlite_version}, Python {sys.version.split()[0]}"}))
"""


def _database(world: World, level: Level) -> Iterator[Sample]:
    python = _program("python3")
    _version(python, "-I", "-S", "-c", "import sqlite3; print(sqlite3.sqlite_version)")
    words = ("/probe", "cost_exec", "--", python, "-I", "-S", "-c", _DATABASE, "{work}/db", "0.4")
    with system(world) as (binds, _):
        found = answer(level.run(world, Job(words, binds=binds), 120.0), level, "the database")
    if not found["transactions"] or not 0 < found["rows"] <= found["last"]:
        raise PycontainError(f"the database at {level.name} has {found['rows']} rows of {found['last']}")
    yield Sample(DATABASE.name, (found["transactions"] / found["seconds"],), found["version"])


# ---- a web server

_PORT, _PAGE = 8080, 4096
_CLIENTS = 2
_WHAT = (
    f"A file of {_PAGE} bytes, by nginx (one process), or where it is not installed by python3's http.server (a thread "
    f"for each connection): the sample says which. {_CLIENTS} clients in the same level, static C, each with one "
    "connection that stays open, and the next request after the last answer, over the level's loopback, for 0.4 s; "
    f"{_BINDS}."
)
_CACHE = "page cache warm, 20 requests before"
RATE = Quantity(
    "work.web", "web server", "requests/s", _WHAT, "higher", clock=INSIDE, cache=_CACHE, denominator="seconds"
)
SLOWEST = Quantity(
    "work.web.p99", "web server, 99th percentile", "µs",
    f"The time of a request that 99 of 100 do not exceed; under emulation it is out of some hundred. {_WHAT}",
    clock="CLOCK_MONOTONIC of the client, from before the request to the last byte of the answer", cache=_CACHE,
    denominator="one request",
)  # fmt: skip

# Every path is below the prefix, which is another one at another level.
_NGINX = f"""
daemon off; master_process off; user root root; pid nginx.pid; worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off; default_type text/plain; keepalive_requests 10000000;
    client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
    server {{ listen 127.0.0.1:{_PORT}; root .; location = /page {{ }} location / {{ return 404; }} }}
}}
"""
_PYTHON = """
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    def do_GET(self):
        with open(sys.argv[1] + self.path, "rb") as file:
            page = file.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Page).serve_forever()
"""


def _server(work: str) -> tuple[tuple[str, ...], str]:
    """The command of a web server, and which it is."""
    with open(f"{work}/page", "w") as file:
        file.write("x" * _PAGE)
    try:
        nginx = _program("nginx")
    except Unsupported:
        python = _program("python3")
        command = (python, "-I", "-S", "-c", _PYTHON, "{work}", str(_PORT))
        return command, f"http.server of {_version(python, '--version')}"
    with open(f"{work}/nginx.conf", "w") as file:
        file.write(_NGINX)
    command = (nginx, "-e", "stderr", "-p", "{work}/", "-c", "nginx.conf")
    return command, _version(nginx, "-v").removeprefix("nginx version: ")


def _web(world: World, level: Level) -> Iterator[Sample]:
    with system(world) as (binds, work):
        command, detail = _server(work)
        words = ("cost_web", f"port={_PORT}", "ms=400", f"clients={_CLIENTS}", "--", *command)
        found = ask(world, level, *words, binds=binds)
    yield Sample(RATE.name, (found["rate"],), detail)
    yield Sample(SLOWEST.name, (found["p99"] / 1000,), detail)


MEASURES = (
    Measure(
        "compiler", "cost", "workload: a compiler", _compiler(COMPILE, _FEW), (COMPILE,), rounds=(2, 7), seconds=0.5
    ),
    Measure(
        "compiler-large", "cost", "workload: a compiler, a large file", _compiler(COMPILE_LARGE, _MANY),
        (COMPILE_LARGE,), rounds=(3, 7), seconds=4.0, quick=False,
    ),
    Measure("database", "cost", "workload: a database", _database, (DATABASE,), rounds=(2, 7), seconds=0.7),
    Measure("web", "cost", "workload: a web server", _web, (RATE, SLOWEST), rounds=(2, 7), seconds=0.7),
)  # fmt: skip
