"""A small blocking STOMP client of our own: every byte that it sends is the test's choice."""

import itertools
import socket
import time

ESCAPES = {"\\": "\\\\", "\r": "\\r", "\n": "\\n", ":": "\\c"}
UNESCAPES = {"\\\\": "\\", "\\r": "\r", "\\n": "\n", "\\c": ":"}
RECEIVE_BYTES = 1 << 18


def escape(text, version):
    if version == "1.0":
        return text
    return "".join(ESCAPES.get(c, c) if version == "1.2" or c != "\r" else c for c in text)


def unescape(text, version):
    if version == "1.0" or "\\" not in text:
        return text
    out, at = [], 0
    while at < len(text):
        pair = text[at : at + 2]
        if pair in UNESCAPES:
            out.append(UNESCAPES[pair])
            at += 2
        else:
            out.append(text[at])
            at += 1
    return "".join(out)


class Frame:
    """One frame; of repeated headers the first counts."""

    __slots__ = ("command", "headers", "body")

    def __init__(self, command, headers=None, body=b""):
        self.command = command
        self.headers = headers or {}
        self.body = body

    def __getitem__(self, name):
        return self.headers[name]

    def get(self, name, default=None):
        return self.headers.get(name, default)

    @property
    def text(self):
        return self.body.decode()

    def __repr__(self):
        return f"{self.command} {self.headers} {self.body[:200]!r}"


def encode(command, headers, body=b"", version="1.2", content_length=True):
    """Bytes of a frame. With `content_length` a body has that header, which makes it a bytes message."""
    if isinstance(body, str):
        body = body.encode()
    verbatim = command in ("CONNECT", "CONNECTED", "STOMP")
    lines = [command]
    for name, value in headers.items():
        if verbatim:
            lines.append(f"{name}:{value}")
        else:
            lines.append(f"{escape(str(name), version)}:{escape(str(value), version)}")
    if body and content_length and "content-length" not in headers:
        lines.append(f"content-length:{len(body)}")
    return "\n".join(lines).encode() + b"\n\n" + body + b"\0"


def decode(buffer, version):
    """Cuts one frame off the front of a bytearray; `None` = there is no whole one."""
    start = 0
    while start < len(buffer) and buffer[start] in b"\r\n":
        start += 1
    if start:
        del buffer[:start]
    end = buffer.find(b"\n\n")
    crlf = buffer.find(b"\n\r\n")
    if end < 0 or 0 <= crlf < end:
        if crlf < 0:
            return None
        end, body_at = crlf, crlf + 3
    else:
        body_at = end + 2
    lines = buffer[:end].decode(errors="surrogateescape").split("\n")
    command = lines[0].rstrip("\r")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.rstrip("\r").partition(":")
        if command != "CONNECTED":
            name, value = unescape(name, version), unescape(value, version)
        headers.setdefault(name, value)
    length = headers.get("content-length")
    if length is None:
        body_end = buffer.find(b"\0", body_at)
        if body_end < 0:
            return None
    else:
        body_end = body_at + int(length)
        if len(buffer) <= body_end:
            return None
        assert buffer[body_end] == 0, f"no NUL after {length} bytes of body"
    body = bytes(buffer[body_at:body_end])
    del buffer[: body_end + 1]
    return Frame(command, headers, body)


class Refused(Exception):
    """An ERROR frame came where something else was expected."""

    def __init__(self, frame):
        super().__init__(repr(frame))
        self.frame = frame


