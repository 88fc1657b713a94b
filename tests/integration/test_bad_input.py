"""Bad input: every way to be wrong has its own text, its own exit status, and leaves nothing behind."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from pycontain import cli
from tests.engine_tools import IMAGE, Host

pytestmark = pytest.mark.needs("root", "overlayfs")

# The command line, its exit status, the message, and the hint ("" for none).
CASES = [
    (
        "run",
        125,
        '"pycontain run" wants an argument: IMAGE',
        "pycontain run --help",
    ),
    (
        "run --frob alpine",
        125,
        'unknown option --frob of "pycontain run"',
        "pycontain run --help",
    ),
    (
        "run --memory",
        125,
        '--memory of "pycontain run" wants a value: SIZE',
        "pycontain run --help",
    ),
    (
        "run alpine:bad:tag",
        125,
        "image reference 'alpine:bad:tag': 'alpine:bad' is not a repository (a-z and 0-9 in components joined by . _ __ - and /)",
        "",
    ),
    (
        "run alpine@sha256:12",
        125,
        "image reference 'alpine@sha256:12': 'sha256:12' is not a digest (sha256: and 64, or sha512: and 128 lower case hexadecimal digits)",
        "",
    ),
    (
        "run 'al pine'",
        125,
        "image reference 'al pine': 'al pine' is not a repository (a-z and 0-9 in components joined by . _ __ - and /)",
        "",
    ),
    (
        "run --pull never nosuch",
        125,
        'no such image: "nosuch:latest" is not here',
        "pycontain pull nosuch:latest",
    ),
    (
        "run --memory 64x alpine",
        125,
        '--memory "64x": not a size (wanted a number with b, k, m or g)',
        "--memory 64m",
    ),
    (
        "run --memory 1k alpine",
        125,
        '--memory "1k": too small (at least 6m)',
        "--memory 64m",
    ),
    (
        "run --memory-swap 1g alpine",
        125,
        '--memory-swap "1g": wants a memory limit too',
        "--memory-swap 1g --memory 64m",
    ),
    (
        "run --memory 64m --memory-swap 1m alpine",
        125,
        '--memory-swap "1m": less than the memory limit, which it includes',
        "--memory-swap 128m",
    ),
    (
        "run --cpus none alpine",
        125,
        '--cpus "none": not a number of processors',
        "--cpus 0.5",
    ),
    (
        "run --cpu-shares 1 alpine",
        125,
        '--cpu-shares "1": out of range (2 to 262144)',
        "--cpu-shares 512",
    ),
    (
        "run --cpuset-cpus 0-x alpine",
        125,
        '--cpuset-cpus "0-x": not a list of processors',
        "--cpuset-cpus 0-1",
    ),
    (
        "run --pids-limit many alpine",
        125,
        '--pids-limit "many": not a number',
        "--pids-limit 20",
    ),
    (
        "run --shm-size 0 alpine",
        125,
        '--shm-size "0": must be more than 0',
        "--shm-size 64m",
    ),
    (
        "run --ulimit frob=1 alpine",
        125,
        "ulimit 'frob' is not known: wanted one of as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack",
        "",
    ),
    (
        "run --ulimit nofile=2:1 alpine",
        125,
        "ulimit 'nofile=2:1' has a soft limit above its hard limit",
        "",
    ),
    (
        "run -p 99999:80 alpine",
        125,
        'publish "99999:80": host port is "99999", wanted a number from 0 to 65535 or a range of them',
        "-p [ip:][host:]container[/tcp|/udp], such as -p 127.0.0.1:8080:80",
    ),
    (
        "run -p x alpine",
        125,
        'publish "x": container port is "x", wanted a number from 1 to 65535 or a range of them',
        "-p [ip:][host:]container[/tcp|/udp], such as -p 127.0.0.1:8080:80",
    ),
    (
        "run -p 80:80/sctp alpine",
        125,
        'publish "80:80/sctp": protocol sctp is not supported, only tcp and udp',
        "-p [ip:][host:]container[/tcp|/udp], such as -p 127.0.0.1:8080:80",
    ),
    (
        "run -p 8000-8002:80-81 alpine",
        125,
        'publish "8000-8002:80-81": 3 host ports for 2 container ports, wanted as many',
        "-p [ip:][host:]container[/tcp|/udp], such as -p 127.0.0.1:8080:80",
    ),
    (
        "run -p 80:80 -p 80:81 alpine",
        125,
        "--publish names the host port 80/tcp twice",
        "",
    ),
    (
        "run --network none -p 80:80 alpine",
        125,
        "--publish wants a network of the container's own, but --network is none",
        "--network bridge",
    ),
    (
        "run --network nosuch alpine",
        125,
        '--network "nosuch": no such network (wanted bridge, none, host or container:ID)',
        "--network bridge",
    ),
    (
        "run --network container: alpine",
        125,
        '--network "container:": no container after the colon',
        "--network container:web",
    ),
    (
        "run --network container:nosuch alpine",
        125,
        'no such container: "nosuch"',
        "pycontain ps -a",
    ),
    (
        "run --name -x alpine",
        125,
        '--name "-x": not a name (letters, digits, _ . and -, at least two, the first a letter or digit)',
        "--name web",
    ),
    (
        "run --hostname a_b! alpine",
        125,
        'host name "a_b!" has the label "a_b!", wanted 1 to 63 letters, digits, - and _, with no - at either end',
        "",
    ),
    (
        "run -e =x alpine",
        125,
        '--env "=x": no name before the =',
        "--env NAME=VALUE",
    ),
    (
        "run --env-file /nosuch alpine",
        125,
        '--env-file "/nosuch": cannot be read: no such file or directory',
        "",
    ),
    (
        "run -v relative/path:/x alpine",
        125,
        '--volume "relative/path:/x": the host\'s path is relative; write it as ./relative/path',
        "--volume /srv/data:/data:ro",
    ),
    (
        "run -v a:b:c:d alpine",
        125,
        '--volume "a:b:c:d": not [SOURCE:]TARGET[:OPTIONS]',
        "--volume /srv/data:/data:ro",
    ),
    (
        "run -v /tmp:/ alpine",
        125,
        '--volume "/tmp:/": the target cannot be /',
        "--volume /srv:/data",
    ),
    (
        "run -v /tmp:relative alpine",
        125,
        '--volume "/tmp:relative": the path in the container is not absolute',
        "--volume /srv:/data",
    ),
    (
        "run -v /tmp:/x:frob alpine",
        125,
        '--volume "/tmp:/x:frob": the option "frob" is not built',
        "--volume /srv/data:/data:ro",
    ),
    (
        "run -v /tmp:/x -v /etc:/x alpine",
        125,
        'two mounts want the same target "/x"',
        "leave one of them out",
    ),
    (
        "run --mount type=nfs,target=/x alpine",
        125,
        '--mount "type=nfs,target=/x": the type "nfs" is not bind, volume or tmpfs',
        "",
    ),
    (
        "run --mount type=bind,source=/nosuch,target=/x alpine",
        125,
        'cannot mount "/nosuch" at "/x": it does not exist',
        "mkdir -p /nosuch",
    ),
    (
        "run --mount type=bind,target=/x alpine",
        125,
        '--mount "type=bind,target=/x": the source of a bind mount must be an absolute path',
        "--mount type=bind,source=/srv,target=/data",
    ),
    (
        "run --mount frob alpine",
        125,
        '--mount "frob": "frob" is not KEY=VALUE',
        "--mount type=bind,source=/srv,target=/data",
    ),
    (
        "run --mount type=tmpfs alpine",
        125,
        '--mount "type=tmpfs": no target',
        "--mount type=tmpfs,target=/data",
    ),
    (
        "run --tmpfs /x:frob alpine",
        125,
        '--tmpfs "/x:frob": "frob" is not an option of a tmpfs',
        "--tmpfs /run:size=16m,mode=755",
    ),
    (
        "run --tmpfs x alpine",
        125,
        '--tmpfs "x": the path in the container is not absolute',
        "--tmpfs /run",
    ),
    (
        "run --device /nosuch alpine",
        125,
        '--device "/nosuch": not there on this host',
        "--device /dev/fuse",
    ),
    (
        "run --device relative alpine",
        125,
        '--device "relative": the host\'s path is not absolute',
        "--device /dev/fuse",
    ),
    (
        "run --device /dev/null:/x:q alpine",
        125,
        '--device "/dev/null:/x:q": "q" is not made of r, w and m',
        "--device /dev/fuse:/dev/fuse:rw",
    ),
    (
        "run --cap-add FROB alpine",
        125,
        "capability 'FROB' is not known: wanted ALL or a name of capabilities(7) such as NET_ADMIN",
        "man 7 capabilities",
    ),
    (
        "run --cap-drop FROB alpine",
        125,
        "capability 'FROB' is not known: wanted ALL or a name of capabilities(7) such as NET_ADMIN",
        "man 7 capabilities",
    ),
    (
        "run --security-opt apparmor=x alpine",
        125,
        '--security-opt "apparmor=x": only no-new-privileges, seccomp=unconfined and seccomp=FILE are built',
        "--security-opt no-new-privileges",
    ),
    (
        "run --security-opt seccomp=/nosuch alpine",
        125,
        '--security-opt seccomp "/nosuch": cannot be read: no such file or directory',
        "",
    ),
    (
        "run --platform frob//x alpine",
        125,
        "platform 'frob//x' is not os/architecture[/variant]",
        "such as linux/arm64",
    ),
    (
        "run --platform linux/arm64 --pull never alpine",
        125,
        "image docker.io/library/alpine:latest is for linux/amd64, wanted linux/arm64",
        "",
    ),
    (
        "run --isolation vm --network host alpine",
        125,
        "--network host: a container in a machine shares nothing with this host",
        "--network bridge",
    ),
    (
        "run --isolation vm --pid host alpine",
        125,
        "--pid host: a container in a machine shares nothing with this host",
        "leave out --pid",
    ),
    (
        "run --isolation vm --device /dev/null alpine",
        125,
        "--device: a container in a machine shares nothing with this host",
        "leave out --device",
    ),
    (
        "run --userns host2 alpine",
        125,
        '--userns "host2": user namespaces are not built yet',
        "leave out --userns",
    ),
    (
        "run --restart always alpine",
        125,
        '--restart "always": only "no" is built',
        "leave out --restart",
    ),
    (
        "run --stop-signal FROB alpine",
        125,
        "signal 'FROB' is not known: wanted a name such as TERM, SIGTERM or RTMIN+1, or a number from 1 to 64",
        "",
    ),
    (
        "run --stop-timeout x alpine",
        125,
        '--stop-timeout "x": not a number',
        "--stop-timeout 10",
    ),
    (
        "run --log-opt frob=1 alpine",
        125,
        '--log-opt "frob=1": only max-size and max-file are built',
        "--log-opt max-size=10m",
    ),
    (
        "run --log-opt max-size=1 alpine",
        125,
        '--log-opt "max-size=1": too small (at least 32k)',
        "--log-opt max-size=10m",
    ),
    (
        "run --add-host frob alpine",
        125,
        'add-host "frob": "" is not an IP address',
        "--add-host name:address",
    ),
    (
        "run --add-host a:b alpine",
        125,
        'add-host "a:b": "b" is not an IP address',
        "--add-host name:address",
    ),
    (
        "run --dns x alpine",
        125,
        '--dns "x": "x" is not an address',
        "--dns 192.0.2.1",
    ),
    (
        "run --cidfile /nosuch/x alpine",
        125,
        '--cidfile "/nosuch/x": cannot be written: ENOENT (no such file or directory)',
        "",
    ),
    (
        "run -u ghost alpine true",
        125,
        "user 'ghost' is not in the image's /etc/passwd",
        "give a number instead, such as --user 1000:1000",
    ),
    (
        "run -u 99999999999 alpine true",
        125,
        "user 99999999999 is out of range: wanted 0 to 2147483647",
        "",
    ),
    (
        "run --group-add ghost alpine true",
        125,
        "group 'ghost' is not in the image's /etc/group",
        "give a number instead, such as 1000",
    ),
    (
        "run -w relative alpine",
        125,
        '--workdir "relative": the path in the container is not absolute',
        "--workdir /srv",
    ),
    (
        "run --entrypoint '' alpine",
        125,
        "the image names no command, and none was given",
        "name one after the image",
    ),
    (
        "run --label =x alpine",
        125,
        '--label "=x": no name before the =',
        "--label team=blue",
    ),
    (
        "run --detach-keys ctrl-? alpine",
        125,
        '--detach-keys "ctrl-?": "ctrl-?" is not a key (wanted one character, or ctrl- and one)',
        "--detach-keys ctrl-p,ctrl-q",
    ),
    (
        "run alpine nosuch",
        127,
        "cannot execute 'nosuch': executable file not found in $PATH: ENOENT (no such file or directory)",
        "",
    ),
    (
        "run alpine /etc/passwd",
        126,
        "cannot execute '/etc/passwd': EACCES (permission denied)",
        "",
    ),
    (
        "run --ipc frob alpine",
        125,
        '--ipc of "pycontain run" cannot be "frob": wanted private or host',
        "pycontain run --help",
    ),
    (
        "run --pid frob alpine",
        125,
        '--pid of "pycontain run" cannot be "frob": wanted host',
        "pycontain run --help",
    ),
    (
        "run --rm=maybe alpine",
        125,
        '--rm of "pycontain run" cannot be "maybe": wanted true or false',
        "pycontain run --help",
    ),
    (
        "system frob",
        125,
        'unknown command "system frob"',
        "pycontain system prune",
    ),
    (
        "exec nosuch true",
        1,
        'no such container: "nosuch"',
        "pycontain ps -a",
    ),
    (
        "exec",
        125,
        '"pycontain exec" wants an argument: CONTAINER',
        "pycontain exec --help",
    ),
    (
        "start nosuch",
        1,
        'no such container: "nosuch"',
        "pycontain ps -a",
    ),
    (
        "stop nosuch",
        1,
        'no such container: "nosuch"',
        "pycontain ps -a",
    ),
    (
        "stop -t x nosuch",
        1,
        '--time "x": not a number',
        "--time 10",
    ),
    (
        "kill -s FROB nosuch",
        1,
        "signal 'FROB' is not known: wanted a name such as TERM, SIGTERM or RTMIN+1, or a number from 1 to 64",
        "",
    ),
    (
        "rm nosuch",
        1,
        'no such container: "nosuch"',
        "pycontain ps -a",
    ),
    (
        "logs nosuch",
        1,
        'no such container: "nosuch"',
        "pycontain ps -a",
    ),
    (
        "logs -n x nosuch",
        1,
        'no such container: "nosuch"',
        "pycontain ps -a",
    ),
    (
        "inspect nosuch",
        1,
        'no such container or image: "nosuch"',
        "pycontain ps -a; pycontain images",
    ),
    (
        "wait nosuch",
        1,
        'no such container: "nosuch"',
        "pycontain ps -a",
    ),
    (
        "attach nosuch",
        1,
        'no such container: "nosuch"',
        "pycontain ps -a",
    ),
    (
        "rename nosuch b",
        1,
        '--name "b": not a name (letters, digits, _ . and -, at least two, the first a letter or digit)',
        "--name web",
    ),
    (
        "rmi nosuch",
        1,
        'no such image: "nosuch:latest" is not here',
        "pycontain pull nosuch:latest",
    ),
    (
        "tag nosuch x",
        1,
        'no such image: "nosuch:latest" is not here',
        "pycontain pull nosuch:latest",
    ),
    (
        "tag alpine x@sha256:0",
        1,
        "image reference 'x@sha256:0': 'sha256:0' is not a digest (sha256: and 64, or sha512: and 128 lower case hexadecimal digits)",
        "",
    ),
    (
        "save nosuch",
        1,
        'no such image: "nosuch:latest" is not here',
        "pycontain pull nosuch:latest",
    ),
    (
        "load -i /nosuch",
        1,
        "load /nosuch: ENOENT (no such file or directory)",
        "",
    ),
    (
        "import /nosuch x",
        1,
        "import /nosuch: ENOENT (no such file or directory)",
        "",
    ),
    (
        "import /etc/passwd x",
        1,
        "the tar archive is damaged near byte 512: the checksum is not a number",
        "",
    ),
    (
        "explain /nosuch",
        1,
        'cannot explain "/nosuch": /nosuch does not exist',
        "pycontain explain run alpine sh",
    ),
    (
        "explain frob x",
        1,
        '"pycontain explain" knows run, a config.json or a bundle, not "frob"',
        "pycontain explain run alpine sh",
    ),
    (
        "explain",
        1,
        '"pycontain explain" wants run and its arguments, a config.json or a bundle',
        "pycontain explain run alpine sh",
    ),
    (
        "completion csh",
        125,
        'no completion for the shell "csh": wanted bash, zsh or fish',
        "pycontain completion bash",
    ),
    (
        "ps --filter frob",
        1,
        '--filter "frob": no such filter (filters are status=, name=, id=, label=, ancestor= and exited=)',
        "--filter status=running",
    ),
    (
        "ps --filter frob=1",
        1,
        '--filter "frob=": no such filter (filters are status=, name=, id=, label=, ancestor= and exited=)',
        "--filter status=running",
    ),
    (
        "ps --format xml",
        125,
        '--format of "pycontain ps" cannot be "xml": wanted table or json',
        "pycontain ps --help",
    ),
    (
        "ps x",
        125,
        '"pycontain ps" has no use for "x"',
        "pycontain ps --help",
    ),
    (
        "login -u x",
        1,
        "login wants a terminal, or the password on standard input",
        "pycontain login -u NAME --password-stdin docker.io < FILE",
    ),
    (
        "logs --since frob nosuch",
        1,
        'no such container: "nosuch"',
        "pycontain ps -a",
    ),
]


def expected(message: str, hint: str) -> str:
    return f"pycontain: {message}\n" + (f"\nhint: {hint}\n" if hint else "")


@pytest.mark.parametrize(("line", "status", "message", "hint"), CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_named(
    host: Host, capfd: pytest.CaptureFixture[str], line: str, status: int, message: str, hint: str
) -> None:
    found = cli.run(["--root", str(host.data), "--run-root", str(host.run_directory), *shlex.split(line)])
    out, err = capfd.readouterr()
    assert (found, err, out) == (status, expected(message, hint), "")


def test_a_name_in_use_is_named_with_its_owner(host: Host) -> None:
    identifier = host.out("create", "--name", "web", IMAGE).strip()
    message = f'cannot create container: the name "web" is in use by container {identifier[:12]}'
    assert host("create", "--name", "web", IMAGE, status=1).stderr == expected(message, "pycontain rm -f web")
    host("rm", "web")


def test_a_registry_that_is_not_there_is_named(host: Host) -> None:
    message = "pull 127.0.0.1:1/x:latest: connect to 127.0.0.1:1: ECONNREFUSED (connection refused)"
    hint = "an image that is on this machine already: pycontain load -i FILE, or pycontain import FILE 127.0.0.1:1/x"
    assert host("run", "127.0.0.1:1/x", status=125).stderr == expected(message, hint)


def test_more_processors_than_there_are(host: Host) -> None:
    count = os.cpu_count() or 1
    message = f'--cpus "9999": out of range (0.01 to {count}: this host has {count} processors)'
    assert host("run", "--cpus", "9999", IMAGE, status=125).stderr == expected(message, "--cpus 0.5")
    message = f'--cpuset-cpus "9999": processor 9999 is not there (this host has 0-{count - 1})'
    assert host("run", "--cpuset-cpus", "9999", IMAGE, status=125).stderr == expected(message, "")


def test_a_cidfile_that_exists_is_not_overwritten(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "id"
    path.write_text("mine")
    message = f'--cidfile "{path}": it exists already'
    assert host("run", "--cidfile", str(path), IMAGE, status=125).stderr == expected(message, f"rm {path}")
    assert path.read_text() == "mine"


def test_a_port_that_is_taken(host: Host) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = host("run", "-p", f"127.0.0.1:{port}:80", IMAGE, "true", status=125)
    assert done.stderr.startswith("pycontain: ")
    assert f"{port}" in done.stderr
    assert "EADDRINUSE (address already in use)" in done.stderr


def test_no_refused_command_leaves_a_volume(host: Host) -> None:
    words = ["-v", "/anonymous", "--mount", "type=bind,source=/nosuch,target=/x"]
    message = 'cannot mount "/nosuch" at "/x": it does not exist'
    assert host("run", *words, IMAGE, status=125).stderr == expected(message, "mkdir -p /nosuch")


def test_a_record_of_another_version_is_refused_by_name(host: Host) -> None:
    identifier = host.out("create", IMAGE).strip()
    path = host.data / "containers" / identifier / "container.json"
    text = path.read_text()
    path.write_text(text.replace('"version":1', '"version":2').replace('"version": 1', '"version": 2'))
    message = f"{path} has the format version 2, but this pycontain knows only 1"
    hint = "use the release of pycontain that wrote it"
    assert host("start", identifier, status=1).stderr == expected(message, hint)
    path.write_text(text)
    host("rm", identifier)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot parse {path}: expecting property name enclosed in double quotes at line 1 column 2"),
        ("[]", "{path}: found no JSON object, wanted a configuration"),
        ('{"ociVersion": 1}', None),
        ('{"ociVersion": "1.0.2", "process": {"cwd": "x"}, "root": {"path": "r"}}', None),
        ('{"ociVersion": "1.0.2", "process": {"cwd": "/", "args": []}, "root": {"path": "r"}}', None),
        ('{"ociVersion": "1.0.2", "root": {"path": "r"}, "linux": {"namespaces": [{"type": "frob"}]}}', None),
    ],
)
def test_a_malformed_configuration_is_explained_by_its_json_path(
    host: Host, tmp_path: Path, content: str, message: str | None
) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    done = host("explain", str(path), status=1)
    assert done.stdout == ""
    if message is None:
        assert done.stderr.startswith("pycontain: $.")
        assert "Traceback" not in done.stderr
    else:
        assert done.stderr == expected(message.format(path=path), "")


def test_without_root_it_says_so(
    machine: Host, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    message = '"pycontain ps" wants root: user namespaces are not built yet (found user 1000)'
    assert cli.run(["ps"]) == 1
    assert capfd.readouterr().err == expected(message, "sudo pycontain ps ...")


def test_a_bug_prints_one_line_and_how_to_report_it(
    machine: Host, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pycontain.engine import Engine

    def broken(self: Engine) -> None:
        raise ValueError("something\nodd")

    monkeypatch.setattr(Engine, "containers", property(broken))
    assert cli.run(["ps"]) == 125
    assert capfd.readouterr().err == expected(
        "this is a bug: ValueError: something odd", "pycontain --debug ps   (the traceback, for a report)"
    )
    assert cli.run(["--debug", "ps"]) == 125
    assert "Traceback" in capfd.readouterr().err
