# A load of TCP connections whose ends are both here. Each has an address of its own, so that its sessions are found again:
# number N connects from 127.(1 + N / 65536).(N / 256 % 256).(N % 256). What is over is written down, one line for each:
# number, when it began, when both ends were closed (seconds). 127.200.0.1 and on stay open.
#
# usage: kills.py LOG SEED STAYING PER_SECOND. On SIGTERM nothing new begins, everything but what stays is closed, and the
# log ends with "done".
import random
import signal
import socket
import sys
import time

PORT = 4400
log = open(sys.argv[1], "w", buffering=1)
chance = random.Random(int(sys.argv[2]))
staying, per_second = int(sys.argv[3]), int(sys.argv[4])
stopping = False


def stop(*_):
    global stopping
    stopping = True


signal.signal(signal.SIGTERM, stop)
listener = socket.create_server(("127.0.0.1", PORT), backlog=512)


def connect(address):
    client = socket.socket()
    client.bind((address, 0))
    client.connect(("127.0.0.1", PORT))
    return client, listener.accept()[0]


def close(number, began, ends):
    for end in ends:
        end.close()
    log.write(f"{number} {began:.6f} {time.time():.6f}\n")


kept = [connect(f"127.200.0.{number + 1}") for number in range(staying)]
log.write("ready\n")
held, number = [], 0
while not stopping:
    began = time.time()
    ends = connect(f"127.{1 + number // 65536}.{number // 256 % 256}.{number % 256}")
    # Most are too short for any walk; some last over a kill or two.
    length = chance.choice([0, 0, 0, 0.02, 0.3, chance.uniform(0.3, 4)])
    held.append((began + length, number, began, ends))
    number += 1
    time.sleep(1 / per_second)
    now = time.time()
    for due in [one for one in held if one[0] <= now]:
        held.remove(due)
        close(*due[1:])
for _, number, began, ends in held:
    close(number, began, ends)
log.write("done\n")
time.sleep(3600)
