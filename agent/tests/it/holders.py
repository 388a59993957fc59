# Sockets that are held in all ways, until standard input ends. Prints a line for each way: its name, the processes that hold
# the sockets, the inodes of the sockets; then "ready".
import array
import ctypes
import os
import resource
import socket
import sys
import tempfile
import threading

CLONE_FILES = 0x400
MANY = int(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def inode(held):
    return os.fstat(held if isinstance(held, int) else held.fileno()).st_ino


def tell(way, pids, inodes):
    print(way, ",".join(map(str, pids)), ",".join(map(str, inodes)), flush=True)


def listener():
    return socket.create_server(("127.0.0.1", 0))


def send(channel, held):
    channel.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [held.fileno()]))])


shared, passed = listener(), listener()
to_child, from_parent = socket.socketpair()
alive_read, alive_write = os.pipe()
closed_read, closed_write = os.pipe()
children = []
for number in range(2):
    pid = os.fork()
    if pid == 0:
        os.close(alive_write)
        passed.close()
        os.write(closed_write, b"x")
        if number == 0:
            kept = socket.recv_fds(from_parent, 1, 1)
            from_parent.send(b"y")
        os.read(alive_read, 1)
        os._exit(0)
    children.append(pid)
    os.read(closed_read, 1)
tell("shared", [os.getpid(), *children], [inode(shared)])

send(to_child, passed)
tell("passed", children[:1], [inode(passed)])
passed.close()
to_child.recv(1)

# On its way to somebody who never takes it.
flying, (source, sink) = listener(), socket.socketpair()
send(source, flying)
tell("flying", [], [inode(flying)])
flying.close()

# A file that is a socket, and no socket of the kernel.
folder = tempfile.TemporaryDirectory()
path = os.path.join(folder.name, "socket")
unix = socket.socket(socket.AF_UNIX)
unix.bind(path)
named = os.open(path, os.O_PATH)
tell("named", [], [inode(named)])
tell("unix", [os.getpid()], [inode(unix)])

twice = listener()
copies = [os.dup(twice.fileno()) for _ in range(3)]
tell("twice", [os.getpid()], [inode(twice)])

many = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(MANY)]
tell("many", [os.getpid()], map(inode, many))


def stand_apart():
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_FILES) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    apart = listener()
    tell("apart", [os.getpid()], [inode(apart)])
    stands.set()
    over.wait()


def stand_along():
    along = listener()
    tell("along", [os.getpid()], [inode(along)])
    held.append(along)
    stands.set()
    over.wait()


held, over = [], threading.Event()
for stand in [stand_apart, stand_along]:
    stands = threading.Event()
    threading.Thread(target=stand, daemon=True).start()
    stands.wait()
print("ready", flush=True)
sys.stdin.read()
over.set()
