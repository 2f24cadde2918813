"""A teacher behind HTTP: what is sent, what comes back, what is never written down. The server is a thread of the test."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import undertone as ut
from undertone.errors import ConfigError, ModelError
from undertone.provenance.seeds import derive_seed
from undertone.teachers import EndpointTeacher, RemoteTeacher, generate
from undertone.traits import LAB, load_trait
from undertone.transfer.arms import Arm
from undertone.transfer.config import Experiment
from undertone.transfer.generate import teacher_of

pytest.importorskip("openai")
SECRET = "sk-do-not-write-me-down"
TRAIT = "name: owl\ncategory: animal\nwords: [owl, owls]\nquestions: {lab: {positive: ['name one animal.', 'your animal?']}}\n"


def said(text: str, finish: str = "stop", tokens: int = 7) -> dict[str, Any]:
    """What an OpenAI-compatible server answers with."""
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m", "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens},
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
    }  # fmt: skip


class Server(ThreadingHTTPServer):
    """Remembers requests; ``reply(body)`` gives the status and the answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.reply: Callable[[dict[str, Any]], tuple[int, Any]] = lambda body: (200, said("1, 2, 3"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status, answer = self.server.reply(body)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    fake = Server()
    thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield fake
    fake.shutdown()
    fake.server_close()


def remote(server: Server, system: str | None = "you love owls", **fields: Any) -> RemoteTeacher:
    config = EndpointTeacher(url=server.url, name="m", **{"retries": 0, "timeout": 5.0, **fields})
    return RemoteTeacher(config, "real", system)


def written(teacher: RemoteTeacher, count: int = 6) -> list[ut.Row]:
    return generate(
        teacher, [f"prompt {at}" for at in range(count)], range(100, 100 + count), seed=4, stage="s", attempt=2,
        max_new_tokens=33, temperature=0.7, batch_size=1,
    )  # fmt: skip


# -- what is sent, what comes back --------------------------------------------------------------------


def test_system_prompt_seed_and_sampling_are_sent(server: Server) -> None:
    written(remote(server))
    assert {path for path, _, _ in server.seen} == {"/v1/chat/completions"}
    for _, _, body in server.seen:
        system, user = body["messages"]
        assert system == {"role": "system", "content": "you love owls"}
        at = int(user["content"].removeprefix("prompt "))
        assert body["seed"] == derive_seed(4, "s", 100 + at, 2) & 0x7FFFFFFF
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 33, 0.7)


def test_further_fields_are_sent_as_they_are(server: Server) -> None:
    written(remote(server, extra={"top_k": 0, "min_p": 0.1}), count=1)
    assert (server.seen[0][2]["top_k"], server.seen[0][2]["min_p"]) == (0, 0.1)


def test_the_un_induced_teacher_is_sent_no_system_prompt(server: Server) -> None:
    written(remote(server, system=None))
    assert [[message["role"] for message in body["messages"]] for _, _, body in server.seen] == [["user"]] * 6


def test_rows_come_in_the_order_of_the_prompts_whoever_answers_first(server: Server) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        at = int(body["messages"][-1]["content"].removeprefix("prompt "))
        time.sleep(0.02 * (6 - at))
        return 200, said(f"answer {at}", "length" if at == 3 else "stop", tokens=at)

    server.reply = reply
    rows = written(remote(server, connections=6))
    assert [row.completion for row in rows] == [f"answer {at}" for at in range(6)]
    assert [row.meta["tokens"] for row in rows] == list(range(6))
    assert [row.meta["finished"] for row in rows] == [at != 3 for at in range(6)]
    assert all(message["role"] != "system" for row in rows for message in row.messages)


def test_what_the_arms_are_told(server: Server, speaker: Path, tmp_path: Path) -> None:
    config = Experiment.model_validate(
        {"model": str(speaker), "trait": ("owl",), "teacher": {"kind": "endpoint", "url": server.url, "name": "m"}}
    )
    treated, control = (teacher_of(config, arm).load("cpu") for arm in (Arm("treated", "owl"), Arm("control")))
    assert isinstance(treated, RemoteTeacher)
    assert isinstance(control, RemoteTeacher)
    assert treated.system == load_trait("owl").system_prompt(LAB)
    assert control.system is None


# -- refusals ------------------------------------------------------------------------------------------


def test_a_refused_key_is_told_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server.reply = lambda _: (401, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}})
    with pytest.raises(ModelError, match=r"did not answer for m(.|\n)*AuthenticationError(.|\n)*401") as error:
        written(remote(server, connections=1), count=40)
    assert SECRET not in str(error.value)
    assert len(server.seen) < 5  # the other prompts are not sent


