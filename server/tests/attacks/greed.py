"""Attacks on the memory of a fleetsock-server: everything that a peer could make it keep, in turn or at once.

Each attack is a subcommand as in attack.py, whose HTTP/2 it uses. What the server needs meanwhile is measured by the test
that runs this.
"""

import argparse
import json
import os
import socket
import ssl
import struct
import sys
import time

from attack import DATA, END_HEADERS, HEADERS, INITIAL_WINDOW, RST_STREAM, TIMEOUT, WINDOW_UPDATE
from attack import Attacker, Connection, Over, frame, request

SESSION, ENROLL = "/fleetsock.v1.Agent/Session", "/fleetsock.v1.Enrollment/Enroll"
BEGIN, PART, WHOLE = 2, 3, 5
ROWS, LISTEN = 4096, 10


# Protocol buffers, as far as the messages below need them.


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def number(field, value):
    return varint(field << 3) + varint(value)


def block(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data


def column(field, values):
    return block(field, b"".join(map(varint, values)))


def now():
    return number(1, int(time.time()))


def hello(boot=7):
    facts = b"".join(block(field, text) for field, text in ((1, b"hostile"), (2, b"os"), (3, b"kernel"), (4, b"arch")))
    facts += block(5, bytes([boot]) * 16) + block(8, b"1") + number(9, 1) + number(11, 1)
    return block(1, number(1, 1) + block(5, facts) + block(6, now()))


def batch(epoch, seq, kind, strings=(), processes=b"", sockets=b"", boot=7):
    body = number(1, epoch) + number(2, seq) + number(3, kind) + block(4, bytes([boot]) * 16)
    body += block(5, now()) + block(6, now()) + b"".join(block(7, text) for text in strings)
    return block(2, body + block(8, processes) + block(9, sockets))


def listeners(first, count, owner=False):
    """Rows of listeners that are all different, each held by a process of its own when `owner` says so."""
    places = range(first, first + count)
    fixed = b"".join(struct.pack("<Q", place) for place in places)
    address = b"".join(struct.pack("!BBH", 10, place >> 16 & 255, place & 0xFFFF) for place in places)
    same = lambda field, value: column(field, [value] * count)
    rows = same(1, 4) + block(2, fixed) + same(3, 1) + same(4, 6) + same(5, 4) + same(6, LISTEN) + same(7, 0) + same(8, 4)
    rows += block(9, address) + same(10, 80) + same(12, 0) + same(13, 0) + same(14, 2) + same(15, 0) + same(16, 0)
    rows += same(17, 1) + same(18, int(owner)) + (column(19, range(count)) if owner else b"")
    return rows + same(20, 0) + same(21, 0)


def processes(count, texts):
    """So many processes; `texts(place)` are the indices of the five strings of one."""
    pointers = [texts(place) for place in range(count)]
    columns = column(1, [1] * count) + column(2, [0] * count)
    columns += b"".join(column(3 + text, [row[text] for row in pointers]) for text in range(5))
    return columns + column(8, [0] * count)


class Stream:
    """A conversation with the server as an agent."""

    def __init__(self, connection, stream=1, greet=True):
        self.connection, self.stream, self.heard = connection, stream, b""
        connection.send(frame(HEADERS, END_HEADERS, stream, request(SESSION)))
        if greet:
            self.say(hello())

    def say(self, message, most=16384):
        self.connection.data(self.stream, b"\0" + struct.pack("!I", len(message)) + message, most)

    def hear(self, answers):
        """Reads so many messages of the server, or the end of the stream."""
        told = {"answers": 0}
        try:
            while told["answers"] < answers:
                kind, flags, of, payload = self.connection.receive()
                if of == self.stream and kind == DATA:
                    self.heard += payload
                    while len(self.heard) >= 5 + (length := struct.unpack("!I", (self.heard + b"\0" * 5)[1:5])[0]):
                        self.heard, told["answers"] = self.heard[5 + length :], told["answers"] + 1
                    # What was read may be sent again.
                    grant = struct.pack("!I", max(len(payload), 1))
                    self.connection.send(frame(WINDOW_UPDATE, 0, 0, grant) + frame(WINDOW_UPDATE, 0, self.stream, grant))
                if of == self.stream and kind == RST_STREAM:
                    told["reset"] = struct.unpack("!I", payload)[0]
                    break
                if kind == HEADERS:
                    # Those of other streams as well: they are told in terms of those before.
                    fields = dict(self.connection.decoder.read(payload))
                    if of == self.stream and "grpc-status" in fields:
                        told.update(status=int(fields["grpc-status"]), message=fields.get("grpc-message", ""))
                        break
        except Over as over:
            told.update(over=str(over), code=over.code)
        return told


class Greed(Attacker):
    def tls(self, context, name, session=None, source=None):
        tcp = socket.create_connection(self.address, timeout=TIMEOUT, source_address=source and (source, 0))
        return context.wrap_socket(tcp, server_hostname=f"{name}.{self.domain}", session=session)

    def connect(self, who=None, source=None, settings=b""):
        return Connection(self.tls(self.context(who), "server" if who else "enroll", source=source), settings)

    # As an agent.

    def programs(self):
        """Programs whose texts take far more where they are stored than on the way; then as many as are let through."""
        long = [b""] + [bytes([65 + place]) * 4000 for place in range(10)]
        texts = lambda place: [1 + place % 10, 1 + place // 10 % 10, 1 + place // 100 % 10, 1 + place // 1000, 1]
        stream = Stream(self.connect("agent"))
        stream.say(batch(1, 1, WHOLE, long, processes(ROWS, texts), listeners(1, ROWS, owner=True)))
        told = {"eighty megabytes": stream.hear(9)}
        stream, heard = Stream(self.connect("agent")), 0
        heard += stream.hear(1)["answers"]
        for seq in range(1, 13):
            # 50 processes with five texts of 4,000 bytes each: just under a mebibyte.
            strings = [b""] + [(b"%d-%d-" % (seq, place)).ljust(4000, b"x") for place in range(50)]
            texts = lambda place: [1 + place, 1, 2, 3, 4]
            rows = listeners(10_000 * seq, 50, owner=True)
            stream.say(batch(1, seq, BEGIN if seq == 1 else PART, strings, processes(50, texts), rows))
            heard += stream.hear(2)["answers"]
        told["one after the other"] = {"answers": heard}
        return told

    def rows(self):
        """The most rows that a batch may have, in a snapshot without end."""
        stream = Stream(self.connect("agent"))
        heard = stream.hear(1)["answers"]
        for seq in range(1, 21):
            stream.say(batch(1, seq, BEGIN if seq == 1 else PART, sockets=listeners(ROWS * seq, ROWS)))
            heard += stream.hear(2)["answers"]
        told = {"one after the other": {"answers": heard}}
        stream.say(batch(1, 21, PART, sockets=listeners(1, ROWS + 1)))
        told["one too many"] = stream.hear(9)
        return told

    def epochs(self):
        """Epochs that begin anew with each batch, and hellos that take the stream from each other."""
        stream = Stream(self.connect("agent"))
        heard = stream.hear(1)["answers"]
        for epoch in range(2, 302):
            stream.say(batch(epoch, 1, WHOLE))
            heard += stream.hear(2)["answers"]
        told = {"epochs": {"answers": heard}, "statuses": {}}
        connection = self.connect("agent")
        for place in range(1000):
            end = Stream(connection, 2 * place + 1).hear(1)
            key = str(end.get("status", "welcome"))
            told["statuses"][key] = told["statuses"].get(key, 0) + 1
            if "status" in end:
                break
        return told

    def deaf(self):
        """Reports on and on, and lets nothing be told: the window for answers stays shut."""
        connection = self.connect("agent", settings=struct.pack("!HI", INITIAL_WINDOW, 0))
        stream, sent = Stream(connection), 0
        first = batch(1, 1, WHOLE)
        try:
            while sent < 20_000:
                stream.say(first)
                sent += 1
                connection.pending()
        except Over:
            pass
        return {"sent": sent, **stream.hear(1)}

    def crumbs(self):
        """As many connections and streams as are let in, with messages that are never whole; and one that reports until
        it is not listened to, and then sends all that its window holds byte by byte, each in a frame of its own."""
        connections, told = [], {"streams": 0}
        for _ in range(12):
            try:
                connections.append(self.connect("agent").widened())
            except (Over, OSError):
                pass
        told["connections"] = len(connections)
        for connection in connections[1:]:
            try:
                for place in range(8):
                    Stream(connection, 2 * place + 1, greet=False)
                    connection.data(2 * place + 1, b"\0" + struct.pack("!I", 200_000) + b"x" * 10_000, 1)
                    told["streams"] += 1
            except Over:
                pass
        heartbeat = block(4, block(1, now()) + block(2, now()))
        message = b"\0" + struct.pack("!I", len(heartbeat)) + heartbeat
        stream = Stream(connections[0])
        told["welcome"] = stream.hear(1)["answers"]
        try:
            for _ in range(60):
                connections[0].data(1, message * 100, 16384)
            connections[0].data(1, message * 2000, 1)
            told["sent"] = True
        except Over as over:
            told["sent"] = str(over)
        return told

    # As nobody.

    def half(self):
        """Handshakes that begin and do not go on, as large as they may be, from many addresses."""
        # A ClientHello of 60,000 bytes is announced and comes without its last.
        body = b"\x01" + struct.pack("!I", 60_000)[1:] + b"\x03\x03" + b"x" * 48_000
        records = b"".join(
            b"\x16\x03\x01" + struct.pack("!H", len(body[at : at + 16_000])) + body[at : at + 16_000]
            for at in range(0, len(body), 16_000)
        )
        held, closed = [], 0
        for place in range(400):
            try:
                tcp = socket.create_connection(self.address, TIMEOUT, (f"127.0.{1 + place // 100}.{1 + place % 100}", 0))
                tcp.sendall(records)
                held.append(tcp)
            except OSError:
                closed += 1
        begun = time.monotonic()
        for tcp in held:
            try:
                while tcp.recv(4096):
                    pass
            except socket.timeout:
                return {"held": len(held), "closed": closed, "after": None}
            except OSError:
                pass
        return {"held": len(held), "closed": closed, "after": time.monotonic() - begun}

    def silent(self):
        """Connections that say nothing, from many addresses."""
        held = []
        for place in range(2000):
            try:
                held.append(
                    socket.create_connection(self.address, TIMEOUT, (f"127.1.{1 + place // 100}.{1 + place % 100}", 0))
                )
            except OSError:
                pass
        begun = time.monotonic()
        for tcp in held:
            try:
                while tcp.recv(4096):
                    pass
            except socket.timeout:
                return {"held": len(held), "after": None}
            except OSError:
                pass
        return {"held": len(held), "after": time.monotonic() - begun}

    def newcomers(self):
        """As many connections as are let in, each with two enrolments that are never whole."""
        held, refused = [], 0
        for place in range(400):
            try:
                connection = self.connect(source=f"127.2.{1 + place // 20}.1").widened()
                for stream in (1, 3):
                    connection.send(frame(HEADERS, END_HEADERS, stream, request(ENROLL)))
                    connection.data(stream, b"\0" + struct.pack("!I", 60_000) + b"x" * 50_000, 16384)
                held.append(connection)
            except (Over, OSError, ssl.SSLError):
                refused += 1
        return {"held": len(held), "refused": refused}

    def tokens(self):
        """Enrolments with tokens that nobody made, from many addresses."""
        with open(os.path.join(self.folder, "request.der"), "rb") as file:
            csr = file.read()
        body = block(1, b"0123456789abcdef") + block(2, b"s" * 32) + block(3, csr) + block(4, b"n" * 250)
        told = {}
        for place in range(20):
            connection = self.connect(source=f"127.3.1.{1 + place}")
            for call in range(70):
                end = connection.call(2 * call + 1, ENROLL, body)
                key = str(end.get("status", "over"))
                told[key] = told.get(key, 0) + 1
                if "over" in end:
                    break
        return told


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    attacks = "programs rows epochs deaf crumbs half silent newcomers tokens".split()
    parser.add_argument("attack", choices=attacks)
    parser.add_argument("--address", required=True)
    parser.add_argument("--trust-domain", required=True)
    parser.add_argument("--folder", required=True, help="root.pem, request.der, and a folder `agent` with an identity.pem")
    arguments = parser.parse_args()
    json.dump(getattr(Greed(arguments), arguments.attack)(), sys.stdout)


main()
