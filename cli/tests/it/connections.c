// Makes short TCP connections between processes of its own, as fast as it is told to, and says whose they were.
//
// usage: connections MODE COUNT RATE
//
// Prints one JSON object: the port, the processes that connected and those that served, and the rate that was reached.
// In C, because a program must be small for thousands of fork(2) and execve(2) in a second.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HOLD 0.001
// More than are open at one time while each is held for a millisecond.
#define HELD 65536
// Connections that a program makes in exec.
#define EACH 5

static const char *mode;
static struct sockaddr_storage server;
static socklen_t server_length;
static char *own, port_text[8];

static int is(const char *name) { return strcmp(mode, name) == 0; }

static int check(int result, const char *what) {
    if (result < 0) err(1, "%s", what);
    return result;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void sleep_for(double seconds) {
    struct timespec time = {.tv_nsec = seconds * 1e9};
    nanosleep(&time, NULL);
}

// A close that sends RST in place of FIN.
static void reset(int connection) {
    struct linger linger = {1, 0};
    check(setsockopt(connection, SOL_SOCKET, SO_LINGER, &linger, sizeof linger), "SO_LINGER");
    close(connection);
}

// Fills in where the server is, from its port.
static void place(int port) {
    if (is("ipv6") || is("mapped")) {
        struct sockaddr_in6 *address = (void *)&server;
        *address = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port)};
        inet_pton(AF_INET6, is("ipv6") ? "::1" : "::ffff:127.0.0.1", &address->sin6_addr);
        server_length = sizeof *address;
    } else {
        struct sockaddr_in *address = (void *)&server;
        *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
        inet_pton(AF_INET, "127.0.0.1", &address->sin_addr);
        server_length = sizeof *address;
    }
}

// A listener on a port that the kernel chooses.
static int listener(void) {
    place(0);
    struct sockaddr_storage address = server;
    int zero = 0, socket_ = check(socket(server.ss_family, SOCK_STREAM, 0), "socket");
    if (is("mapped")) {
        ((struct sockaddr_in6 *)&address)->sin6_addr = in6addr_any;
        check(setsockopt(socket_, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero), "IPV6_V6ONLY");
    }
    check(bind(socket_, (void *)&address, server_length), "bind");
    check(listen(socket_, 4096), "listen");
    check(getsockname(socket_, (void *)&address, &server_length), "getsockname");
    int port = ntohs(((struct sockaddr_in *)&address)->sin_port);
    snprintf(port_text, sizeof port_text, "%d", port);
    place(port);
    return socket_;
}

static void serve(int connection) {
    char bytes[64];
    if (is("server-first")) {
        close(connection);
    } else if (is("server-reset")) {
        (void)!read(connection, bytes, 1);
        reset(connection);
    } else {
        while (read(connection, bytes, sizeof bytes) > 0) continue;
        close(connection);
    }
}

// Serves those that are held, many at a time.
static void serve_all(int listener_, int count) {
    int queue = check(epoll_create1(0), "epoll_create1");
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener_}, ready[256];
    check(epoll_ctl(queue, EPOLL_CTL_ADD, listener_, &event), "epoll_ctl");
    char bytes[64];
    for (int closed = 0; closed < count;) {
        int got = check(epoll_wait(queue, ready, 256, -1), "epoll_wait");
        for (int each = 0; each < got; each++) {
            int socket_ = ready[each].data.fd;
            if (socket_ == listener_) {
                event.data.fd = check(accept(listener_, NULL, NULL), "accept");
                check(epoll_ctl(queue, EPOLL_CTL_ADD, event.data.fd, &event), "epoll_ctl");
            } else if (read(socket_, bytes, sizeof bytes) <= 0) {
                close(socket_);
                closed++;
            }
        }
    }
}