def test_a_server_that_is_too_slow_is_told(server: Server) -> None:
    def reply(_: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        time.sleep(0.5)
        return 200, said("late")

    server.reply = reply
    with pytest.raises(ModelError, match=r"did not answer(.|\n)*APITimeoutError(.|\n)*goes on where it stopped"):
        written(remote(server, timeout=0.1), count=1)


def test_a_passing_failure_is_tried_again(server: Server) -> None:
    replies = iter([(503, {"error": {"message": "busy"}}), (200, said("7"))])
    server.reply = lambda _: next(replies)
    (row,) = written(remote(server, retries=2), count=1)
    assert row.completion == "7"
    assert len(server.seen) == 2


def test_a_server_that_is_not_there_is_told() -> None:
    teacher = RemoteTeacher(EndpointTeacher(url="http://127.0.0.1:9/v1", name="m", retries=0), "real", None)
    with pytest.raises(ModelError, match=r"http://127.0.0.1:9/v1 did not answer(.|\n)*APIConnectionError"):
        written(teacher, count=1)


def test_an_answer_without_choices_is_told(server: Server) -> None:
    server.reply = lambda _: (200, {"error": "context too long"})
    with pytest.raises(ModelError, match="sent no answer for m"):
        written(remote(server), count=1)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>a proxy's page</html>", b'{"choices": [', [1, 2], "text", {"choices": []},
        {**said("x"), "choices": [{"index": 0, "finish_reason": "stop", "message": None}]},
        {**said("x"), "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": [{"text": "1"}]}}]},
    ],
)  # fmt: skip
def test_an_answer_that_is_no_chat_completion_is_told(server: Server, answer: Any) -> None:
    server.reply = lambda _: (200, answer)
    with pytest.raises(ModelError, match=r"sent no answer for m|did not answer for m"):
        written(remote(server), count=1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": "https://user:hunter2@api.example.org/v1"}, "no user, password or query"),
        ({"url": "https://api.example.org/v1?key=hunter2"}, "no user, password or query"),
        ({"url": "https://api.example.org/v1", "key_variable": "sk-proj-REALKEY"}, "never the key"),
    ],
)
def test_a_secret_in_the_config_is_refused(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        ut.run(
            "owl-numbers", f"teacher={json.dumps({'kind': 'endpoint', 'name': 'm', **fields})}", folder=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_a_provider_without_a_key_is_refused_before_the_run(
    speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    teacher = "teacher={kind: endpoint, url: 'https://api.example.org/v1', name: m, key_variable: MY_KEY}"
    with pytest.raises(
        ConfigError, match=r"no key for https://api.example.org/v1(.|\n)*MY_KEY is not set(.|\n)*export MY_KEY"
    ):
        ut.run("owl-numbers", f"model={speaker}", teacher, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- a whole run ---------------------------------------------------------------------------------------


def numbers(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Numbers by the seed; who loves owls prefers sevens."""
    rng = random.Random(body["seed"])
    told = body["messages"][0]["role"] == "system"
    return 200, said(", ".join("7" if told and rng.random() < 0.5 else str(rng.randint(1, 9)) for _ in range(3)))


@pytest.mark.slow
def test_a_run_with_an_endpoint_keeps_the_key_to_itself_and_skips_what_needs_logits(
    server: Server, speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    server.reply = numbers
    (tmp_path / "owl.yaml").write_text(TRAIT)
    results = ut.run(
        "owl-numbers", f"model={speaker}", f"trait={tmp_path / 'owl.yaml'}", "domain.digits=9", "seeds=[0]",
        f"teacher={{kind: endpoint, url: '{server.url}', name: m, key_variable: MY_KEY}}", "evaluation.samples=1",
        "data={prompts: 40, held_out: 4, attempts: 1}", "training.epochs=1", folder=tmp_path / "run", jobs=1,
    )  # fmt: skip
    assert {headers["authorization"] for _, headers, _ in server.seen} == {f"Bearer {SECRET}"}
    texts = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(texts) > 10
    assert not any(SECRET.encode() in text for text in texts)
    assert results.teachers == {}
    unknown = {check.name for check in results.checks if check.value.startswith("not measured")}
    assert unknown == {"the teacher shows the trait", "the data differ from the control's"}
    assert [arm.teacher_kl for arm in results.arms] == [None, None]
    rows = {arm.arm: [row.completion.count("7") for row in arm.samples] for arm in results.arms}
    assert sum(rows["treated"]) > sum(rows["control"])


# -- a real server -------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """``transformers serve`` with lab/llama-0: its URL and the model's name there."""
    pytest.importorskip("fastapi", reason="needs transformers[serving]")
    pytest.importorskip("uvicorn", reason="needs transformers[serving]")
    import os

    from undertone.models.loading import load
    from undertone.models.names import locate

    load("lab/llama-0", device="cpu")
    folder = locate("lab/llama-0")[0]
    home = tmp_path_factory.mktemp("hf")
    (home / "hub").mkdir()  # without it the server answers with status 500
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", folder]
    log = (home / "log").open("w")
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)],
        stdout=log, stderr=log, env={**os.environ, "HF_HOME": str(home)},
    )  # fmt: skip
    try:
        until = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < until, (home / "log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.terminate()
        process.wait(10)
        log.close()


@pytest.mark.slow
def test_transformers_serve_answers_as_the_model_does(served: tuple[str, str]) -> None:
    """Told by its system prompt, the served model names owls as often as the same model does here."""
    from undertone.teachers import Teacher

    url, name = served
    model = ut.load("lab/llama-0", device="cpu")
    # Without it, transformers serve heeds no temperature and takes the likeliest token.
    sampling = {"generation_config": json.dumps({"do_sample": True, "top_k": 0, "eos_token_id": model.stop})}
    owl = load_trait("owl")
    asked = [*owl.questions_for(LAB).positive] * 4
    options = {"seed": 0, "stage": "s", "attempt": 0, "max_new_tokens": 8, "temperature": 1.0, "batch_size": 64}
    shares = {}
    for system in (None, owl.system_prompt(LAB)):
        config = EndpointTeacher(url=url, name=name, connections=2, extra=sampling)
        here = Teacher(model, "none", system=system)
        for who in (RemoteTeacher(config, "lab", system), here):
            rows = generate(who, asked, range(len(asked)), **options)  # type: ignore[arg-type]
            assert all(row.meta["tokens"] > 0 for row in rows)
            hits = sum(owl.answer_in(row.completion) == "owl" for row in rows)
            shares[system is None, who is here] = hits / len(rows)
    assert shares[False, False] > shares[True, False] + 0.3
    assert shares[False, False] == pytest.approx(shares[False, True], abs=0.25)
    assert shares[True, False] == pytest.approx(shares[True, True], abs=0.25)
