/*
 * A persistent pool for work of a few microseconds.
 *
 * A job is a list of stages; a stage begins when every task of the one before is done. Tasks of a
 * stage are cut into one contiguous range a thread. A thread takes a chunk at a time from the front
 * of its own range, so that it walks memory in one direction and can prefetch, and from the ranges
 * of others when its own is done.
 *
 * What is waited for is tasks, never threads: a worker that sleeps, or that comes late, or whose
 * core was taken away between two chunks, holds nobody up, and may still be in the job's loop when
 * the caller is long gone. So a range carries the number of its job, and taking a chunk is one
 * compare-and-swap of both: it succeeds only while the job has that task left, and everything the
 * task needs is then alive until the task is counted as done.
 *
 * A core may also be taken away within a chunk. Nobody else can finish that chunk, so all wait,
 * some milliseconds; workers do so asleep, which gives the system a core for the thread that lost
 * its own. Where such waits eat what the threads gain, the caller works alone for a while:
 * hold_back.
 *
 * A barrier costs about 0.1 us while the workers spin and nothing while they sleep, since the
 * caller does not wait for them to wake.
 */
#if !defined(__APPLE__) /* whose headers hide the quality of service then */
#define _POSIX_C_SOURCE 200809L
#endif

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "pool.h"
#include "threads.h"

enum { MAX_THREADS = 256, SPIN_NS = 30000, SPINS_PER_LOOK = 64, LOOKS_BEFORE_YIELD = 32 };

/* Our kernels keep some 40 KB on the stack; musl's default of 128 KB would do, 512 KB is ample. */
enum { STACK_BYTES = 512 * 1024 };

/* A wait of LONG_WAIT_NS beyond four average chunks means that a core was taken away. */
enum { LONG_WAIT_NS = 100000, NAP_NS = 200000 };

/* Waits are weighed against this much work; then how long the caller works alone. */
enum { WINDOW_NS = 20000000, FIRST_HOLD_NS = 20000000, LAST_HOLD_NS = 320000000 };

typedef struct {
    edb_pool *pool;
    edb_thread thread;
    int32_t number;
} edb_worker;

/* `next`: the job's number in the high half; in the low half the first task that nobody took. */
typedef struct {
    _Alignas(64) _Atomic uint64_t next;
    _Atomic int64_t end;
} edb_range;

/* A stage as the workers see it; `left` counts its tasks that are not done. */
typedef struct {
    _Alignas(64) _Atomic int64_t left;
    _Alignas(64) _Atomic int64_t chunk;
    edb_stage stage; /* valid for who took one of its chunks */
} edb_open_stage;

struct edb_pool {
    _Alignas(64) atomic_uint job; /* number of the last job */
    atomic_int n_stages;
    _Atomic int64_t waited; /* ns in long waits of all threads, in this window */
    edb_open_stage stages[EDB_MAX_STAGES];
    edb_range *ranges; /* [EDB_MAX_STAGES, n_threads] */

    _Alignas(64) atomic_flag busy; /* a caller owns the pool, and the next fields */
    int64_t worked;                /* ns in jobs, in this window */
    int64_t alone_until;           /* ns; the workers are left asleep */
    int64_t hold;                  /* how long the caller stayed alone the last time */

    _Alignas(64) atomic_int sleepers;
    atomic_int stop;
    edb_lock lock;
    edb_signal wake;

    int32_t n_threads;
    unsigned fork_count; /* of the process that owns the threads */
    edb_worker *workers; /* [n_threads - 1] */
};

static atomic_uint fork_count; /* stays 0 on Windows, where no process forks */

#if defined(_WIN32)
static void watch_forks(void) {}
#else
static void count_fork(void) { atomic_fetch_add(&fork_count, 1); }
static void register_count(void) { pthread_atfork(NULL, NULL, count_fork); }
static void watch_forks(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_count);
}
#endif

/* ---- taking tasks ---- */

