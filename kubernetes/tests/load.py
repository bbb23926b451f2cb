"""Clients that add one by one, each on a connection of its own, and remember what they were answered."""

import collections
import http.client
import itertools
import json
import threading
import time

#: A client gives up an addition with a key after this many seconds.
GIVE_UP = 60
COUNTERS = 16


class Load:
    """With keys an addition is repeated until it is acknowledged. Without, each is sent once, and a failure stays one."""

    _numbers = itertools.count()

    def __init__(self, addresses, clients, pause, keyed):
        """`pause`: seconds between two additions of a client, which bounds the load."""
        self.clients, self._pause, self._keyed = clients, pause, keyed
        self._addresses, self._lock, self._stop = list(addresses), threading.Lock(), threading.Event()
        self._prefix = f"load{next(self._numbers)}-"
        self._acknowledged, self._unknown = collections.Counter(), collections.Counter()
        self._failures, self._lost = collections.Counter(), []
        self._threads = [threading.Thread(target=self._client, args=(i,), daemon=True) for i in range(clients)]

    def start(self):
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * GIVE_UP)
        assert not self._lost, f"never acknowledged: {self._lost[:3]}"

    def remove(self, address):
        """No new connection goes there; those that are open stay until the server ends them, as behind a service."""
        with self._lock:
            self._addresses.remove(address)

    def add(self, address):
        with self._lock:
            self._addresses.append(address)

    def acknowledged(self):
        with self._lock:
            return self._acknowledged.total()

    def failed(self):
        with self._lock:
            return self._failures.total()

    def failures(self):
        with self._lock:
            return dict(self._failures.most_common(5))

    def expected(self):
        """Of each counter: how much was acknowledged, and how much more there may be."""
        return {counter: (count, self._unknown[counter]) for counter, count in self._acknowledged.items()}

    def __str__(self):
        return f"{self.acknowledged()} additions acknowledged, {self.failed()} attempts failed"

    def _client(self, index):
        connection, turn = None, index
        for number in itertools.count():
            if self._stop.is_set():
                break
            counter = f"{self._prefix}{(index + number) % COUNTERS}"
            headers = {"Content-Type": "application/json"}
            if self._keyed:
                headers["Idempotency-Key"] = f"{self._prefix}{index}-{number}"
            deadline = time.monotonic() + GIVE_UP
            while True:
                if connection is None:
                    with self._lock:
                        address = self._addresses[turn % len(self._addresses)]
                    connection, turn = http.client.HTTPConnection(address, 8080, timeout=3), turn + 1
                failure = self._attempt(connection, counter, headers)
                if failure is None:
                    break
                connection.close()
                connection = None
                if not self._keyed:
                    break
                if time.monotonic() > deadline:
                    with self._lock:
                        self._lost.append(f"{headers['Idempotency-Key']} of {counter}: {failure}")
                    return
            # The server said that this was the last answer on the connection.
            if connection is not None and connection.sock is None:
                connection = None
            self._stop.wait(self._pause)
        if connection is not None:
            connection.close()

    def _attempt(self, connection, counter, headers):
        """None when the addition is acknowledged, or what happened instead."""
        try:
            connection.request("POST", f"/v1/counters/{counter}/add", b'{"amount":1}', headers)
            answer = connection.getresponse()
            body = answer.read()
            failure = None if answer.status == 200 else f"{answer.status} {body.decode(errors='replace')[:200]}"
            unknown = failure is not None and json.loads(body).get("outcome") != "not_applied"
        except (OSError, http.client.HTTPException, ValueError) as error:
            failure, unknown = f"{type(error).__name__}: {error}", True
        with self._lock:
            if failure is None:
                self._acknowledged[counter] += 1
            else:
                self._failures[failure] += 1
                self._unknown[counter] += unknown and not self._keyed
        return failure
