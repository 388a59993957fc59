// Makes short TCP connections between processes of its own, as fast as it is told to, and says whose they were.
//
// usage: connections MODE PORT COUNT RATE BARE
//
// Prints one JSON object: the processes that connected and those that served, and the rate that was reached.
// What is forked for each connection and what is executed is BARE, a program that is small enough for that: bare.c.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <sched.h>
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
// Seconds after which nobody connects any more.
#define PATIENCE 30

static const char *mode;
static struct sockaddr_storage server;
static socklen_t server_length;
static char *bare, *port_text;

static int is(const char *name) { return strcmp(mode, name) == 0; }

// Connections that are made by each program that is executed for them; 0 where none is.
static int each_program(void) { return is("exec-one") ? 1 : is("exec") ? EACH : 0; }

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

static int listener(int port) {
    place(port);
    struct sockaddr_storage address = server;
    int zero = 0, socket_ = check(socket(server.ss_family, SOCK_STREAM, 0), "socket");
    if (is("mapped")) {
        ((struct sockaddr_in6 *)&address)->sin6_addr = in6addr_any;
        check(setsockopt(socket_, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero), "IPV6_V6ONLY");
    }
    check(bind(socket_, (void *)&address, server_length), "bind");
    check(listen(socket_, 4096), "listen");
    struct timeval patience = {PATIENCE, 0};
    check(setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), "SO_RCVTIMEO");
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

// Becomes a program that forks for each connection, and writes down the processes.
static void become_forking(int listener_, int count, int processes) {
    char count_text[12];
    snprintf(count_text, sizeof count_text, "%d", count);
    check(dup2(listener_, STDIN_FILENO), "dup2");
    check(dup2(processes, STDOUT_FILENO), "dup2");
    signal(SIGCHLD, SIG_IGN);
    execl(bare, bare, "serve", count_text, NULL);
    err(1, "%s", bare);
}

static void serve_count(int listener_, int count) {
    if (is("hold")) {
        serve_all(listener_, count);
        return;
    }
    while (count-- > 0) serve(check(accept(listener_, NULL, NULL), "accept"));
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
        execl(bare, bare, "connect", port_text, count_text, NULL);
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
    int first = 0, each = each_program();
    double begun = now();
    for (int number = 0; number < count; number++) {
        if (is("hold")) {
            held[number % HELD] = connected();
            since[number % HELD] = now();
            first = let_go(first, number + 1, held, since, now());
        } else if (each > 0) {
            if (each > count - number) each = count - number;
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
    while (is("hold") && first < count) first = let_go(first, count, held, since, now());
}

static void wait_for_one(void) {
    int status;
    check(wait(&status), "wait");
    if (status != 0) errx(1, "a process failed");
}

// On each processor a process executes its part. What it executes stays there: to be moved would take as long as to begin.
static void connect_on_each_processor(int count, double rate, pid_t *clients) {
    cpu_set_t all, own;
    check(sched_getaffinity(0, sizeof all, &all), "sched_getaffinity");
    int parts = CPU_COUNT(&all);
    for (int part = 0, processor = 0, begun = 0; part < parts; part++, processor++) {
        while (!CPU_ISSET(processor, &all)) processor++;
        int after = (part + 1L) * count / parts;
        if (check(fork(), "fork") == 0) {
            CPU_ZERO(&own);
            CPU_SET(processor, &own);
            check(sched_setaffinity(0, sizeof own, &own), "sched_setaffinity");
            signal(SIGCHLD, SIG_IGN);
            connect_count(after - begun, rate / parts, clients + begun);
            // They are reaped as they end: this waits for the last.
            while (wait(NULL) > 0) continue;
            _exit(0);
        }
        begun = after;
    }
    while (parts-- > 0) wait_for_one();
}

static void print_pids(const char *name, const pid_t *pids, int count) {
    printf("\"%s\": [", name);
    const char *before = "";
    for (int number = 0; number < count; number++) {
        if (pids[number] == 0) continue;
        printf("%s%d", before, pids[number]);
        before = ", ";
    }
    printf("], ");
}

int main(int argc, char **argv) {
    if (argc != 6) errx(2, "usage: %s MODE PORT COUNT RATE BARE", argv[0]);
    mode = argv[1];
    port_text = argv[2];
    int count = atoi(argv[3]);
    double rate = atof(argv[4]);
    bare = argv[5];
    size_t size = count * sizeof(pid_t);
    // Shared with those that execute.
    pid_t *clients = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    // One more than there are children: who forks them is the last to close where a child is faster than it.
    pid_t *servers = calloc(count + 1, sizeof *servers);
    if (clients == MAP_FAILED || servers == NULL) err(1, "memory");
    int children = check(memfd_create("children", 0), "memfd_create");

    int listener_ = listener(atoi(port_text));
    servers[count] = check(fork(), "fork");
    if (servers[count] == 0) {
        if (is("fork")) become_forking(listener_, count, children);
        serve_count(listener_, count);
        _exit(0);
    }
    double begun = now();
    if (each_program() > 0) {
        connect_on_each_processor(count, rate, clients);
    } else {
        clients[0] = getpid();
        connect_count(count, rate, clients);
    }
    wait_for_one();
    double took = now() - begun;
    check(pread(children, servers, size, 0), "pread");
    printf("{");
    print_pids("clients", clients, count);
    print_pids("servers", servers, count + 1);
    printf("\"per_second\": %.0f}\n", count / took);
}