static uint64_t tagged(unsigned job, int64_t task) { return (uint64_t)job << 32 | (uint64_t)task; }

/* The first task of a chunk that is now the caller's, with its end in *end; -1 if none is left. */
static int64_t take_chunk(edb_range *range, unsigned job, int64_t chunk, int64_t *end) {
    uint64_t next = atomic_load_explicit(&range->next, memory_order_acquire);
    for (;;) {
        int64_t begin = (int64_t)(next & 0xffffffff);
        int64_t last = atomic_load_explicit(&range->end, memory_order_acquire);
        if (next >> 32 != job || begin >= last) return -1;
        *end = edb_min(begin + chunk, last);
        if (atomic_compare_exchange_weak_explicit(&range->next, &next, tagged(job, *end),
                                                  memory_order_acquire, memory_order_acquire))
            return begin;
    }
}

/* One thread's part in a job. */
typedef struct {
    edb_pool *pool;
    unsigned job;
    int32_t number;
    int64_t started, chunks; /* ns; taken so far */
} edb_turn;

/* Works on a stage until no task is left to take. */
static void work_on(edb_turn *turn, int32_t stage) {
    edb_pool *pool = turn->pool;
    edb_open_stage *open = &pool->stages[stage];
    edb_range *ranges = pool->ranges + stage * pool->n_threads;
    int64_t chunk = atomic_load_explicit(&open->chunk, memory_order_relaxed);
    int64_t tasks = 0, begin, end;
    for (int32_t i = 0; i < pool->n_threads; i++) {
        edb_range *range = &ranges[(turn->number + i) % pool->n_threads];
        while ((begin = take_chunk(range, turn->job, chunk, &end)) >= 0) {
            open->stage.task(open->stage.job, begin, end, turn->number);
            tasks += end - begin;
            turn->chunks++;
        }
    }
    if (tasks > 0) atomic_fetch_sub_explicit(&open->left, tasks, memory_order_release);
}

/* Whether the stage's tasks, or the whole job, are over; then its results can be read. */
static int is_over(const edb_turn *turn, int32_t stage) {
    edb_pool *pool = turn->pool;
    return atomic_load_explicit(&pool->stages[stage].left, memory_order_acquire) == 0 ||
           atomic_load_explicit(&pool->job, memory_order_relaxed) != turn->job;
}

/*
 * Spins until the stage is over. A wait far longer than an average chunk, in which some thread must
 * have lost its core, is counted, and a worker spends it asleep.
 */
static void wait_until_over(const edb_turn *turn, int32_t stage) {
    int64_t began = 0, patience = 0;
    for (int look = 0;; look++) {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (is_over(turn, stage)) {
                int64_t waited = look > 0 ? edb_now_ns() - began : 0;
                if (waited > patience) atomic_fetch_add(&turn->pool->waited, waited);
                return;
            }
            edb_relax();
        }
        int64_t now = edb_now_ns();
        if (look == 0) {
            began = now;
            patience = LONG_WAIT_NS + 4 * (now - turn->started) / edb_max(1, turn->chunks);
        }
        if (now - began > patience && turn->number != 0) {
            edb_nap(NAP_NS);
        } else if (look >= LOOKS_BEFORE_YIELD) {
            edb_yield();
        }
    }
}

/* ---- workers ---- */

/* Returns once there is a job other than `seen`, or the pool stops: spins first, then sleeps. */
static void wait_for_job(edb_pool *pool, unsigned seen) {
    int64_t until = edb_now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (atomic_load_explicit(&pool->job, memory_order_relaxed) != seen) return;
            edb_relax();
        }
        edb_yield(); /* to the caller, if the system woke us on its core */
    } while (edb_now_ns() < until);

    edb_take_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1); /* before looking at job, see wake_sleepers */
    while (atomic_load(&pool->job) == seen && !atomic_load(&pool->stop))
        edb_await_signal(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    edb_release_lock(&pool->lock);
}

