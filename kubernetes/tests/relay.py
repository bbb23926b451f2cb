"""Lets containers reach a service on loopback: what comes to a port of the bridge goes on to the same port of 127.0.0.1."""

import socket
import threading


#: Of Linux, without a name in Python: an address may be bound before it is there, as the bridge comes with the first container.
_IP_FREEBIND = 15


def relay(address, port):
    """Starts to listen and returns at once; ends with the process."""
    listener = socket.socket()
    listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(256)

    def accept():
        while True:
            outside, _ = listener.accept()
            try:
                inside = socket.create_connection(("127.0.0.1", port))
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