class Client:
    """One connection. Frames that a call does not wait for are kept for the next that does."""

    def __init__(self, address, version="1.2", connect=True, timeout=20, **headers):
        self.version = version
        self.timeout = timeout
        self.socket = socket.create_connection(address, timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()
        self.kept = []
        self.receipts = itertools.count(1)
        self.connected = None
        if connect:
            self.connected = self.connect(**headers)

    def connect(self, **headers):
        """CONNECT; header names with `_` for `-`."""
        self.frame("CONNECT", {"accept-version": self.version, "host": "localhost", **dashed(headers)})
        return self.expect("CONNECTED")

    def raw(self, data):
        self.socket.sendall(data)

    def frame(self, command, headers=None, body=b"", content_length=True):
        self.raw(encode(command, headers or {}, body, self.version, content_length))

    def read(self, timeout=None):
        """The next frame from the socket; `None` if none comes in time or the connection ended."""
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            frame = decode(self.buffer, self.version)
            if frame is not None:
                return frame
            left = until - time.monotonic()
            if left <= 0:
                return None
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(RECEIVE_BYTES)
            except TimeoutError:
                return None
            if not data:
                raise ConnectionError("the broker closed the connection")
            self.buffer += data

    def expect(self, command, timeout=None, **headers):
        """The next frame with this command and these headers. ERROR raises, unless it is what is expected."""
        wanted = dashed(headers)

        def fits(frame):
            return frame.command == command and all(frame.get(name) == value for name, value in wanted.items())

        for at, frame in enumerate(self.kept):
            if fits(frame):
                return self.kept.pop(at)
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            frame = self.read(max(until - time.monotonic(), 0))
            if frame is None:
                raise AssertionError(f"no {command} {wanted} in time; kept: {self.kept[:5]}")
            if fits(frame):
                return frame
            if frame.command == "ERROR":
                raise Refused(frame)
            self.kept.append(frame)

    def message(self, timeout=None, **headers):
        return self.expect("MESSAGE", timeout, **headers)

    def messages(self, count, timeout=None, **headers):
        return [self.message(timeout, **headers) for _ in range(count)]

    def silence(self, seconds=0.3):
        """No MESSAGE may come for a while."""
        for frame in self.kept:
            assert frame.command != "MESSAGE", f"unexpected {frame}"
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            frame = self.read(left)
            if frame is not None:
                assert frame.command != "MESSAGE", f"unexpected {frame}"
                self.kept.append(frame)

    def request(self, command, headers=None, body=b"", content_length=True):
        """Sends a frame with a receipt and waits for it."""
        receipt = f"r{next(self.receipts)}"
        self.frame(command, {**(headers or {}), "receipt": receipt}, body, content_length)
        return self.expect("RECEIPT", receipt_id=receipt)

    def send(self, destination, body=b"", persistent=True, content_length=True, **headers):
        """SEND, confirmed."""
        all_headers = {"destination": destination, **({"persistent": "true"} if persistent else {}), **dashed(headers)}
        return self.request("SEND", all_headers, body, content_length)

    def subscribe(self, destination, id="0", ack="auto", **headers):
        return self.request("SUBSCRIBE", {"destination": destination, "id": id, "ack": ack, **dashed(headers)})

    def unsubscribe(self, id="0", **headers):
        """What was delivered and not looked at goes back: nobody may take it for another subscription's."""
        receipt = self.request("UNSUBSCRIBE", {"id": id, **dashed(headers)})
        self.kept = [frame for frame in self.kept if frame.command != "MESSAGE" or frame.get("subscription") != str(id)]
        return receipt

    def _ack_headers(self, message):
        if self.version == "1.2":
            return {"id": message["ack"]}
        return {"message-id": message["message-id"], "subscription": message.get("subscription", "")}

    def ack(self, message, receipt=True, **headers):
        call = self.request if receipt else self.frame
        return call("ACK", {**self._ack_headers(message), **dashed(headers)})

    def nack(self, message, **headers):
        return self.request("NACK", {**self._ack_headers(message), **dashed(headers)})

    def begin(self, transaction):
        return self.request("BEGIN", {"transaction": transaction})

    def commit(self, transaction):
        return self.request("COMMIT", {"transaction": transaction})

    def abort(self, transaction):
        return self.request("ABORT", {"transaction": transaction})

    def disconnect(self):
        self.request("DISCONNECT")
        self.close()

    def close(self):
        """Without a word, like a client that died."""
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def dashed(headers):
    """Python's names to headers: `reply_to` is `reply-to`, `activemq__prefetchSize` is `activemq.prefetchSize`."""
    return {name.replace("__", ".").replace("_", "-"): str(value) for name, value in headers.items()}
