# TCP sockets in states that are only counted: 3 half open, 5 bound, 4 in TIME_WAIT. Ends when its standard input does.
import socket
import sys

waiting = socket.create_server(("127.0.0.1", 0))
# The kernel leaves the connection half open until data arrives, which never does.
waiting.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 300)
clients = [socket.create_connection(waiting.getsockname()) for _ in range(3)]

bound = []
for _ in range(5):
    bound.append(socket.socket())
    bound[-1].bind(("127.0.0.1", 0))

closing = socket.create_server(("127.0.0.1", 0))
for _ in range(4):
    client = socket.create_connection(closing.getsockname())
    server, _ = closing.accept()
    client.close()
    server.recv(1)
    server.close()

print("ready", flush=True)
sys.stdin.read()
