"""Requests that the page itself never sends, to the real server."""

import http.client
import json
import uuid
from urllib.parse import urlsplit

import pytest

from app.serving import CLASSIFY, FILE, FORM, TRAIN, ask, event, outcome

pytest.importorskip("gradio", reason="needs the extra app")
pytestmark = pytest.mark.slow

DRAWING = {"url": "data:image/png;base64,AAAA"}


@pytest.mark.parametrize(("method", "path"), [("GET", "/config"), ("POST", "/gradio_api/upload"), ("OPTIONS", "/")])
def test_other_sites_are_not_answered(url, method, path):
    here = urlsplit(url).netloc
    for headers, status in (
        ({"Host": "evil.example"}, 400),  # whose name points to this machine
        ({"Host": f"evil.example:{urlsplit(url).port}", "Origin": f"http://evil.example:{urlsplit(url).port}"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://{here}.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9"}, 403),
    ):
        got, answer, _ = ask(url, method, path, **headers, Access_Control_Request_Method="POST")
        assert (got, answer["Access-Control-Allow-Origin"]) == (status, None)


def test_this_machine_is_answered_by_both_names(url):
    port = urlsplit(url).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        status, headers, _ = ask(url, "GET", "/config", Host=host, Origin=f"http://{host}")
        assert status == 200
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        status, _, body = ask(url, "POST", "/gradio_api/upload", FILE, **FORM, Host=host, Origin=f"http://{host}")
        assert status == 200
        assert json.loads(body)[0].endswith("a.png")


def test_what_the_page_does_not_need_is_refused(url):
    for method, path in (
        ("GET", "/gradio_api/file=http://127.0.0.1:9/x"),  # the server would ask other machines
        ("GET", "/gradio_api/proxy=https://x.hf.space/x"),
        ("POST", "/gradio_api/call/train"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/login"),
    ):
        assert ask(url, method, path)[0] == 403
    assert ask(url, "GET", "/gradio_api/file=/etc/passwd")[0] == 403


def test_bodies_have_a_length_and_a_limit(url):
    def refusal(path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.putrequest("POST", path)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()  # no body follows, and none is waited for
        answer = connection.getresponse()
        return answer.status, answer.read()

    assert refusal("/gradio_api/upload", Content_Length="600000000") == (
        413,
        b"600,000,000 bytes, more than 60,010,000",
    )
    assert refusal("/gradio_api/queue/join", Content_Length="20000000")[0] == 413
    assert refusal("/gradio_api/upload", Transfer_Encoding="chunked")[0] == 411


@pytest.mark.parametrize(
    ("body", "form"),
    [
        (b"--x\r\nab,c\r\n--,", FORM),
        (FILE.replace(b"filename", b"\xfffilename"), FORM),  # a field that is no file
        (FILE, {"Content-Type": f"multipart/form-data; boundary={'x' * 300}"}),
    ],
)
def test_a_malformed_upload_is_refused_without_a_word(url, body, form):
    """The server's last words are checked when it ends."""
    status, _, _ = ask(url, "POST", "/gradio_api/upload", body, **form)
    assert status in (400, 413)  # Gradio's answer to any fault of a form


MALFORMED = [
    b"",
    b"{",
    b"\xff",
    b"[" * 100_000,
    [],
    {},
    {"data": [[]], "fn_index": TRAIN},
    event("x"),
    event([]),
    event([[], []]),
    event(["x"]),
    event([[{"name": "a"}]]),
    event([[{"name": 1, "images": []}]]),
    event([[{"name": "a", "images": [{"path": "/etc/passwd"}]}]]),
    event([[{"name": "a", "images": [{"url": None}]}]]),
    event([[{"name": "a" * 256, "images": []}]]),
    event([[{"name": "a", "images": [{"url": "x" * 2**21}]}]]),
    event([[{"name": "a", "images": []}] * 101]),
    event([{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]),
    event([[]], last="zoom"),
    event([[]], last=None),
    event([[]], last=[]),
    event([None, []], last=4, fn_index=CLASSIFY),
    event([None, []], last="1", fn_index=CLASSIFY),
    event([[]]) | {"fn_index": 99},
    event([[]]) | {"fn_index": "1"},
    event([[]]) | {"session_hash": None},
    event([[]]) | {"session_hash": "x" * 65},
]


@pytest.mark.parametrize("body", MALFORMED)
def test_malformed_events_are_refused(url, body):
    status, _, said = ask(url, "POST", "/gradio_api/queue/join", body)
    assert status == 400
    assert said.startswith(b"no event of this page: ")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (DRAWING, "This drawing cannot be read."),
        ({"url": "javascript:alert(1)"}, "This drawing cannot be read."),
        ({"url": "", "path": "/etc/passwd"}, "This file was not uploaded."),
        ({"url": "", "path": "a\0b"}, "This file was not uploaded."),
        ({"url": "", "path": "a" * 4000}, "This file was not uploaded."),
    ],
)
def test_images_that_are_none_are_reported(url, image, message):
    session = uuid.uuid4().hex
    cards = [{"name": name, "images": [image]} for name in "ab"]
    cards[0]["meta"] = {"_type": "gradio.FileData"}  # which gradio would look into
    status, _, _ = ask(url, "POST", "/gradio_api/queue/join", event([cards], session, batched=True))
    assert status == 200
    assert outcome(url, session)["output"]["error"] == message


def test_a_session_cannot_keep_the_others_waiting(url):
    many, one = uuid.uuid4().hex, uuid.uuid4().hex
    statuses = [ask(url, "POST", "/gradio_api/queue/join", event([[]], many))[0] for _ in range(6)]
    assert statuses == [200] * 4 + [429] * 2
    assert ask(url, "POST", "/gradio_api/queue/join", event([[]], one))[0] == 200
    assert "Draw or drop at least one image" in outcome(url, one)["output"]["error"]
    outcome(url, many)
