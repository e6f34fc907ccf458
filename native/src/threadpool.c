/*
 * A persistent pool for work of a few microseconds.
 *
 * The caller publishes a job by making `epoch` odd, works on it like everybody else, makes `epoch`
 * even when no task is left, and waits until nobody is inside. A worker enters by raising `inside`
 * and then looks at `epoch` (both sequentially consistent): it either sees the open job and the
 * caller waits for it, or it sees that the job is closed and leaves. So a worker that sleeps, or
 * whose core was taken away before it entered, holds nobody up.
 *
 * Tasks are cut into one contiguous range a thread. A thread takes from the front of its own range,
 * so that it walks memory in one direction and can prefetch, and from the ranges of others when its
 * own is done: a slow or absent thread's work is taken over a chunk at a time.
 *
 * Dispatch and join cost about 0.1 us while the workers spin and nothing while they sleep, since
 * the caller does not wait for them to wake.
 */
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "internal.h"

enum { MAX_THREADS = 256, SPIN_NS = 30000, SPINS_PER_LOOK = 64, SPINS_BEFORE_YIELD = 2000 };

/* Our kernels keep some 40 KB on the stack; musl's default of 128 KB would do, 512 KB is ample. */
enum { STACK_BYTES = 512 * 1024 };

typedef struct {
    edb_pool *pool;
    pthread_t thread;
    int32_t number;
} edb_worker;

typedef struct {
    _Alignas(64) atomic_llong next; /* first task of the range that nobody has taken */
    int64_t end;
} edb_range;

struct edb_pool {
    _Alignas(64) atomic_uint epoch; /* odd: a job is open */
    edb_task task;
    void *job;
    int64_t chunk;
    edb_range *ranges; /* [n_threads] */

    _Alignas(64) atomic_int inside; /* workers between entering and leaving */
    _Alignas(64) atomic_flag busy;  /* a caller owns the pool */

    atomic_int sleepers;
    atomic_int stop;
    pthread_mutex_t mutex;
    pthread_cond_t wake;

    int32_t n_threads;
    unsigned fork_count; /* of the process that owns the threads */
    edb_worker *workers; /* [n_threads - 1] */
};

static atomic_uint fork_count;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void count_fork(void) { atomic_fetch_add(&fork_count, 1); }
static void watch_forks(void) { pthread_atfork(NULL, NULL, count_fork); }

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void take_tasks(edb_pool *pool, int32_t number) {
    int64_t chunk = pool->chunk;
    for (int32_t i = 0; i < pool->n_threads; i++) {
        edb_range *range = &pool->ranges[(number + i) % pool->n_threads];
        for (;;) {
            int64_t begin = atomic_fetch_add_explicit(&range->next, chunk, memory_order_relaxed);
            if (begin >= range->end) break;
            pool->task(pool->job, begin, edb_min(begin + chunk, range->end), number);
        }
    }
}

static int is_open(unsigned epoch) { return epoch & 1; }

/* Returns once a job other than `seen` is open, or the pool stops: spins first, then sleeps. */
static void wait_for_job(edb_pool *pool, unsigned seen) {
    int64_t until = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            unsigned epoch = atomic_load_explicit(&pool->epoch, memory_order_relaxed);
            if (is_open(epoch) && epoch != seen) return;
            relax();
        }
        sched_yield(); /* to the caller, if the system woke us on its core */
    } while (now_ns() < until);

    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1); /* before looking at epoch, see wake_sleepers */
    for (;;) {
        unsigned epoch = atomic_load(&pool->epoch);
        if ((is_open(epoch) && epoch != seen) || atomic_load(&pool->stop)) break;
        pthread_cond_wait(&pool->wake, &pool->mutex);
    }
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void *work(void *argument) {
    edb_worker *self = argument;
    edb_pool *pool = self->pool;
    unsigned seen = 0;
    while (!atomic_load(&pool->stop)) {
        wait_for_job(pool, seen);
        atomic_fetch_add(&pool->inside, 1);
        unsigned epoch = atomic_load(&pool->epoch);
        if (is_open(epoch)) {
            take_tasks(pool, self->number);
            seen = epoch;
        }
        atomic_fetch_sub(&pool->inside, 1);
    }
    return NULL;
}

