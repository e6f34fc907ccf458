/*
 * The memory's read limit: threads that do nothing but read. Built for this machine's own CPU.
 *
 * `bytes` at `data` are read over and over, in pieces handed out by a counter, so that a slow core
 * does not hold up the others; each piece is summed in eight vectors, `distance` bytes prefetched
 * ahead (0: none). Returns bytes read a second.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

enum { PIECE = 256 * 1024, LINE = 64, MAX_THREADS = 64 };

typedef uint64_t vector __attribute__((vector_size(64), aligned(64)));

typedef struct {
    const char *data;
    int64_t pieces, distance;
    double deadline;
    _Atomic int64_t taken, sum;
} job;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t read_piece(const char *p, int64_t distance) {
    vector a = {0}, b = a, c = a, d = a, e = a, f = a, g = a, h = a;
    for (const char *end = p + PIECE; p < end; p += 8 * LINE) {
        if (distance) {
            /* Past the end of the data a prefetch is harmless. */
            uintptr_t ahead = (uintptr_t)p + (uintptr_t)distance;
            for (int i = 0; i < 8; i++) __builtin_prefetch((const char *)ahead + LINE * i, 0, 2);
        }
        const vector *v = (const vector *)p;
        a += v[0], b += v[1], c += v[2], d += v[3];
        e += v[4], f += v[5], g += v[6], h += v[7];
    }
    a += b + c + d + e + f + g + h;
    return a[0] ^ a[3];
}

static void *reader(void *argument) {
    job *j = argument;
    uint64_t sum = 0;
    while (now() < j->deadline) {
        int64_t piece = atomic_fetch_add(&j->taken, 1) % j->pieces;
        sum += read_piece(j->data + piece * PIECE, j->distance);
    }
    atomic_fetch_add(&j->sum, (int64_t)sum); /* so that the compiler keeps the loads */
    return 0;
}

double read_limit(const void *data, int64_t bytes, int32_t threads, int64_t distance,
                  double seconds) {
    job j = {.data = data, .pieces = bytes / PIECE, .distance = distance};
    pthread_t others[MAX_THREADS];
    int32_t started_threads = 0;
    if (j.pieces < 1 || threads < 1 || threads > MAX_THREADS) return 0;
    double started = now();
    j.deadline = started + seconds;
    for (int32_t i = 1; i < threads; i++)
        if (!pthread_create(&others[started_threads], 0, reader, &j)) started_threads++;
    reader(&j);
    for (int32_t i = 0; i < started_threads; i++) pthread_join(others[i], 0);
    return (double)atomic_load(&j.taken) * PIECE / (now() - started);
}
