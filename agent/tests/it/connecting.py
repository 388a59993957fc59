"""Connects to itself, as often and in the way that each line of its input says, and closes both ends at once."""

import queue
import socket
import sys
import threading

listener = socket.create_server(("127.0.0.1", 0))


def connect():
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.close()
    server.close()


def once_told(told):
    if told.get():
        connect()


# A thread that is there before anybody who looks.
told = queue.Queue()
early = threading.Thread(target=once_told, args=(told,), daemon=True)
early.start()
print(listener.getsockname()[1], flush=True)
for line in sys.stdin:
    way, count = line.split()
    for turn in range(int(count)):
        if way == "here":
            connect()
        elif turn == 0:
            told.put(True)
            early.join()
        else:
            thread = threading.Thread(target=connect)
            thread.start()
            thread.join()
    print("done", flush=True)
