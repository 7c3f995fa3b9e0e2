"""A TCP proxy in user space, with which a link can be cut where there are no rights to cut a network."""

import contextlib
import socket
import threading

CHUNK_BYTES = 1 << 16


class Proxy:
    """Forwards connections. While it is held, bytes and new connections wait, as in a network that swallows packets."""

    def __init__(self, target, listen=("127.0.0.1", 0)):
        self.target = target
        self.flowing = threading.Event()
        self.flowing.set()
        self.sockets = set()
        self.lock = threading.Lock()
        self.closed = False
        self.listener = socket.create_server(listen)
        self.address = self.listener.getsockname()[:2]
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self):
        """From now on nothing passes, and nobody is told."""
        self.flowing.clear()

    def release(self):
        """What waited goes on, however late."""
        self.flowing.set()

    def reset(self):
        """Ends every connection; new ones are welcome."""
        with self.lock:
            open_now = list(self.sockets)
        for one in open_now:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.closed = True
        # A thread in accept() does not notice a mere close.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.reset()
        self.flowing.set()

    def _accept(self):
        while not self.closed:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near):
        with near:
            self.flowing.wait()
            try:
                far = socket.create_connection(self.target, timeout=10)
            except OSError:
                return
            with far:
                far.settimeout(None)
                with self.lock:
                    self.sockets |= {near, far}
                back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
                back.start()
                self._pump(near, far)
                back.join()
                with self.lock:
                    self.sockets -= {near, far}

    def _pump(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                self.flowing.wait()
                target.sendall(data)
        # Either end's end is the other's.
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
