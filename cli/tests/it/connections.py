"""Makes short TCP connections between processes of its own, and says whose they were.

usage: connections.py MODE COUNT RATE

Prints one JSON object: the port, the process that listened, the processes that connected and those that served.
"""
import json
import os
import signal
import socket
import struct
import sys
import time

mode, count, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
family = socket.AF_INET6 if mode in ("ipv6", "mapped") else socket.AF_INET
address = {"ipv6": "::1", "mapped": "::ffff:127.0.0.1"}.get(mode, "127.0.0.1")
RESET = struct.pack("ii", 1, 0)

listener = socket.socket(family, socket.SOCK_STREAM)
if mode == "mapped":
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
listener.bind(("::" if mode == "mapped" else address, 0))
listener.listen(4096)
port = listener.getsockname()[1]


def serve(connection):
    if mode == "server-first":
        connection.close()
        return
    if mode == "server-reset":
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.close()
        return
    try:
        while connection.recv(64):
            pass
    except ConnectionResetError:
        pass
    connection.close()


def server(report):
    children = []
    for _ in range(count):
        connection, _ = listener.accept()
        if mode == "fork":
            child = os.fork()
            if child == 0:
                serve(connection)
                os._exit(0)
            children.append(child)
            connection.close()
            os.waitpid(child, 0)
        else:
            serve(connection)
    os.write(report, (json.dumps(children) + "\n").encode())


def connect():
    c = socket.socket(family, socket.SOCK_STREAM)
    c.connect((address, port))
    if mode in ("server-first", "server-reset"):
        try:
            c.sendall(b"x")
            c.recv(1)
        except (ConnectionResetError, BrokenPipeError):
            pass
    else:
        c.sendall(b"x")
    if mode == "hold":
        time.sleep(0.001)
    if mode == "client-reset":
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    c.close()


heard, report = os.pipe()
serving = os.fork()
if serving == 0:
    server(report)
    os._exit(0)

clients = []
begun = time.monotonic()
for number in range(count):
    if mode == "exec":
        child = os.fork()
        if child == 0:
            os.execv("/bin/bash", ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"])
        clients.append(child)
        os.waitpid(child, 0)
    else:
        connect()
    ahead = begun + (number + 1) / rate - time.monotonic()
    if ahead > 0.002:
        time.sleep(ahead)
took = time.monotonic() - begun
children = json.loads(os.fdopen(heard).readline())
os.waitpid(serving, 0)
print(json.dumps({
    "port": port,
    "listener": os.getpid(),
    "clients": clients or [os.getpid()],
    # A child that is faster than its parent is not the last to close.
    "servers": children + [serving],
    "per_second": round(count / took),
}))
