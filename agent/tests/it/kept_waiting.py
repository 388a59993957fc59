"""Sends from a page that does not come (userfaultfd(2)): a TCP socket stays locked until standard input ends."""

import ctypes
import fcntl
import mmap
import os
import platform
import socket
import struct
import sys
import threading
import time

PAGES = 65536
USERFAULTFD = {"x86_64": 323, "aarch64": 282}
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00

libc = ctypes.CDLL(None, use_errno=True)
number = USERFAULTFD.get(platform.machine())
faults = libc.syscall(number, os.O_CLOEXEC) if number else -1
if faults < 0:
    print("no userfaultfd", flush=True)
    sys.exit()
fcntl.ioctl(faults, UFFDIO_API, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
pages = mmap.mmap(-1, PAGES)
address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
fcntl.ioctl(faults, UFFDIO_REGISTER, bytearray(struct.pack("QQQQ", address, PAGES, 1, 0)))

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
port = client.getsockname()[1]
sender = threading.Thread(target=lambda: libc.send(client.fileno(), ctypes.c_void_p(address), PAGES, 0), daemon=True)
sender.start()
task = f"/proc/self/task/{sender.native_id}/wchan"
while open(task).read() != "handle_userfault":
    time.sleep(0.01)
print(port, flush=True)
sys.stdin.read()
os._exit(0)
