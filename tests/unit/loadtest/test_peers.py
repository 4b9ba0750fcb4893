"""Peers are started right, answer what they should, and say why they can't."""

import subprocess
import sys

import pytest

from loadtest.compare import deployed
from loadtest.peers import BODY, PEERS, PythonProgram
from loadtest.peers.base import Peer, PeerUnavailableError, made_once, tool
from loadtest.peers.container import Runtime
from loadtest.peers.front import answer
from loadtest.peers.process import front


class Broken(Peer):
    name = "broken"
    title = "a broken peer"
    isolation = "none"

    def command(self, port, scratch):
        return [sys.executable, "-c", "import sys; print('first'); sys.exit('no such flag')"]


class FrontOfPython(Peer):
    """The real front server, with a program that answers from Python."""

    name = "front"
    title = "front"
    isolation = "none"

    def __init__(self, code: str) -> None:
        self.code = code

    def command(self, port, scratch):
        return front(port, [sys.executable, "-I", "-S", "-c", self.code])


def test_a_peer_that_ends_at_once_is_unavailable_with_its_last_words():
    told = pytest.raises(PeerUnavailableError, match=r"a broken peer: it ended with 1; it wrote: .*no such flag")
    with told, Broken().running():
        pass


def test_the_front_server_answers_with_what_the_program_wrote():
    with FrontOfPython(r"print('Content-Type: text/plain\n\nhello world')").running() as url:
        done = subprocess.run(
            [sys.executable, "-c", f"import urllib.request as u; r = u.urlopen({url!r}); print(r.read(), r.headers)"],
            capture_output=True,
            text=True,
            check=True,
        )
    assert repr(BODY) in done.stdout
    assert "Content-Type: text/plain" in done.stdout


def test_cgi_output_is_split_at_the_first_blank_line():
    assert answer(b"A: 1\nB:2\n\nbody\n\nmore") == ({"A": "1", "B": "2"}, b"body\n\nmore")
    with pytest.raises(ValueError, match="no blank line"):
        answer(b"body")


def test_the_python_program_answers_as_all_have_to():
    output = subprocess.run(PythonProgram().native(), capture_output=True, check=True).stdout

    assert answer(output) == ({"Content-Type": "text/plain"}, BODY)


def test_a_tool_that_is_missing_or_fails_makes_a_peer_unavailable():
    with pytest.raises(PeerUnavailableError, match="can't build it: no-such-tool-anywhere is not installed"):
        tool(["no-such-tool-anywhere"], "build it")
    with pytest.raises(PeerUnavailableError, match="exited with 3: some words"):
        tool([sys.executable, "-c", "import sys; print('some words', file=sys.stderr); sys.exit(3)"], "build it")


def test_what_was_half_made_is_made_again(tmp_path):
    def fail(folder):
        (folder / "half").write_text("")
        raise PeerUnavailableError("no network")

    with pytest.raises(PeerUnavailableError):
        made_once(tmp_path / "cache" / "thing", fail)
    made = made_once(tmp_path / "cache" / "thing", lambda folder: (folder / "whole").touch())

    assert [path.name for path in made.iterdir()] == ["whole"]
    assert made_once(tmp_path / "cache" / "thing", fail) == made
    assert [path.name for path in made.parent.iterdir()] == ["thing"]


@pytest.mark.parametrize("missing", ["runc", "root"])
def test_containers_say_what_they_need(monkeypatch, tmp_path, missing):
    monkeypatch.setattr("shutil.which", lambda name: None if missing == "runc" else f"/usr/sbin/{name}")
    monkeypatch.setattr("os.geteuid", lambda: 1000)

    with pytest.raises(
        PeerUnavailableError, match=f"run.*{'apt-get install runc' if missing == 'runc' else 'as root'}"
    ):
        Runtime().command(None, tmp_path, "name")


def test_peers_have_names_of_their_own_and_say_how_they_isolate():
    assert [peer.name for peer in PEERS.values()] == list(PEERS)
    assert all(peer.title and peer.isolation for peer in PEERS.values())
    assert len({peer.title for peer in PEERS.values()}) == len(PEERS)


def test_our_functions_answer_what_all_have_to(tmp_path):
    class Deploying:
        public_url = "http://127.0.0.1:1"

        def deploy(self, manifest, module):
            self.deployed = manifest["name"], module.name, BODY in module.read_bytes()

    host = Deploying()
    for kind in ("reactor", "command"):
        assert deployed(host, kind) == f"http://127.0.0.1:1/hello-{kind}"
        assert host.deployed == (f"hello-{kind}", f"hello-{kind}.wasm", True)