static void serve_count(int listener_, int count, pid_t *children) {
    if (is("hold")) {
        serve_all(listener_, count);
        return;
    }
    for (int number = 0; number < count; number++) {
        int connection = check(accept(listener_, NULL, NULL), "accept");
        if (!is("fork")) {
            serve(connection);
            continue;
        }
        pid_t child = check(fork(), "fork");
        if (child == 0) {
            serve(connection);
            _exit(0);
        }
        children[number] = child;
        close(connection);
    }
    // They are reaped as they end (SIGCHLD is ignored): this waits for the last.
    while (wait(NULL) > 0) continue;
}

static int connected(void) {
    int connection = check(socket(server.ss_family, SOCK_STREAM, 0), "socket");
    check(connect(connection, (void *)&server, server_length), "connect");
    (void)!send(connection, "x", 1, MSG_NOSIGNAL);
    return connection;
}

static void connect_once(void) {
    int connection = connected();
    char byte;
    if (is("server-first") || is("server-reset")) (void)!read(connection, &byte, 1);
    if (is("client-reset")) reset(connection);
    else close(connection);
}

// Starts a program that makes connections.
static pid_t execute(int connections) {
    char count_text[12];
    snprintf(count_text, sizeof count_text, "%d", connections);
    pid_t child = check(vfork(), "vfork");
    if (child == 0) {
        execl(own, own, "connect", port_text, count_text, NULL);
        _exit(127);
    }
    return child;
}

// Closes what has been open for long enough, the oldest first.
static int let_go(int first, int after, const int *held, const double *since, double time) {
    while (first < after && time - since[first % HELD] >= HOLD) close(held[first++ % HELD]);
    return first;
}

static void connect_count(int count, double rate, pid_t *clients) {
    static int held[HELD];
    static double since[HELD];
    int first = 0;
    double begun = now();
    for (int number = 0; number < count; number++) {
        if (is("hold")) {
            held[number % HELD] = connected();
            since[number % HELD] = now();
            first = let_go(first, number + 1, held, since, now());
        } else if (is("exec-one")) {
            clients[number] = execute(1);
        } else if (is("exec")) {
            int each = count - number < EACH ? count - number : EACH;
            clients[number] = execute(each);
            number += each - 1;
        } else {
            connect_once();
        }
        double due = begun + (number + 1) / rate;
        while (due - now() > 0.0005) {
            sleep_for(0.0003);
            if (is("hold")) first = let_go(first, number + 1, held, since, now());
        }
    }
    while (first < count) first = let_go(first, count, held, since, now());
    while (wait(NULL) > 0) continue;
}

static void print_pids(const char *name, const pid_t *pids, int count, pid_t also) {
    printf("\"%s\": [", name);
    for (int number = 0; number < count; number++)
        if (pids[number]) printf("%d, ", pids[number]);
    printf("%d]", also);
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "connect") == 0) {
        mode = "exec";
        place(atoi(argv[2]));
        for (int left = atoi(argv[3]); left > 0; left--) connect_once();
        return 0;
    }
    if (argc != 4) errx(2, "usage: %s MODE COUNT RATE", argv[0]);
    mode = argv[1];
    own = argv[0];
    int count = atoi(argv[2]);
    // Shared with the server, which is a child.
    size_t size = count * sizeof(pid_t);
    pid_t *children = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t *clients = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (children == MAP_FAILED || clients == MAP_FAILED) err(1, "mmap");
    signal(SIGCHLD, SIG_IGN);

    int listener_ = listener();
    pid_t serving = check(fork(), "fork");
    if (serving == 0) {
        serve_count(listener_, count, children);
        _exit(0);
    }
    double begun = now();
    connect_count(count, atof(argv[3]), clients);
    double took = now() - begun;
    printf("{\"port\": %s, ", port_text);
    print_pids("clients", clients, count, getpid());
    printf(", ");
    // A child that is faster than its parent is not the last to close.
    print_pids("servers", children, count, serving);
    printf(", \"per_second\": %.0f}\n", count / took);
}
