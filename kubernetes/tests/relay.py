"""Lets containers reach a service on loopback: what comes to a port of the bridge goes on to a port of 127.0.0.1."""

import socket
import threading


def relay(port, to_port):
    """Starts to listen on `port` of every address; returns at once. It ends with the process."""
    listener = socket.create_server(("", port), backlog=256)

    def accept():
        while True:
            outside, _ = listener.accept()
            try:
                inside = socket.create_connection(("127.0.0.1", to_port))
            except OSError:
                outside.close()
                continue
            for source, sink in ((outside, inside), (inside, outside)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_copy, args=(source, sink), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _copy(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        # One side is gone without a word: the other learns it the same way.
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