/* Called after epoch was changed: a worker that is not counted yet will see the change. */
static void wake_sleepers(edb_pool *pool) {
    if (atomic_load(&pool->sleepers) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

/* The threads of a pool stay in the parent when a process forks. */
static int has_threads(const edb_pool *pool) {
    return pool->fork_count == atomic_load_explicit(&fork_count, memory_order_relaxed);
}

void edb_pool_run(edb_pool *pool, edb_task task, void *job, int64_t n_tasks, int64_t chunk) {
    if (pool == NULL || pool->n_threads == 1 || n_tasks <= chunk || !has_threads(pool) ||
        atomic_flag_test_and_set_explicit(&pool->busy, memory_order_acquire)) {
        task(job, 0, n_tasks, 0);
        return;
    }
    pool->task = task;
    pool->job = job;
    pool->chunk = chunk;
    for (int32_t i = 0; i < pool->n_threads; i++) {
        int64_t begin = n_tasks * i / pool->n_threads;
        atomic_store_explicit(&pool->ranges[i].next, begin, memory_order_relaxed);
        pool->ranges[i].end = n_tasks * (i + 1) / pool->n_threads;
    }
    atomic_fetch_add(&pool->epoch, 1); /* open: publishes the job */
    wake_sleepers(pool);
    take_tasks(pool, 0);
    atomic_fetch_add(&pool->epoch, 1); /* closed: nobody gets in any more */
    for (int spins = 0; atomic_load(&pool->inside) != 0; spins++) {
        if (spins < SPINS_BEFORE_YIELD) {
            relax();
        } else {
            sched_yield();
        }
    }
    atomic_flag_clear_explicit(&pool->busy, memory_order_release);
}

static edb_status start_workers(edb_pool *pool) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return EDB_ERR_MEMORY;
    pthread_attr_setstacksize(&attributes, STACK_BYTES); /* the default is fine too if refused */
    edb_status status = EDB_OK;
    int32_t started = 0;
    for (; started < pool->n_threads - 1; started++) {
        edb_worker *worker = &pool->workers[started];
        worker->pool = pool;
        worker->number = started + 1;
        if (pthread_create(&worker->thread, &attributes, work, worker) != 0) {
            status = EDB_ERR_THREAD;
            break;
        }
    }
    pool->n_threads = started + 1;
    pthread_attr_destroy(&attributes);
    return status;
}

edb_status edb_pool_create(int32_t n_threads, edb_pool **created) {
    if (created == NULL) return EDB_ERR_NULL;
    *created = NULL;
    if (n_threads < 1 || n_threads > MAX_THREADS) return EDB_ERR_SHAPE;
    pthread_once(&fork_once, watch_forks);

    edb_pool *pool = aligned_alloc(64, sizeof *pool);
    if (pool == NULL) return EDB_ERR_MEMORY;
    memset(pool, 0, sizeof *pool);
    atomic_flag_clear(&pool->busy);
    pool->n_threads = n_threads;
    pool->fork_count = atomic_load(&fork_count);
    pool->workers = calloc((size_t)n_threads, sizeof *pool->workers);
    pool->ranges = aligned_alloc(64, (size_t)n_threads * sizeof *pool->ranges);
    if (pool->workers == NULL || pool->ranges == NULL) {
        free(pool->workers);
        free(pool->ranges);
        free(pool);
        return EDB_ERR_MEMORY;
    }
    pthread_mutex_init(&pool->mutex, NULL); /* cannot fail with default attributes on our systems */
    pthread_cond_init(&pool->wake, NULL);

    edb_status status = start_workers(pool);
    if (status != EDB_OK) {
        edb_pool_destroy(pool);
        return status;
    }
    *created = pool;
    return EDB_OK;
}

void edb_pool_destroy(edb_pool *pool) {
    if (pool == NULL) return;
    if (has_threads(pool)) {
        atomic_store(&pool->stop, 1);
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
        for (int32_t i = 0; i < pool->n_threads - 1; i++)
            pthread_join(pool->workers[i].thread, NULL);
        pthread_cond_destroy(&pool->wake);
        pthread_mutex_destroy(&pool->mutex);
    }
    free(pool->workers);
    free(pool->ranges);
    free(pool);
}

int32_t edb_pool_threads(const edb_pool *pool) { return pool != NULL ? pool->n_threads : 1; }
