// A program that is next to nothing, because thousands of it are to begin and end in a second.
//
// usage: bare connect PORT COUNT            makes COUNT connections to 127.0.0.1, one after the other
//        bare serve COUNT <LISTENER >PIDS   gives each of COUNT connections to a process, and writes down its number
//
// It has no C library. The start of glibc costs a virtual machine five times what the kernel takes to execute this (it asks
// the processor what it can do, and each question leaves the machine), and its memory doubles what fork(2) takes.
// Whatever fails ends it: whoever waits for its connections sees that.
#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>

// Where a program begins: at the top of the stack lie the number of its arguments, then they themselves.
#if defined __x86_64__
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call begin");
#elif defined __aarch64__
__asm__(".globl _start\n_start: mov x0, sp\n b begin");
#else
#error "how a program begins and calls the kernel on this processor is still to be written"
#endif

static long call(long number, long first, long second, long third, long fourth) {
#if defined __x86_64__
    long result;
    register long r10 __asm__("r10") = fourth;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(first), "S"(second), "d"(third), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
#else
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = first, x1 __asm__("x1") = second, x2 __asm__("x2") = third, x3 __asm__("x3") = fourth;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
#endif
}

static void end(int status) {
    for (;;) call(SYS_exit_group, status, 0, 0, 0);
}

static long check(long result) {
    if (result < 0) end(1);
    return result;
}

static int number(const char *text) {
    int number = 0;
    while (*text) number = 10 * number + *text++ - '0';
    return number;
}

static void connect_once(int port) {
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int connection = check(call(SYS_socket, AF_INET, SOCK_STREAM, 0, 0));
    check(call(SYS_connect, connection, (long)&server, sizeof server, 0));
    check(call(SYS_write, connection, (long)"x", 1, 0));
    call(SYS_close, connection, 0, 0, 0);
}

static void serve(int connection) {
    char bytes[64];
    while (call(SYS_read, connection, (long)bytes, sizeof bytes, 0) > 0) continue;
    call(SYS_close, connection, 0, 0, 0);
}

static void fork_and_serve(void) {
    int connection = check(call(SYS_accept, 0, 0, 0, 0));
    int child = check(call(SYS_clone, SIGCHLD, 0, 0, 0));
    if (child == 0) {
        serve(connection);
        end(0);
    }
    call(SYS_close, connection, 0, 0, 0);
    check(call(SYS_write, 1, (long)&child, sizeof child, 0));
}

__attribute__((used)) static void begin(const long *stack) {
    char **arguments = (char **)(stack + 1);
    if (stack[0] == 4) {
        for (int left = number(arguments[3]); left > 0; left--) connect_once(number(arguments[2]));
    } else if (stack[0] == 3) {
        for (int left = number(arguments[2]); left > 0; left--) fork_and_serve();
        // They are reaped as they end (SIGCHLD is ignored): this waits for the last.
        while (call(SYS_wait4, -1, 0, 0, 0) > 0) continue;
    }
    end(0);
}