static edb_thread_result work(void *argument) {
    edb_prefer_fast_cores();
    edb_worker *self = argument;
    edb_pool *pool = self->pool;
    edb_turn turn = {.pool = pool, .number = self->number};
    while (!atomic_load(&pool->stop)) {
        wait_for_job(pool, turn.job);
        turn.job = atomic_load(&pool->job);
        turn.started = edb_now_ns();
        turn.chunks = 0;
        for (int32_t stage = 0; stage < atomic_load(&pool->n_stages); stage++) {
            work_on(&turn, stage);
            wait_until_over(&turn, stage);
        }
    }
    return 0;
}

/* Called after `job` was changed: a worker that is not counted yet will see the change. */
static void wake_sleepers(edb_pool *pool) {
    if (atomic_load(&pool->sleepers) == 0) return;
    edb_take_lock(&pool->lock);
    edb_signal_all(&pool->wake);
    edb_release_lock(&pool->lock);
}

/* ---- callers ---- */

/* The threads of a pool stay in the parent when a process forks. */
static int has_threads(const edb_pool *pool) {
    return pool->fork_count == atomic_load_explicit(&fork_count, memory_order_relaxed);
}

/* Publishes a job: a range is closed before its end changes, and opened after. */
static unsigned open_job(edb_pool *pool, const edb_stage *stages, int32_t n_stages) {
    unsigned job = atomic_load_explicit(&pool->job, memory_order_relaxed) + 1;
    int32_t n_threads = pool->n_threads;
    for (int32_t s = 0; s < n_stages; s++) {
        edb_open_stage *open = &pool->stages[s];
        edb_range *ranges = pool->ranges + s * n_threads;
        for (int32_t i = 0; i < n_threads; i++)
            atomic_store_explicit(&ranges[i].next, tagged(job, UINT32_MAX), memory_order_relaxed);
        atomic_store_explicit(&open->left, stages[s].n_tasks, memory_order_release);
        atomic_store_explicit(&open->chunk, stages[s].chunk, memory_order_release);
        open->stage = stages[s];
        for (int32_t i = 0; i < n_threads; i++) {
            int64_t begin = stages[s].n_tasks * i / n_threads;
            int64_t end = stages[s].n_tasks * (i + 1) / n_threads;
            atomic_store_explicit(&ranges[i].end, end, memory_order_release);
            atomic_store_explicit(&ranges[i].next, tagged(job, begin), memory_order_release);
        }
    }
    atomic_store_explicit(&pool->n_stages, n_stages, memory_order_relaxed);
    atomic_store(&pool->job, job);
    wake_sleepers(pool);
    return job;
}

/*
 * Called after every job. While one thread lacks its core and the others wait, nothing is done. If
 * that took 1 - 1.2/n of the window, n threads gained little or nothing over one (memory does not
 * let them be n times as fast), and the caller works alone: 20 ms, then twice as long each time in
 * a row. The workers sleep meanwhile. A process that always wants a core of two takes a third of
 * the window to three quarters; threads of this process that work for a moment between passes, as a
 * server's do, a tenth or two, and beside them two threads are still far quicker than one.
 */
static void hold_back(edb_pool *pool, int64_t started) {
    int64_t now = edb_now_ns(), n = pool->n_threads;
    pool->worked += now - started;
    if (pool->worked < WINDOW_NS) return;
    int64_t waited = atomic_exchange(&pool->waited, 0) / (n - 1);
    if (5 * n * waited > (5 * n - 6) * pool->worked) {
        pool->hold = edb_min(edb_max(2 * pool->hold, FIRST_HOLD_NS), LAST_HOLD_NS);
        pool->alone_until = now + pool->hold;
    } else {
        pool->hold = 0;
    }
    pool->worked = 0;
}

static void run_alone(const edb_stage *stages, int32_t n_stages) {
    for (int32_t s = 0; s < n_stages; s++)
        if (stages[s].n_tasks > 0) stages[s].task(stages[s].job, 0, stages[s].n_tasks, 0);
}

