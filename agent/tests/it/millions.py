# Millions of descriptors that are no sockets, in processes one after the other, and a socket of the last one, until standard
# input ends. Prints the process of the socket and its inode; nothing when limits do not allow so many.
import os
import resource
import socket
import sys

DESCRIPTORS = int(sys.argv[1])
MOST_PROCESSES = 200
SPARE = 100

hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 300_000)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
each = hard - 2 * SPARE
processes = DESCRIPTORS // each + 1 if each > 0 else MOST_PROCESSES + 1
if processes > MOST_PROCESSES:
    sys.exit()
null = os.open("/dev/null", os.O_RDONLY)
for number in range(SPARE, SPARE + each):
    os.dup2(null, number)
alive_read, alive_write = os.pipe()
for number in range(processes):
    if os.fork() == 0:
        os.close(alive_write)
        if number == processes - 1:
            listener = socket.create_server(("127.0.0.1", 0))
            print(os.getpid(), os.fstat(listener.fileno()).st_ino, flush=True)
        os.read(alive_read, 1)
        os._exit(0)
sys.stdin.read()
