/*
 * The thread pool: the same results with and without it, callers that share one, pools side by
 * side, workers that sleep in between, and a child process after fork(). Meant for a run under a
 * sanitizer; it prints nothing. With the argument "child-alone" the child starts no threads,
 * which neither qemu 7.2 nor the thread sanitizer survives.
 */
#if !defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L
#endif

#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "../src/threads.h"
#include "testing.h"

enum { ROWS = 300, COLS = 130, TOKENS = 3, TURNS = 200 };

typedef struct {
    edb_context *context;
    edb_matrix matrix;
    const float *x, *expected;
} caller;

static void sleep_ms(int32_t ms) {
#if defined(_WIN32)
    Sleep((DWORD)ms);
#else
    edb_nap(ms * 1000000);
#endif
}

static void multiply_once(const caller *self) {
    float out[TOKENS * ROWS];
    multiply(self->context, &self->matrix, self->x, out, TOKENS, 0);
    CHECK(memcmp(out, self->expected, sizeof out) == 0);
}

static edb_thread_result multiply_often(void *argument) {
    for (int turn = 0; turn < TURNS; turn++) multiply_once(argument);
    return 0;
}

static void callers_share(caller *self, int n_callers) {
    edb_thread threads[3];
    for (int i = 0; i < n_callers; i++)
        CHECK(edb_start_thread(&threads[i], 1 << 20, multiply_often, self) == 0);
    multiply_often(self);
    for (int i = 0; i < n_callers; i++) edb_join_thread(threads[i]);
}

static void workers_sleep(const caller *self) {
    for (int turn = 0; turn < 20; turn++) {
        sleep_ms(turn % 4); /* they spin for 30 us */
        multiply_once(self);
    }
}

#if !defined(_WIN32) /* where no process forks */
static void with_a_pool_of_its_own(const caller *self) {
    edb_pool *pool;
    CHECK(edb_pool_create(2, &pool) == EDB_OK);
    caller own = *self;
    own.context = new_context(NULL, NULL, pool);
    for (int turn = 0; turn < 10; turn++) multiply_once(&own);
    edb_context_destroy(own.context);
    edb_pool_destroy(pool);
}

/* The child has no workers: its calls run on itself, and so do those of a pool it makes. */
static void child_works(const caller *self, int alone) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        multiply_once(self);
        if (!alone) with_a_pool_of_its_own(self);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    multiply_once(self);
}
#else
static void child_works(const caller *self, int alone) {
    (void)alone;
    multiply_once(self);
}
#endif

int main(int argc, char **argv) {
    int child_alone = argc > 1 && strcmp(argv[1], "child-alone") == 0;
    uint64_t seed = 1;
    edb_matrix matrix = random_matrix(&seed, EDB_PAIRS, 2, ROWS, COLS);
    float *x = random_floats(&seed, TOKENS * COLS), expected[TOKENS * ROWS];
    edb_context *alone = new_context(NULL, NULL, NULL);
    multiply(alone, &matrix, x, expected, TOKENS, 0);
    edb_context_destroy(alone);

    for (int32_t n_threads = 1; n_threads <= 5; n_threads += 2) {
        edb_pool *pools[2];
        caller callers[2];
        for (int i = 0; i < 2; i++) {
            CHECK(edb_pool_create(n_threads, &pools[i]) == EDB_OK);
            CHECK(edb_pool_threads(pools[i]) == n_threads);
            edb_context *context = new_context(NULL, NULL, pools[i]);
            callers[i] = (caller){context, matrix, x, expected};
        }
        callers_share(&callers[0], 0);
        callers_share(&callers[1], 3);
        workers_sleep(&callers[0]);
        child_works(&callers[0], child_alone);
        for (int i = 0; i < 2; i++) {
            edb_context_destroy(callers[i].context);
            edb_pool_destroy(pools[i]);
        }
    }
    for (int i = 0; i < 50; i++) { /* destroyed before its threads have begun */
        edb_pool *pool;
        CHECK(edb_pool_create(4, &pool) == EDB_OK);
        edb_pool_destroy(pool);
    }
    release(x);
    free_matrix(&matrix);
    return 0;
}