static int is_worth_sharing(const edb_stage *stages, int32_t n_stages) {
    int worth = 0;
    for (int32_t s = 0; s < n_stages; s++) {
        worth |= stages[s].n_tasks > stages[s].chunk;
        if (stages[s].n_tasks >= UINT32_MAX) return 0;
    }
    return worth;
}

void edb_pool_run_stages(edb_pool *pool, const edb_stage *stages, int32_t n_stages) {
    if (pool == NULL || pool->n_threads == 1 || !is_worth_sharing(stages, n_stages) ||
        !has_threads(pool) ||
        atomic_flag_test_and_set_explicit(&pool->busy, memory_order_acquire)) {
        run_alone(stages, n_stages);
        return;
    }
    edb_turn turn = {.pool = pool, .started = edb_now_ns()};
    if (turn.started < pool->alone_until) {
        atomic_flag_clear_explicit(&pool->busy, memory_order_release);
        run_alone(stages, n_stages);
        return;
    }
    turn.job = open_job(pool, stages, n_stages);
    for (int32_t s = 0; s < n_stages; s++) {
        work_on(&turn, s);
        wait_until_over(&turn, s);
    }
    hold_back(pool, turn.started);
    atomic_flag_clear_explicit(&pool->busy, memory_order_release);
}

void edb_pool_run(edb_pool *pool, edb_task task, void *job, int64_t n_tasks, int64_t chunk) {
    edb_stage stage = {task, job, n_tasks, chunk};
    edb_pool_run_stages(pool, &stage, 1);
}

static edb_status start_workers(edb_pool *pool) {
    edb_status status = EDB_OK;
    int32_t started = 0;
    for (; started < pool->n_threads - 1; started++) {
        edb_worker *worker = &pool->workers[started];
        worker->pool = pool;
        worker->number = started + 1;
        if (edb_start_thread(&worker->thread, STACK_BYTES, work, worker) != 0) {
            status = EDB_ERR_THREAD;
            break;
        }
    }
    pool->n_threads = started + 1;
    return status;
}

edb_status edb_pool_create(int32_t n_threads, edb_pool **created) {
    if (created == NULL) return EDB_ERR_NULL;
    *created = NULL;
    if (n_threads < 1 || n_threads > MAX_THREADS) return EDB_ERR_SHAPE;
    watch_forks();
    edb_stay_loaded();

    edb_pool *pool = edb_allocate_lines(sizeof *pool);
    if (pool == NULL) return EDB_ERR_MEMORY;
    memset(pool, 0, sizeof *pool);
    atomic_flag_clear(&pool->busy);
    pool->n_threads = n_threads;
    pool->fork_count = atomic_load(&fork_count);
    pool->workers = calloc((size_t)n_threads, sizeof *pool->workers);
    pool->ranges = edb_allocate_lines(EDB_MAX_STAGES * (size_t)n_threads * sizeof *pool->ranges);
    if (pool->workers == NULL || pool->ranges == NULL) {
        free(pool->workers);
        edb_free_lines(pool->ranges);
        edb_free_lines(pool);
        return EDB_ERR_MEMORY;
    }
    edb_make_lock(&pool->lock);
    edb_make_signal(&pool->wake);

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
        edb_take_lock(&pool->lock);
        edb_signal_all(&pool->wake);
        edb_release_lock(&pool->lock);
        for (int32_t i = 0; i < pool->n_threads - 1; i++)
            edb_join_thread(pool->workers[i].thread);
        edb_end_signal(&pool->wake);
        edb_end_lock(&pool->lock);
    }
    free(pool->workers);
    edb_free_lines(pool->ranges);
    edb_free_lines(pool);
}

int32_t edb_pool_threads(const edb_pool *pool) { return pool != NULL ? pool->n_threads : 1; }
