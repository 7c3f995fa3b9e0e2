"""stomp.py with its callbacks turned into things to wait for."""

import itertools
import queue as queues
import threading

import stomp

VERSIONS = {"1.0": stomp.StompConnection10, "1.1": stomp.StompConnection11, "1.2": stomp.StompConnection12}


class Listener(stomp.ConnectionListener):
    """Collects frames."""

    def __init__(self):
        self.messages = queues.Queue()
        self.errors = queues.Queue()
        self.receipts = queues.Queue()
        self.heart_beat_lost = threading.Event()
        self.disconnected = threading.Event()
        self.connected_headers = {}

    def on_connected(self, frame):
        self.connected_headers = frame.headers

    def on_message(self, frame):
        self.messages.put(frame)

    def on_error(self, frame):
        self.errors.put(frame)

    def on_receipt(self, frame):
        self.receipts.put(frame.headers["receipt-id"])

    def on_heartbeat_timeout(self):
        self.heart_beat_lost.set()

    def on_disconnected(self):
        self.disconnected.set()


class Session:
    """A connected stomp.py client."""

    def __init__(self, broker, version="1.2", headers=None, **options):
        self.version = version
        self.heard = Listener()
        self.numbers = itertools.count(1)
        options = {"auto_decode": False, **options}
        self.connection = VERSIONS[version]([broker.address], **options)
        self.connection.set_listener("test", self.heard)
        self.connection.connect("user", "secret", wait=True, headers=headers or {})

    def receipt(self, call, *arguments, headers=None, **named):
        """A call of stomp.py's with a receipt, awaited."""
        wanted = f"receipt-{next(self.numbers)}"
        call(*arguments, headers={**(headers or {}), "receipt": wanted}, **named)
        self.await_receipt(wanted)

    def await_receipt(self, wanted, timeout=20):
        try:
            assert self.heard.receipts.get(timeout=timeout) == wanted
        except queues.Empty:
            errors = list(self.heard.errors.queue)
            raise AssertionError(f"no {wanted}; errors: {[(one.headers, one.body) for one in errors]}") from None

    def send(self, destination, body, **headers):
        self.receipt(self.connection.send, destination, body, headers={"persistent": "true", **headers})

    def subscribe(self, destination, id="1", ack="auto", **headers):
        self.receipt(self.connection.subscribe, destination, id=id, ack=ack, headers=headers)

    def message(self, timeout=20):
        return self.heard.messages.get(timeout=timeout)

    def bodies(self, count):
        return [self.message().body for _ in range(count)]

    def error(self, timeout=20):
        return self.heard.errors.get(timeout=timeout)

    def silence(self, seconds=0.3):
        try:
            raise AssertionError(f"unexpected {self.message(seconds)}")
        except queues.Empty:
            pass

    def ack(self, frame, **named):
        self._answer(self.connection.ack, frame, **named)

    def nack(self, frame, **named):
        self._answer(self.connection.nack, frame, **named)

    def _answer(self, call, frame, **named):
        wanted = f"receipt-{next(self.numbers)}"
        headers = frame.headers
        if self.version == "1.0":
            call(headers["message-id"], receipt=wanted, **named)
        elif self.version == "1.1":
            call(headers["message-id"], headers["subscription"], receipt=wanted, **named)
        else:
            call(headers["ack"], receipt=wanted, **named)
        self.await_receipt(wanted)

    def close(self):
        """In good order."""
        if self.connection.is_connected():
            self.connection.disconnect(receipt="goodbye")

    def drop(self):
        """Without a word."""
        self.connection.transport.disconnect_socket()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
