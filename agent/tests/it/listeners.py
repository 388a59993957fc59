"""Holds a random set of sockets in a random family of processes, until standard input ends.

Arguments: a seed, and "alone" when it runs in a network namespace of its own as root. Prints the pids of its processes
when everything stands.
"""
import fcntl
import os
import random
import socket
import struct
import sys

SEED, ALONE = int(sys.argv[1]), sys.argv[2] == "alone"
NOBODY = 65534
ADDRESSES = {
    socket.AF_INET: ["0.0.0.0", "127.0.0.1", "127.0.0.2"],
    socket.AF_INET6: ["::", "::1", "::ffff:127.0.0.1", "::ffff:0.0.0.0"],
}
held = []


def bring_up_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0x1 | 0x40)
        fcntl.ioctl(any_socket, 0x8914, request)


def bound(family, kind, address, port=0, v6only=False, shared=False):
    made = socket.socket(family, kind)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((address, port))
    return made


def listening(*arguments, **options):
    made = bound(*arguments, **options)
    if made.type == socket.SOCK_STREAM:
        made.listen()
    held.append(made)
    return made


def draw():
    family = dice.choice([socket.AF_INET, socket.AF_INET6])
    kind = dice.choice([socket.SOCK_STREAM, socket.SOCK_DGRAM])
    address = dice.choice(ADDRESSES[family])
    return family, kind, address, family == socket.AF_INET6 and "ffff" not in address and dice.random() < 0.4


def listener():
    family, kind, address, v6only = draw()
    listening(family, kind, address, v6only=v6only)


def twins():
    family, kind, address, v6only = draw()
    port = listening(family, kind, address, v6only=v6only, shared=True).getsockname()[1]
    for _ in range(dice.randint(1, 3)):
        listening(family, kind, address, port, v6only, True)


def both_families_on_one_port():
    kind = dice.choice([socket.SOCK_STREAM, socket.SOCK_DGRAM])
    port = listening(socket.AF_INET6, kind, "::", v6only=True).getsockname()[1]
    try:
        listening(socket.AF_INET, kind, "0.0.0.0", port)
    except OSError:
        pass  # Somebody else has it.


def connected_udp():
    family = dice.choice([socket.AF_INET, socket.AF_INET6])
    made = bound(family, socket.SOCK_DGRAM, dice.choice(ADDRESSES[family][1:2]))
    made.connect((ADDRESSES[family][1], 9))
    held.append(made)


def connections():
    family, kind, address, v6only = draw()
    server = listening(family, socket.SOCK_STREAM, address, v6only=v6only)
    port = server.getsockname()[1]
    for _ in range(dice.randint(1, 3)):
        reach_by_ipv4 = family == socket.AF_INET or (address == "::" and not v6only and dice.random() < 0.5)
        target = {"0.0.0.0": "127.0.0.1", "::ffff:0.0.0.0": "::ffff:127.0.0.1", "::": "::1"}.get(address, address)
        client = socket.socket(socket.AF_INET if reach_by_ipv4 else socket.AF_INET6)
        client.connect(("127.0.0.1" if target == "::1" and reach_by_ipv4 else target, port))
        held.append(client)
        # Some wait to be accepted for ever; some are half closed: FIN_WAIT_2 and CLOSE_WAIT.
        if dice.random() < 0.7:
            held.append(server.accept()[0])
            if dice.random() < 0.5:
                client.shutdown(socket.SHUT_WR)


def bound_only():
    family, _, address, v6only = draw()
    held.append(bound(family, socket.SOCK_STREAM, address, v6only=v6only))


MAKERS = [listener, listener, listener, twins, both_families_on_one_port, connected_udp, connections, bound_only]


def live(depth):
    global dice
    # The first process has one of each kind, the others what comes.
    for make in MAKERS if depth == 0 else dice.choices(MAKERS, k=dice.randint(1, 5)):
        make()
    for number in range(dice.randint(0, 3 - depth)):
        if os.fork() == 0:
            if depth == 0:
                os.close(alive_write)
            dice = random.Random(f"{SEED} {depth} {number} {dice.random()}")
            if ALONE and dice.random() < 0.3 and os.getuid() == 0:
                os.setuid(NOBODY)
            for inherited in [one for one in held if dice.random() < 0.3]:
                inherited.close()
                held.remove(inherited)
            live(depth + 1)
            stand()
            # Ends when the first process does.
            os.read(alive_read, 1)
            os._exit(0)


def stand():
    os.write(standing_write, f"{os.getpid()} ".encode())
    os.close(standing_write)


dice = random.Random(SEED)
if ALONE:
    bring_up_loopback()
standing_read, standing_write = os.pipe()
alive_read, alive_write = os.pipe()
try:
    live(0)
except BaseException:
    # In whichever process: the reader takes it for no pid.
    os.write(standing_write, b"failed ")
    raise
stand()
pids = b""
while part := os.read(standing_read, 4096):
    pids += part
print(pids.decode(), flush=True)
sys.stdin.read()
