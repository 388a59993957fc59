// A process whose first thread is gone: one socket under many numbers, in a table that many threads share.
//
// usage: leaderless NUMBERS THREADS
//
// Prints how many numbers and threads there are. Ends with its standard input.
#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STACK_BYTES 65536

static void *stay(void *unused) {
    char byte;
    (void)unused;
    while (read(0, &byte, 1) > 0) continue;
    _exit(0);
}

int main(int argc, char **argv) {
    if (argc != 3) errx(2, "usage: %s NUMBERS THREADS", argv[0]);
    int wanted = atoi(argv[1]), threads = 0, numbers = 1;
    struct rlimit limit = {wanted + 16, wanted + 16};
    // Where that is not allowed there are fewer.
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    int held = socket(AF_INET, SOCK_DGRAM, 0);
    if (held < 0) err(1, "socket");
    while (numbers < wanted && dup(held) >= 0) numbers++;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK_BYTES);
    pthread_t thread;
    while (threads < atoi(argv[2]) && pthread_create(&thread, &small, stay, NULL) == 0) threads++;
    printf("%d %d\n", numbers, threads);
    fflush(stdout);
    // pthread_exit(3) would want to open a library.
    syscall(SYS_exit, 0);
}
