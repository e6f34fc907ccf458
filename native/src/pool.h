/*
 * Work for the pool of threads: stages, one after the other, each shared between the threads.
 */
#ifndef EDB_POOL_H
#define EDB_POOL_H

#include "../include/edgedb.h"

enum { EDB_MAX_STAGES = 16 }; /* of one job */

static inline int64_t edb_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t edb_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* A piece of work: tasks begin..end-1; worker is the same number for one thread during a run. */
typedef void (*edb_task)(void *job, int64_t begin, int64_t end, int32_t worker);

/* Tasks 0..n_tasks-1 of a job, `chunk` at a time. */
typedef struct {
    edb_task task;
    void *job;
    int64_t n_tasks, chunk;
} edb_stage;

/*
 * Runs stages one after the other, each shared between the threads, and returns when all are done.
 * A thread takes neighbouring tasks in ascending order as long as it can. pool may be NULL.
 */
void edb_pool_run_stages(edb_pool *pool, const edb_stage *stages, int32_t n_stages);

/* One stage. */
void edb_pool_run(edb_pool *pool, edb_task task, void *job, int64_t n_tasks, int64_t chunk);

/* Small tasks that a thread takes at once, few enough that a slow core holds nobody up. */
static inline int64_t edb_chunk(const edb_pool *pool, int64_t n_tasks) {
    return edb_max(1, n_tasks / (8 * (int64_t)edb_pool_threads(pool)));
}

#endif
